"""Health checks of deployments: claiming those that are due, probing them, and recording the result."""
