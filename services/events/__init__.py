"""Events: the outbox, the log that readers follow, and waking the relay."""
