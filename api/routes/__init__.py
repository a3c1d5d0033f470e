"""The HTTP resources: agents, deployments, registrations, parked messages, health, API documents."""
