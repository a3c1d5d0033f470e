"""What serves an agent: promote, roll back, and the ledger of what served when."""
