"""Data sets of series: samples with times of their own, of different lengths, and what a batch of them is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from neuralosc import Collator
from solvers.errors import InputError

Index = int | slice | Tensor


class Batch(NamedTuple):
    """A batch of series with their targets; the last two are None of series without times or lengths of their own.

    Attributes:
        x: `(batch, time, features)`, NaN where a value is missing.
        y: targets, `(batch, ..)`; of a task that asks at every sample, `(batch, time, ..)`.
        timespans: time since the sample before, in units of dt, `(batch, time)`; 0 in the padding.
        lengths: samples of each series, `(batch,)`.
    """

    x: Tensor
    y: Tensor
    timespans: Tensor | None = None
    lengths: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed."""
        return Batch(*(None if part is None else change(part) for part in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return self.each(lambda part: part.to(device))

    def floating(self, dtype: torch.dtype) -> Batch:
        """The same with numbers of this type; classes and lengths stay."""
        return self.each(lambda part: part.to(dtype) if part.is_floating_point() else part)

    @property
    def valid(self) -> Tensor | None:
        """Which samples are none of the padding, `(batch, time)`; None for all."""
        if self.lengths is None:
            return None
        return torch.arange(self.x.shape[1], device=self.x.device) < self.lengths.unsqueeze(-1)


class Series(Dataset):
    """Series padded to one length, indexed by a number, a slice or a vector of numbers, without the padding of all.

    Args:
        x: `(number, time, features)`, NaN where a value is missing; anything in the padding.
        y: targets, one of each series, or of each sample where `every`.
        timespans: time since the sample before, `(number, time)`; None where all are 1.
        lengths: samples of each series, `(number,)`; None where all have `time`.
        every: there is a target for each sample.

    Raises:
        InputError: shapes that do not fit.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        timespans: Tensor | None = None,
        lengths: Tensor | None = None,
        every: bool = False,
    ) -> None:
        expected = {"y": x.shape[: 1 + every], "timespans": x.shape[:2], "lengths": x.shape[:1]}
        for name, part in (("y", y), ("timespans", timespans), ("lengths", lengths)):
            if part is not None and part.shape[: len(expected[name])] != expected[name]:
                raise InputError(f"{name} has shape {tuple(part.shape)}, expected {tuple(expected[name])} to begin it")
        self.whole, self.every = Batch(x, y, timespans, lengths), every

    def __len__(self) -> int:
        return len(self.whole.x)

    def __getitem__(self, index: Index) -> Batch:
        x, y, timespans, lengths = self.whole
        if lengths is None:
            return self.whole.each(lambda part: part[index])
        lengths = lengths[index]
        # A batch is as long as its longest series; a network needs one sample at least. Padding beyond is not copied.
        longest = max(1, int(lengths.max())) if lengths.numel() else 1
        spans = None if timespans is None else timespans[:, :longest][index]
        return Batch(x[:, :longest][index], (y[:, :longest] if self.every else y)[index], spans, lengths)

    def parts(self, *parts: Tensor) -> tuple[Series, ...]:
        """One data set for each vector of numbers."""
        return tuple(Series(*self.whole.each(part_of), every=self.every) for part_of in map(_taken, parts))


def _taken(part: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda whole: whole[part]


def batch_of(data: Any, index: Index) -> Batch:
    """The samples of a data set, whether it gives pairs (x, y) or a `Batch`."""
    return Batch(*data[index])


def collated(pieces: Sequence[Any], y: Tensor, collator: Collator | None, irregular: bool) -> Series:
    """Series as recorded, `(times, values)` each, with their targets, padded, in double precision.

    Args:
        pieces: what a `Collator` takes.
        y: their targets.
        collator: how times become timespans; None where they are one step apart.
        irregular: whether there are timespans.
    """
    made = dataclasses.replace(collator or Collator(), dtype=torch.float64)(pieces)
    return Series(made.x, y, made.timespans if irregular else None, made.lengths)
