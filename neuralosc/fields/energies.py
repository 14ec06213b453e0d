"""Scalar functions that appear in energies."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional


def log_cosh(x: Tensor) -> Tensor:
    """log(cosh(x)), accurate for small x and without overflow for large x; its derivative is tanh(x)."""
    magnitude = x.abs()
    return magnitude + functional.softplus(-2 * magnitude) - math.log(2)
