"""The plan of a step as PyTorch calls."""
