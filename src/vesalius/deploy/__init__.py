"""Models on their way out: export, acceptance, quantisation, smaller models."""
