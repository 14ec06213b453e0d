"""The words of every layer: registries, controls, clocks, solvers, the loop, gradients."""
