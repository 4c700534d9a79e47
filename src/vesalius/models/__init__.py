"""Floor 2: networks, as plain ``nn.Module``s that know tensors and nothing else."""
