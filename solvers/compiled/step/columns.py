"""What the steps of a loop are given, interval by interval, as a few whole tensors.

A clock and a list of paths are a column of values for each of their entries: start and size of a step, and each field
of the path (paths are dataclasses of tensors and numbers). A column that is the same in all intervals is uniform.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.base.control import Paths, entries
from solvers.base.loop import Loop
from solvers.base.series import Series
from solvers.compiled.step.refused import Refused


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
        self.values: dict[tuple[Hashable, ...], Sequence[Any]] = {
            ("start",): loop.clock.starts,
            ("span",): loop.clock.spans,
        }
        for name, values in columns_of(loop.paths).items():
            self.values["path", name] = values
        self.items = tuple(_item(key, values, batch) for key, values in self.values.items())

    def whole(self, item: Item, dtype: torch.dtype) -> Tensor:
        """A uniform item as it is, another one as `(time, *shape)`; numbers in double precision."""
        values = self.values[item.key]
        if isinstance(values, Series):
            return values.whole.transpose(0, 1)
        first = values[0]
        if item.number:
            return torch.tensor(float(first) if item.uniform else values, dtype=torch.float64)
        if item.uniform:
            shared: Tensor = first
            return shared
        if len(values) > 1 and all(v is first for v in values):
            repeated: Tensor = first.unsqueeze(0).expand(len(values), *first.shape)
            return repeated
        return torch.stack(list(values))


def columns_of(paths: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """The values of each field of the paths, but for what makes one; of a path within, by "name.field".

    Raises:
        Refused: they are not all of one kind of dataclass.
    """
    if not isinstance(paths, Paths):
        paths = _as_columns(paths)
    columns: dict[str, Sequence[Any]] = {}
    for name, values in paths.columns.items():
        inner = columns_of(values) if _are_paths(values) else None
        columns |= {name: values} if inner is None else {f"{name}.{field}": each for field, each in inner.items()}
    return columns


def kind_of(paths: Sequence[Any]) -> Any:
    """What makes a path of what changes from interval to interval, by the names of `columns_of`."""
    if not isinstance(paths, Paths):
        return getattr(paths[0], "kind", None) or kind_of(_as_columns(paths))
    inner = tuple((name, kind_of(values)) for name, values in paths.columns.items() if _are_paths(values))
    return Nested(paths.kind, inner) if inner else paths.kind


@dataclass(frozen=True)
class Nested:
    """Makes a path of paths, of values whose names say which of them they are for.

    Attributes:
        kind: makes the path.
        inner: names and kinds of the paths within.
    """

    kind: Any
    inner: tuple[tuple[str, Any], ...]

    def __call__(self, **values: Any) -> Any:
        """The path of one interval."""
        for name, kind in self.inner:
            own = {key: values.pop(key) for key in list(values) if key.startswith(f"{name}.")}
            values[name] = kind(**{key.removeprefix(f"{name}."): value for key, value in own.items()})
        return self.kind(**values)


def _are_paths(values: Sequence[Any]) -> bool:
    """Whether a column holds paths."""
    if isinstance(values, Paths | Series):
        return isinstance(values, Paths)
    return callable(values[0]) and not isinstance(values[0], Tensor)


def _as_columns(paths: Sequence[Any]) -> Paths:
    """A list of paths as columns."""
    path: Any = paths[0]
    if not dataclasses.is_dataclass(path):
        raise Refused(f"a path of type {type(path).__name__} is no dataclass of tensors and numbers")
    if len(set(map(type, paths))) > 1:
        raise Refused("the paths of the intervals are of different types")
    kind: Any = type(path)
    return Paths(kind, **{name: [getattr(p, name) for p in paths] for name in entries(path)})


def _item(key: tuple[Hashable, ...], values: Sequence[Any], batch: int) -> Item:
    if isinstance(values, Series):
        whole = values.whole
        has = whole.dim() >= 3 and whole.shape[0] == batch
        if not has:
            raise Refused("an input has no axis for the batch")
        return Item(key, False, False, tuple(whole.shape[2:]), True, whole.requires_grad)
    first = values[0]
    if isinstance(first, bool) or not isinstance(first, int | float | Tensor):
        raise Refused(f"a path holds a {type(first).__name__}")
    if not isinstance(first, Tensor):
        if not set(map(type, values)) <= {int, float}:
            raise Refused("the paths hold numbers in some intervals and other things in others")
        # A time differs from step to step, if only within an interval.
        uniform = key != ("start",) and values.count(first) == len(values)
        return Item(key, uniform, True, (), False, False)
    if not all(isinstance(v, Tensor) for v in values):
        raise Refused("the paths hold tensors in some intervals and other things in others")
    uniform = len(values) > 1 and all(v is first for v in values)
    if not uniform and len({(v.shape, v.dtype) for v in values}) > 1:
        raise Refused("tensors of the intervals have different shapes")
    # With one axis it is a row of channels, also where there are as many of them as samples.
    has = first.dim() >= 2 and first.shape[0] == batch
    # One tensor with a value per sample, the same in all intervals, is a column like any other.
    uniform = uniform and not has
    shape = tuple(first.shape[1:] if has else first.shape)
    return Item(key, uniform, False, shape, has, first.requires_grad or values[-1].requires_grad)
