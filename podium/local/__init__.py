"""`podium up` and `podium demo`: the whole system on this machine."""
