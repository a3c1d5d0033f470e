"""Small programs that run: an agent's pod and a consumer of events."""
