"""The command line, the set-up of a checkout, and the whole system on one machine."""
