"""Truncated backpropagation through time: the error of a sample goes back through some intervals and no further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from solvers.base.gradient import GRADIENTS
from solvers.base.loop import Loop
from solvers.base.segments import Cut, Window
from solvers.errors import InputError
from solvers.gradients.local import Error, Local, Piece, added, some


@dataclass(frozen=True)
class Truncated(Local):
    """Truncated backpropagation through time, BPTT(h; h') with h = `steps`, h' = `every`: errors go back h intervals.

    With x_i the state after interval i, L the loss as a function of all states, and every = 1, it is

        dL/dtheta = sum_t dL/dx_t sum_{t - steps < i <= t} dx_t/dx_i d+x_i/dtheta,

    where d+ is the derivative of interval i alone: each error in full, through the last `steps` intervals, its own
    among them, and what lies further back is left out. From `steps` as large as the number of intervals on it is the
    gradient of backprop, to rounding.

    With every > 1 the errors of so many samples, counted from the first, go back together, `steps` intervals from the
    last of them: an error then takes between `steps` - `every` + 1 and `steps`, for 1/every of the work. With every =
    steps that is the usual detaching of the state every so many samples, where their number is a multiple of it.

    An interval is that of a sample, whatever its substeps; where timespans are cut by `max_dt` into differing numbers
    of steps it is one such step. Each layer of a network truncates by itself, so that over n layers an error may go
    back n times as far. An error that is zero costs nothing, so that a loss on the last state costs the last `steps`
    intervals. It is the derivative of no function, and cannot be differentiated again.

    Attributes:
        steps: intervals that an error goes back through, at least 1.
        every: samples whose errors go back together, from 1 to `steps`.

    Source: Williams & Peng, An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
    Trajectories, Neural Computation 2 (1990).
    """

    steps: int = 32
    every: int = 1

    compilable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("steps", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} of gradient 'truncated' is {value!r}, expected a positive integer")
        if self.every > self.steps:
            raise InputError(
                f"every of gradient 'truncated' is {self.every}, expected at most its steps, {self.steps}: the errors "
                "between would reach no interval"
            )

    def windows(self, total: int) -> list[tuple[int, int, int]]:
        """Of `total` intervals: the first through which errors go back, the first that has one, the end, each time."""
        ends = [min(own + self.every, total) for own in range(0, total, self.every)]
        return [(max(0, end - self.steps), k * self.every, end) for k, end in enumerate(ends)]

    def received(self, pieces: Sequence[Piece], errors: Sequence[Error], lead: int) -> Sequence[Error]:
        """The sum of the errors that are on their way back through an interval."""
        begins = [begin for begin, own, end in self.windows(len(pieces)) for _ in range(own, end)]
        found: list[Error] = []
        # By the interval where it ends: those that end at the start of all are one.
        moving: dict[int, Error] = {}
        for i in reversed(range(len(pieces))):
            if some(errors[i]):
                moving[begins[i]] = added(moving.get(begins[i]), errors[i])
            total: Error | None = None
            for error in moving.values():
                total = added(total, error)
            found.append(total or (None,) * len(errors[i]))
            moving = {begin: pieces[i].pulled(error) for begin, error in moving.items() if begin < i}
        return found[::-1]

    def cut(self, loop: Loop, carried: Any, fitting: int) -> Cut | None:
        """The windows, for a kernel; None where the first one goes back to the start from the end of all."""
        windows = self.windows(len(loop))
        if not windows or windows[-1][0] == 0:
            return None
        sub = loop.substeps
        edges = sorted({edge * sub for window in windows for edge in window})
        first = sorted({begin * sub for begin, _, _ in windows})
        return Cut(edges, first, tuple(Window(*(edge * sub for edge in window)) for window in windows))


GRADIENTS.add("truncated", Truncated("truncated"))
