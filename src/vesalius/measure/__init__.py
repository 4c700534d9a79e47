"""Floor 2: pure functions on arrays, each a number with a unit."""
