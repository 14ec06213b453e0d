"""Speed and memory, measured: what `make bench` runs."""
