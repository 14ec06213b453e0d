"""What tolerance a type of number can hold."""

from __future__ import annotations

import torch


def attainable(rtol: float, dtype: torch.dtype) -> float:
    """A relative tolerance as it is asked of states in a dtype: no less than two units in the last place.

    4.4e-16 in float64, 2.4e-7 in float32, 2.0e-3 in float16, 1.6e-2 in bfloat16. Below that an error estimate is the
    rounding of the slopes it is made of, which no step is short enough for.
    """
    return max(rtol, 2 * torch.finfo(dtype).eps)
