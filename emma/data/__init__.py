"""Training data: LLaVA annotations as memory-mapped tables, mixtures of them, and the batches that a stage draws."""
