"""Reading agents and deployments, and changing them by other means than registration and promotion."""
