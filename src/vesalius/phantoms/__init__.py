"""Floor 3: seeded synthetic cases with exact truth, and cohorts of them in every layout that is read."""
