"""The background workers: registrar, relay, drainer and janitor."""
