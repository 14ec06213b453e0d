"""Intervals cut into equal steps: as many for each sample as its own span asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.control import part
from solvers.base.values import concrete
from solvers.errors import InputError
from solvers.protocol import ControlPath, Time


@dataclass(frozen=True)
class Division:
    """What a loop steps over.

    Attributes:
        clock: the intervals, cut if samples need different numbers of steps, whole otherwise.
        paths: the input on each.
        substeps: equal steps in each.
        marks: number of intervals of this clock up to the end of each interval given.
    """

    clock: Clock
    paths: Sequence[ControlPath]
    substeps: int
    marks: Sequence[int]

    def owner(self, i: int) -> int:
        """The interval given that interval i of this clock is a part of."""
        return int(np.searchsorted(self.marks, i, side="right"))


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

    A sample that needs fewer steps than another in the same interval stands still in the steps left over.
    """
    if counts.size == 0 or bool((counts == counts.flat[0]).all()):
        each = int(counts.flat[0]) if counts.size else 1
        return Division(clock, paths, each, range(1, len(clock) + 1))
    steps: list[tuple[Time, Time]] = []
    inputs: list[ControlPath] = []
    marks: list[int] = []
    for j, (t, dt) in enumerate(zip(clock.starts, clock.spans, strict=True)):
        parts = _split(t, dt, counts[..., j])
        steps += parts
        inputs += [part(paths[j], k, len(parts)) for k in range(len(parts))]
        marks.append(len(steps))
    return Division(Clock(tuple(t for t, _ in steps), tuple(dt for _, dt in steps)), inputs, 1, marks)


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
        return Division(clock, paths, substeps, range(1, len(clock) + 1))
    first = clock.spans[0]
    if not isinstance(first, Tensor):
        spans = np.array(clock.spans, np.float64)
    elif not concrete(first):
        raise InputError("max_dt looks at the timespans, which cannot be done in a transformed or compiled function")
    else:
        stacked = torch.stack([torch.as_tensor(span) for span in clock.spans], -1).detach()
        spans = stacked.double().cpu().numpy()
        # One span per sample is (batch, 1), which broadcasts against a component of the state.
        spans = spans[..., 0, :] if spans.ndim > 1 else spans
    return divide(clock, paths, step_counts(spans, substeps, max_dt, precision, alike))


def _split(t: Time, dt: Time, counts: np.ndarray) -> list[tuple[Time, Time]]:
    """Starts and lengths of the steps of one interval, in which each sample takes its own number of equal ones."""
    most = int(counts.max())
    if int(counts.min()) == most:
        return [(t + i * (dt / most), dt / most) for i in range(most)]
    assert isinstance(dt, Tensor)
    number = torch.from_numpy(counts).to(dt).unsqueeze(-1)
    h = dt / number
    return [(t + h * number.clamp(max=i), torch.where(number > i, h, 0.0)) for i in range(most)]
