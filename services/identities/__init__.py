"""Identities: who calls, what they may do, API keys, and the audit log of what they changed."""
