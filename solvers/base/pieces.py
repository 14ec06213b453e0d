"""Pieces: what the input is on one interval, and how fast it changes there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.protocol import Time


@dataclass(eq=False)
class Held:
    """u(t) = value."""

    value: Tensor

    def __call__(self, t: Time) -> Tensor:
        """The value, at any time."""
        return self.value


@dataclass(eq=False)
class Ramp:
    """u(t) = first + (t - start) / span (last - first); `last` where the span is zero."""

    start: Time
    span: Time
    first: Tensor
    last: Tensor

    def __call__(self, t: Time) -> Tensor:
        """The point of the ramp at time t."""
        return self.first + fraction(t, self.start, self.span, self.last) * (self.last - self.first)


@dataclass(eq=False)
class Cubic:
    """The cubic through `first` and `last` that leaves with `slope` and arrives with the slope of the chord.

        u(s) = first + slope s + (chord - slope) (2 s^2 - s^3),    s = (t - start) / span,  chord = last - first

    Slopes are per interval, du/ds. Where the span is zero, u is `last`.
    """

    start: Time
    span: Time
    first: Tensor
    last: Tensor
    slope: Tensor

    def __call__(self, t: Time) -> Tensor:
        """The point of the cubic at time t."""
        s, chord = fraction(t, self.start, self.span, self.last), self.last - self.first
        return self.first + s * self.slope + s * s * (2 - s) * (chord - self.slope)


def fraction(t: Time, start: Time, span: Time, like: Tensor) -> Time:
    """How much of an interval is over at time t; all of it where the interval is empty.

    The difference is taken in the precision of the clock, and then rounded to that of a sample like this.
    """
    if isinstance(span, Tensor):
        empty = span == 0
        over: Time = torch.where(empty, 1.0, (t - start) / torch.where(empty, 1.0, span))
    else:
        over = (t - start) / span if span else 1.0
    if not isinstance(over, Tensor) or not like.is_floating_point():
        return over
    return over.to(like.dtype)


@dataclass(eq=False)
class Arc:
    """The cubic from `first` to `last` with second derivatives `bend` and `bend_last` in time at its ends.

        u(s) = first + s (last - first) - h^2 / 6 s (1 - s) ((2 - s) bend + (1 + s) bend_last)

    s = (t - start) / span and h = span. Where the span is zero, u is `last`.
    """

    start: Time
    span: Time
    first: Tensor
    last: Tensor
    bend: Tensor
    bend_last: Tensor

    def __call__(self, t: Time) -> Tensor:
        """The point of the cubic at time t."""
        s = fraction(t, self.start, self.span, self.last)
        bent = (2 - s) * self.bend + (1 + s) * self.bend_last
        return self.first + s * (self.last - self.first) - self.span * self.span / 6 * (s * (1 - s)) * bent


@dataclass(eq=False)
class Parabola:
    """v(t) = first + s (linear + s square), s = (t - start) / span: how fast a cubic changes."""

    start: Time
    span: Time
    first: Tensor
    linear: Tensor
    square: Tensor

    def __call__(self, t: Time) -> Tensor:
        """The point of the parabola at time t."""
        s = fraction(t, self.start, self.span, self.first)
        return self.first + s * (self.linear + s * self.square)


@dataclass(eq=False)
class Lagging:
    """v(t) = value, but `before` at the start of the interval: the derivative there of what ended there."""

    start: Time
    before: Tensor
    value: Tensor

    def __call__(self, t: Time) -> Tensor:
        """The value at time t."""
        at_start = t == self.start
        if isinstance(at_start, Tensor):
            return torch.where(at_start, self.before, self.value)
        return self.before if at_start else self.value
