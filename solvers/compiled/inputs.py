"""What the steps of a loop are given, interval by interval, as a few whole tensors.

A clock and a list of paths are a column of values for each of their entries: start and size of a step, and each field
of the path (paths are dataclasses of tensors and numbers). A column that is the same in all intervals is uniform.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solvers.compiled.ir import Refused
from solvers.control import Currents

if TYPE_CHECKING:
    from solvers.loop import Loop


@dataclass(frozen=True)
class Item:
    """One entry of the clock or the paths.

    Attributes:
        key: ("start",), ("span",) or ("path", field).
        uniform: the same in every interval.
        number: numbers, no tensors.
        shape: of one tensor, without its batch axis.
        batch: the first axis is the batch.
        grad: a gradient is wanted.
    """

    key: tuple[Hashable, ...]
    uniform: bool
    number: bool
    shape: tuple[int, ...]
    batch: bool
    grad: bool


class Columns:
    """The columns of a loop, made whole when asked for."""

    def __init__(self, loop: Loop, batch: int) -> None:
        self.loop = loop
        path = loop.paths[0]
        if not dataclasses.is_dataclass(path):
            raise Refused(f"a path of type {type(path).__name__} is no dataclass of tensors and numbers")
        kinds = {type(p) for p in loop.paths}
        if len(kinds) > 1:
            raise Refused("the paths of the intervals are of different types")
        self.values: dict[tuple[Hashable, ...], Sequence[Any]] = {
            ("start",): loop.clock.starts,
            ("span",): loop.clock.spans,
        }
        for field in dataclasses.fields(path):
            self.values["path", field.name] = [getattr(p, field.name) for p in loop.paths]
        self.items = tuple(_item(key, values, batch) for key, values in self.values.items())

    def whole(self, item: Item, dtype: torch.dtype) -> Tensor:
        """A uniform item as it is, another one as `(time, *shape)`; numbers in double precision."""
        values = self.values[item.key]
        if item.uniform:
            return values[0] if not item.number else torch.tensor(float(values[0]), dtype=torch.float64)
        if item.number:
            return torch.tensor(values, dtype=torch.float64)
        if len(values) > 1 and values[0] is values[-1] and all(v is values[0] for v in values):
            return values[0].unsqueeze(0).expand(len(values), *values[0].shape)
        found = Currents.behind(values)
        return torch.stack(list(values)) if found is None else found.transpose(0, 1)


def _item(key: tuple[Hashable, ...], values: Sequence[Any], batch: int) -> Item:
    first = values[0]
    if isinstance(first, bool) or not isinstance(first, int | float | Tensor):
        raise Refused(f"a path holds a {type(first).__name__}")
    kinds = {isinstance(v, Tensor) for v in values}
    if len(kinds) > 1:
        raise Refused("the paths hold numbers in some intervals and tensors in others")
    if not isinstance(first, Tensor):
        uniform = key != ("start",) and all(v == first for v in values)
        return Item(key, uniform, True, (), False, False)
    uniform = len(values) > 1 and all(v is first for v in values)
    if not uniform and len({v.shape for v in values}) > 1:
        raise Refused("tensors of the intervals have different shapes")
    if any(v.dtype != first.dtype or not v.is_floating_point() for v in values[:1]):
        raise Refused("an input of the step does not hold real numbers")
    has = first.dim() >= 2 and first.shape[0] == batch
    # One tensor with a value per sample, the same in all intervals, is a column like any other.
    uniform = uniform and not has
    shape = tuple(first.shape[1:] if has else first.shape)
    grad = first.requires_grad or (values[-1].requires_grad)
    return Item(key, uniform, False, shape, has, grad)
