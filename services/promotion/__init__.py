"""Promotion: promote, rollback and its targets, and the history of what served."""
