"""Methods that choose their steps: per sample (native), or for the whole batch (torchdiffeq)."""
