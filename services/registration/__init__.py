"""Registration: deciding batches of announcements, the inbox, parked messages and dead letters."""
