"""A kernel over a whole sequence, forward and backward, whatever it is written in."""
