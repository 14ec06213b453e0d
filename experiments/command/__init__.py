"""The command line `python -m experiments`, and what its commands print."""
