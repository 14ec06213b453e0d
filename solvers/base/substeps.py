"""Intervals cut into equal steps: as many for each sample as its own span asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.control import part
from solvers.base.gathered import NotGathered, gathered, gathered_paths
from solvers.base.series import Series
from solvers.base.values import concrete, followed, host, working
from solvers.errors import InputError
from solvers.protocol import ControlPath, Time


@dataclass(frozen=True)
class Division:
    """What a loop steps over.

    Attributes:
        clock: the steps if samples or intervals need different numbers of them, the intervals otherwise.
        paths: the input on each.
        substeps: equal steps in each.
        marks: number of entries of this clock up to the end of each interval given, `(intervals,)`, or
            `(batch, intervals)` where each sample goes through a list of its own; None where they are the intervals.
    """

    clock: Clock
    paths: Sequence[ControlPath]
    substeps: int
    marks: np.ndarray | None = None

    def owner(self, i: int, sample: int | None = None) -> int:
        """The interval given that entry i of this clock is a part of, for a sample."""
        if self.marks is None:
            return i
        marks = self.marks if self.marks.ndim == 1 else self.marks[sample or 0]
        return min(int(np.searchsorted(marks, i, side="right")), len(marks) - 1)

    def ends(self, values: Tensor) -> Tensor:
        """Of values after each entry of this clock, `(batch, entries, ...)`, those at the ends of the intervals."""
        if self.marks is None:
            return values
        last = torch.from_numpy(self.marks - 1).to(values.device)
        return values.index_select(1, last) if last.dim() == 1 else gathered(values, last)


def step_counts(
    spans: np.ndarray, substeps: int, longest: float | None, precision: torch.dtype, alike: bool = False
) -> np.ndarray:
    """The fewest equal steps in each span: at least `substeps`, and no step longer than `longest`.

    Alike: as many for each sample of a batch as any of them needs.
    """
    counts = np.full(spans.shape, substeps, np.int64)
    if longest is None:
        return counts
    # 1.1 / 0.1 is a little more than 11: what is rounding asks for no further step.
    needed = np.ceil(np.abs(spans) / longest * (1 - 16 * torch.finfo(precision).eps))
    counts = np.maximum(counts, needed.astype(np.int64))
    if alike and counts.size:
        counts = np.broadcast_to(counts.max(axis=tuple(range(counts.ndim - 1)), keepdims=True), counts.shape)
    return counts


def divide(clock: Clock, paths: Sequence[ControlPath], counts: np.ndarray) -> Division:
    """Cut each interval into its own number of steps, `(intervals,)` or `(batch, intervals)`.

    Where these differ in a batch each sample goes through its own list of steps, and stands still at the end of it.
    """
    if counts.size == 0 or bool((counts == counts.flat[0]).all()):
        return Division(clock, paths, int(counts.flat[0]) if counts.size else 1)
    if counts.ndim > 1 and not bool((counts == counts[:1]).all()):
        try:
            return _listed(clock, paths, counts)
        except NotGathered:
            # All samples go through each interval together, and those that need fewer steps stand still there.
            return _together(clock, paths, counts)
    return _together(clock, paths, counts if counts.ndim == 1 else counts[0])


def bounded(
    clock: Clock,
    paths: Sequence[ControlPath],
    substeps: int,
    max_dt: float | None,
    precision: torch.dtype,
    alike: bool = False,
) -> Division:
    """At least `substeps` in each interval, and no step of any sample longer than `max_dt`, up to rounding."""
    if max_dt is None or not len(clock):
        return Division(clock, paths, substeps)
    first = clock.spans[0]
    if not isinstance(first, Tensor):
        spans = np.array(clock.spans, np.float64)
    elif not concrete(first):
        raise InputError("max_dt looks at the timespans, which cannot be done in a transformed or compiled function")
    else:
        stacked = _stacked(clock.spans).detach().double().cpu().numpy()
        # One span per sample is (batch, 1), which broadcasts against a component of the state.
        spans = stacked[..., 0] if stacked.ndim > 1 else stacked
    counts = step_counts(spans, substeps, max_dt, precision, alike)
    return divide(clock, paths, counts)


def _stacked(times: Sequence[Time], like: Tensor | None = None) -> Tensor:
    """Times of all intervals, `(intervals,)` or `(batch, intervals, 1)`; all of the shape of one, if it is given."""
    if isinstance(times, Series):
        return times.whole
    whole = [torch.as_tensor(time, device=None if like is None else like.device) for time in times]
    if like is not None:
        whole = [time.expand(like.shape) for time in whole]
    return torch.stack(whole, min(1, whole[0].dim()))


def _together(clock: Clock, paths: Sequence[ControlPath], counts: np.ndarray) -> Division:
    """Interval by interval, in as many steps as any sample needs."""
    steps: list[tuple[Time, Time]] = []
    inputs: list[ControlPath] = []
    marks: list[int] = []
    for j, (t, dt) in enumerate(zip(clock.starts, clock.spans, strict=True)):
        parts = _split(t, dt, counts[..., j])
        steps += parts
        inputs += [part(paths[j], k, len(parts)) for k in range(len(parts))]
        marks.append(len(steps))
    return Division(Clock(tuple(t for t, _ in steps), tuple(dt for _, dt in steps)), inputs, 1, np.array(marks))


def _split(t: Time, dt: Time, counts: np.ndarray) -> list[tuple[Time, Time]]:
    """Starts and lengths of the steps of one interval, in which each sample takes its own number of equal ones."""
    most = int(counts.max())
    if int(counts.min()) == most:
        return [(t + i * (dt / most), dt / most) for i in range(most)]
    assert isinstance(dt, Tensor)
    number = torch.from_numpy(counts).to(dt).unsqueeze(-1)
    h = dt / number
    return [(t + h * number.clamp(max=i), torch.where(number > i, h, 0.0)) for i in range(most)]


def _listed(clock: Clock, paths: Sequence[ControlPath], counts: np.ndarray) -> Division:
    """Each sample through its own steps, one after the other: no more of them than the sample with the most has.

    Raises:
        NotGathered: the paths know no single samples.
    """
    first = clock.spans[0]
    assert isinstance(first, Tensor)
    starts, spans = (_stacked(times, first) for times in (clock.starts, clock.spans))
    if not followed(spans):
        # Nothing happens in an empty interval, unless it be asked what would with a little more time. Of the first one
        # a step is left, so that each has a state at its end.
        counts = np.where(host(spans[..., 0] == 0), 0, counts)
        counts[:, 0] = np.maximum(counts[:, 0], 1)
    marks = counts.cumsum(1)
    most, (batch, intervals) = int(marks[:, -1].max()), counts.shape
    owner = np.full((batch, most), intervals - 1)
    owner[np.arange(most) < marks[:, -1:]] = np.repeat(np.tile(np.arange(intervals), batch), counts.ravel())
    number = np.arange(most) - np.take_along_axis(marks - counts, owner, 1)
    index = torch.from_numpy(owner).to(spans.device)
    # As integers: half precision has none beyond some hundred.
    place, each = (
        torch.from_numpy(x).to(spans.device).unsqueeze(-1) for x in (number, np.take_along_axis(counts, owner, 1))
    )
    h = gathered(spans, index).to(working(spans.dtype)) / each.clamp(min=1)
    t = gathered(starts, index) + h * torch.minimum(place, each)
    steps = Clock(Series(t), Series(torch.where(place < each, h, 0.0).to(spans.dtype)))
    return Division(steps, gathered_paths(paths, index), 1, marks)
