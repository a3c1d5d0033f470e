"""Decisions as pure functions on plain values: no database, no network."""
