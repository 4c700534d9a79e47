"""Floor 2: pixels in, pixels out. Preparing, augmenting and corrupting batches with torch, on any device."""
