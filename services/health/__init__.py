"""Health checks of deployments: what is due, the probe itself, and its verdict."""
