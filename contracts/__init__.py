"""What crosses a process boundary: messages, events and the names of the broker's parts.

Needs pydantic and the standard library alone, so that a pod or a consumer can take it without the rest.
"""
