"""Webhooks: events by HTTP POST, in order per agent and at least once."""
