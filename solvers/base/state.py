"""States as tensors and as tuples of components, and the arithmetic on both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers.protocol import State, Time


def components(state: State) -> tuple[Tensor, ...]:
    """The components of a state, each `(*batch, hidden)`."""
    return state if isinstance(state, tuple) else state.unbind(-2)


def parts_of(carried: Any) -> tuple[Tensor, ...]:
    """The tensors of a state in the form a solver carries it: one, or a tuple of them."""
    return carried if isinstance(carried, tuple) else (carried,)


def packed(state: State) -> Tensor:
    """The state as one tensor `(*batch, components, hidden)`."""
    if not isinstance(state, tuple):
        return state
    return torch.stack(state, dim=-2) if len(state) > 1 else state[0].unsqueeze(-2)


def increment(field: Any, dt: Time) -> Time:
    """The step size that multiplies slopes: dt times the field's `time_scale()` per channel, where it has one."""
    scale = getattr(field, "time_scale", None)
    factor = None if scale is None else scale()
    return dt if factor is None else dt * factor


def over_state(h: Time) -> Time:
    """A step size that broadcasts against one component, made to broadcast against the whole state."""
    return h.unsqueeze(-2) if isinstance(h, Tensor) and h.dim() > 0 else h


def affine(u: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """u + x M with `matrix` M acting from the right, fused where the shapes allow."""
    return torch.addmm(u, x, matrix) if u.dim() == x.dim() == 2 else u + x @ matrix


def axpy(x: Tensor, h: Time, slope: Tensor) -> Tensor:
    """x + h * slope in one pass over memory."""
    return x.addcmul(slope, h) if isinstance(h, Tensor) else x.add(slope, alpha=h)
