"""Calls and failures of the last hour, counted by every API process and stored together."""
