"""Where an RPC goes: reading routes, and the sessions that stay with a deployment."""
