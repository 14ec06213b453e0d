"""The noise of a loop as an input of its steps: numbers that are drawn for all of them before the first is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.control import Paths
from solvers.base.loop import Loop
from solvers.base.series import Series
from solvers.compiled.step.columns import columns_of, kind_of
from solvers.methods.brownian import Cut, DrawnKind, Driven, Noise, Noises, rows_of
from solvers.methods.stochastic import Stochastic


def with_noise(loop: Loop, state: Tensor) -> Loop:
    """The loop with its noise as numbers; an interval of several steps, of which each has its own, as so many.

    Raises:
        Refused: the control paths cannot be told by their values.
    """
    if not isinstance(loop.solver, Stochastic) or loop.solver.adaptive:
        return loop
    n, paths = loop.substeps, loop.paths
    if isinstance(paths, Paths) and paths.kind is Driven:
        inner: Sequence[Any] = paths.columns["path"]
        noise: Sequence[Noise] = paths.columns["noise"]
    else:
        driven = [path for path in paths if isinstance(path, Driven)]
        inner, noise = [path.path for path in driven], [path.noise for path in driven]
        if len(driven) < len(paths):
            return loop
    if not len(loop):
        return loop
    numbers = _numbers(noise, n, state.detach(), loop.solver.area)
    columns = {f"path.{name}": _repeated(column, n) for name, column in columns_of(inner).items()}
    made = Paths(DrawnKind(kind_of(inner)), **columns, **dict(zip(("w", "u"), numbers, strict=False)))
    return dataclasses.replace(loop, paths=made, clock=_divided(loop.clock, n), substeps=1)


def _numbers(noise: Sequence[Noise], n: int, state: Tensor, area: bool) -> list[Series]:
    """W over every step and, with `area`, its integral."""
    if isinstance(noise, Noises):
        sheet = noise.sheet
        drawn = sheet.drawn(sheet.intervals, Cut(0, n=n), range(n), rows_of(state), area)
        wholes = [x.view(-1, *state.shape) for x in drawn if x is not None]
    else:
        steps = [piece.part(j, n).numbers(state, area) for piece in noise for j in range(n)]
        wholes = [
            torch.stack([x for x in each if x is not None]) for each in zip(*steps, strict=True) if each[0] is not None
        ]
    return [Series(whole.transpose(0, 1)) for whole in wholes]


def _repeated(column: Sequence[Any], n: int) -> Sequence[Any]:
    """Each value n times."""
    if n == 1:
        return column
    if isinstance(column, Series):
        return Series(column.whole.repeat_interleave(n, 1))
    return [value for value in column for _ in range(n)]


def _divided(clock: Clock, n: int) -> Clock:
    """Each interval as n equal ones."""
    if n == 1:
        return clock
    # One tensor for all intervals stays one.
    shares = {id(span): span / n for span in clock.spans}
    pairs = list(zip(clock.starts, clock.spans, strict=True))
    starts = tuple(t + j * shares[id(span)] if j else t for t, span in pairs for j in range(n))
    return Clock(starts, tuple(shares[id(span)] for _, span in pairs for _ in range(n)))
