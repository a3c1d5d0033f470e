"""Retention: deletes old previews, purges deleted versions, and removes old events, announcements and sessions."""
