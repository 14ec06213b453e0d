"""Training: configuration, the trainer, runs and their checkpoints."""
