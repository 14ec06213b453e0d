"""Single precision at least, for what is computed once from parameters."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def unlowered(device: str) -> AbstractContextManager[Any]:
    """Products as precise as their factors, under autocast too.

    An error in what is computed once from parameters, such as the matrix of a flow, is the same in every step, and adds
    up where rounding errors of the steps would cancel.
    """
    lowered = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if lowered else nullcontext()


def widened(x: Tensor) -> Tensor:
    """x in single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
