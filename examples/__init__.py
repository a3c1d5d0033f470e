"""Runnable examples: an agent's pod, publishers of announcements, and consumers of events."""
