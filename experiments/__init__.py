"""Tasks and their data, training, studies and the command line; used from a checkout."""
