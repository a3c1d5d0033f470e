"""HTTP concerns that all routes share: bodies, answers, errors, parameters, limits, metrics."""
