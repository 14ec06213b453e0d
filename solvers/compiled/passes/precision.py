"""The precision of a kernel: of its state, and of its products."""

from __future__ import annotations

import torch
from torch import Tensor


def working(dtype: torch.dtype) -> torch.dtype:
    """The type a kernel computes in: a state of few significant bits would lose what a small step adds to it."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def asked(state: Tensor) -> torch.dtype:
    """The type whose digits products are to have: that of autocast, which leaves float64 alone, or of the state."""
    device = state.device.type
    autocast = torch.is_autocast_enabled(device) and state.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else state.dtype
