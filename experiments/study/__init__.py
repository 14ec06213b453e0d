"""A study of trained runs: what discretization, gradients and data do to them, on one page."""
