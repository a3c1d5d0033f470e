"""The registrar: announcements from the queue become agents and deployments."""
