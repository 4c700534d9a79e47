"""Floor 5: fingerprint to plan, the training loop, and the run folder it can be resumed from."""
