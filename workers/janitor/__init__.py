"""The janitor: health checks, deadlines and retention."""
