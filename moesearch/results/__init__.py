"""Reading back from the store."""
