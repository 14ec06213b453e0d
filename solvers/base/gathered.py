"""Columns over time of which each sample takes its own entries, in its own order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.base.control import Paths, entries
from solvers.base.series import Mapped, Series
from solvers.protocol import ControlPath


class NotGathered(Exception):
    """A path that knows no single samples: a function, or one made of other things than tensors."""


def gathered(values: Tensor, index: Tensor) -> Tensor:
    """Values `(batch, time, ...)` at a sample's own places: `values[b, index[b, k]]`, for an index `(batch, entries)`.

    Whole rows are copied, one step after the other, as a loop reads them.
    """
    batch, time = values.shape[:2]
    rows = torch.arange(batch, device=index.device)
    if values.transpose(0, 1).is_contiguous():
        flat, place = values.transpose(0, 1).flatten(0, 1), index.t() * batch + rows
    else:
        flat, place = values.flatten(0, 1), index.t() + rows * time
    taken: Tensor = flat.index_select(0, place.reshape(-1)).unflatten(0, place.shape)
    return taken.transpose(0, 1)


def gathered_paths(paths: Sequence[ControlPath], index: Tensor) -> Sequence[ControlPath]:
    """The paths of intervals, where entry k is for sample b that of interval `index[b, k]`.

    Raises:
        NotGathered: they are not made of tensors.
    """
    if isinstance(paths, Paths):
        return Paths(paths.kind, **{name: _column(column, index) for name, column in paths.columns.items()})
    first, count = paths[0], index.shape[1]
    if all(path is first for path in paths):
        return [first] * count
    if not dataclasses.is_dataclass(first) or len(set(map(type, paths))) > 1:
        raise NotGathered
    columns = {name: _column([getattr(path, name) for path in paths], index) for name in entries(first)}
    return Paths(getattr(first, "kind", type(first)), **columns)


def _column(column: Sequence[Any], index: Tensor) -> Sequence[Any]:
    """One entry of the paths of all intervals; see `gathered_paths`."""
    if isinstance(column, Mapped):
        return Mapped(gathered(column.x, index), column.weight, column.bias)
    if isinstance(column, Series):
        return Series(gathered(column.whole, index))
    if isinstance(column, Paths):
        return gathered_paths(column, index)
    first = column[0]
    if all(value is first for value in column):
        return [first] * index.shape[1]
    if all(isinstance(value, int | float | Tensor) for value in column):
        return _values(column, index)
    if all(callable(value) for value in column):
        return gathered_paths(column, index)
    raise NotGathered


def _values(column: Sequence[float | Tensor], index: Tensor) -> Sequence[Any]:
    """Those of tensors, among which times may be numbers; see `gathered_paths`."""
    like = next((value for value in column if isinstance(value, Tensor)), None)
    if like is None:
        if list(column).count(column[0]) == len(column):
            return [column[0]] * index.shape[1]
        # As a tensor a number would have a type, which might not be that of the state.
        raise NotGathered
    whole = [_rows(torch.as_tensor(value).to(like), len(index)) for value in column]
    return Series(gathered(torch.stack(whole, 1), index))


def _rows(value: Tensor, batch: int) -> Tensor:
    """A value for each sample, `(batch, ...)`, of one that may be shared: a number, or a row of channels."""
    if value.dim() < 2:
        value = value.reshape(1, -1)
    return value.expand(batch, *value.shape[1:])
