"""The schema migrations, run by `podium migrate`."""
