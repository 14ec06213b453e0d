"""Fields, solver, gradient, control: what is stepped and how."""

from __future__ import annotations

from torch import nn


def skip_map(field: nn.Module, input_size: int, output_size: int) -> nn.Linear | None:
    """The map of the skip connection around the first layer, like the weights of `field`; None for the identity."""
    if input_size == output_size:
        return None
    like = next(field.parameters(), None)
    kind = {} if like is None else {"dtype": like.dtype, "device": like.device}
    return nn.Linear(input_size, output_size, bias=False, **kind)
