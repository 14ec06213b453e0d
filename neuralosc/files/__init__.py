"""Networks as files: saved weights and configurations, and exported programs."""
