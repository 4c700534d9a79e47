"""Floor 8: the words people type. The only floor that prints."""
