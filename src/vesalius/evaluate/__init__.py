"""Floor 5: from a table of cases to a statement with an interval."""
