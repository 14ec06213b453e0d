"""The plan of a step as GPU kernels."""
