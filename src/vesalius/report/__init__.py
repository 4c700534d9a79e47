"""Floor 6: what a study found, as pages that a radiologist and an engineer can both read."""
