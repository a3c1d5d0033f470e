"""Routing of RPC calls: reading routes, and MCP sessions pinned to a deployment."""
