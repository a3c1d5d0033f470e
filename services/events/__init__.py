"""Events: the outbox, the event log that clients follow, and the notification of the relay."""
