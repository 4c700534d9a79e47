"""Floor 3: from a folder of files to batches."""
