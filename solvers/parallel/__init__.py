"""Linear fields solved for all times at once."""
