"""The worker that delivers events to webhooks."""
