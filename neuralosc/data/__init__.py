"""From somebody's timestamps to what a network takes."""
