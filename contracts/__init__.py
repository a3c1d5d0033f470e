"""The public contracts: messages, events, and the names of exchanges and queues.

Depends on pydantic and the standard library only, so a pod or a consumer can use it alone.
"""
