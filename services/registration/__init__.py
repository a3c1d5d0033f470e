"""Announcements: deciding a batch, the inbox, and messages that cannot be applied."""
