"""Solvers and models side by side: accuracies, trajectories, figures and reports."""
