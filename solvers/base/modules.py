"""What a module holds: parameters and hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from solvers.base.counted import Counted


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its `forward`."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(bool, hooks))


def parameters_of(field: Any) -> dict[str, Tensor]:
    """The parameters of a field, by name."""
    module = field.field if isinstance(field, Counted) else field
    return dict(module.named_parameters()) if isinstance(module, nn.Module) else {}


@contextmanager
def in_place(field: Any, parameters: dict[str, Tensor]) -> Iterator[None]:
    """The field with the parameters it once had.

    They are others by the time of the backward pass where the forward pass ran under `torch.func.functional_call`.
    """
    module = field.field if isinstance(field, Counted) else field
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for full, value in parameters.items():
            path, _, name = full.rpartition(".")
            slots = module.get_submodule(path)._parameters
            swapped.append((slots, name, slots[name]))
            slots[name] = value
        yield
    finally:
        for slots, name, value in swapped:
            slots[name] = value
