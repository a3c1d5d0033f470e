"""The schema's history, run by `podium migrate`."""
