"""The front doors: which path a solve takes, the solve itself, `integrate` and `audit`."""
