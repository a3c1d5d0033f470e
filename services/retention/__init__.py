"""What is deleted or purged after its retention."""
