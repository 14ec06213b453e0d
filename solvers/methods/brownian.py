"""Brownian motion as a function: the same seed gives the same path, wherever and however often it is looked at.

A path is drawn by halving: W over a whole interval first, then over its halves given the whole, and so on. Each number
drawn is a hash of the seed and of the place it stands for, so nothing is stored and nothing depends on the order of
the questions: a finer step, a second pass and a backward pass see one path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchsde import BaseBrownian

from solvers.base.control import Paths
from solvers.methods.increments import FINEST, draw, normals, pieces, plan, scrambled
from solvers.protocol import ControlPath, Time

#: Pieces of a path that are remembered while it is in use.
KEPT = 3 * FINEST

#: Numbers that are drawn at once for steps to come.
AHEAD = 1 << 18


class Sheet:
    """The Brownian motions of the intervals of one solve, drawn for many steps at a time.

    Args:
        seed: chooses them.
        intervals: numbers of the intervals, one after the other.
    """

    def __init__(self, seed: int, intervals: range) -> None:
        self.seed, self.intervals = scrambled(seed), intervals
        self.known: tuple[Any, tuple[Tensor, Tensor | None]] | None = None

    def key(self, interval: int) -> int:
        """Names the motions of an interval."""
        return scrambled(self.seed + interval)

    def step(self, cut: Cut, like: Tensor, area: bool) -> tuple[Tensor, Tensor | None]:
        """W over a step and, with `area`, its integral, `(rows, columns)` like a tensor, in units of the step."""
        size = max(1, like.numel())
        steps = min(cut.n, max(1, AHEAD // size))
        first = cut.j - cut.j % steps
        # Of whole intervals, some that follow come along.
        count = max(1, AHEAD // (size * cut.n)) if (cut.first, cut.last) == (0.0, 1.0) else 1
        lowest = cut.interval - (cut.interval - self.intervals.start) % count
        intervals = range(lowest, min(lowest + count, self.intervals.stop))
        what = (intervals, cut.first, cut.last, cut.n, first, like.shape, like.dtype, like.device, area)
        known = self.known
        if known is None or known[0] != what:
            drawn = self.drawn(intervals, cut, range(first, min(first + steps, cut.n)), like, area)
            known = self.known = (what, drawn)
        w, u = known[1]
        place = cut.interval - lowest, cut.j - first
        return w[place], None if u is None else u[place]

    def drawn(self, intervals: range, cut: Cut, steps: range, like: Tensor, area: bool) -> tuple[Tensor, Tensor | None]:
        """The same for some of the steps of some intervals, `(intervals, steps, rows, columns)`."""
        chosen = plan(cut.first, cut.last, cut.n, steps.start, steps.stop)
        rows, columns = like.shape
        return draw([self.key(i) for i in intervals], chosen, rows, columns, area, like.dtype, like.device)


@dataclass(frozen=True)
class Cut:
    """Where a step lies: step j of n equal ones from `first` to `last` of an interval, in units of the interval."""

    interval: int
    first: float = 0.0
    last: float = 1.0
    j: int = 0
    n: int = 1


@dataclass(frozen=True)
class Noise:
    """Brownian motions on one interval, or on a part of it, one for each entry of a state; a name for them, no numbers.

    Attributes:
        key: which ones.
        first, last: the part, in units of the interval.
        sheet: those of the whole solve.
        cut: how the part came about.
    """

    key: int
    first: float = 0.0
    last: float = 1.0
    sheet: Sheet = field(kw_only=True, compare=False, repr=False)
    cut: Cut = field(kw_only=True, compare=False, repr=False)

    @classmethod
    def of(cls, seed: int, interval: int) -> Noise:
        """The motions on one interval of a solve, independent of those on its other intervals."""
        return cls.on(Sheet(seed, range(interval, interval + 1)), interval)

    @classmethod
    def on(cls, sheet: Sheet, interval: int) -> Noise:
        """The motions on one interval of a sheet."""
        return cls(sheet.key(interval), sheet=sheet, cut=Cut(interval))

    def at(self, fraction: float) -> float:
        """A place in the part, in units of the interval."""
        return self.last if fraction == 1 else self.first + (self.last - self.first) * fraction

    def part(self, j: int, n: int) -> Noise:
        """Part j of n equal ones."""
        cut = Cut(self.cut.interval, self.first, self.last, j, n)
        return Noise(self.key, self.at(j / n), self.at((j + 1) / n), sheet=self.sheet, cut=cut)

    def numbers(self, state: Tensor, area: bool) -> tuple[Tensor, Tensor | None]:
        """W over the part and, with `area`, its integral, in units of the part and in the shape of a state."""
        w, u = self.sheet.step(self.cut, rows_of(state), area)
        return w.view(state.shape), None if u is None else u.view(state.shape)


class Noises(Sequence[Noise]):
    """The noise of each interval of a solve."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet

    def __len__(self) -> int:
        return len(self.sheet.intervals)

    def __getitem__(self, i: Any) -> Any:
        intervals = self.sheet.intervals[i]
        if isinstance(intervals, range):
            return [Noise.on(self.sheet, k) for k in intervals]
        return Noise.on(self.sheet, intervals)


@dataclass(eq=False)
class Driven:
    """A control path with noise: what drives a stochastic equation during one interval, or one step of it."""

    path: ControlPath
    noise: Noise

    def __call__(self, t: Time) -> object:
        """u at a time."""
        return self.path(t)

    def part(self, j: int, n: int) -> Driven:
        """What drives step j of n equal ones."""
        return Driven(self.path, self.noise.part(j, n))

    def numbers(self, state: Tensor, area: bool) -> tuple[Tensor, Tensor | None]:
        """W over the step and, with `area`, its integral, in units of the step and in the shape of a state."""
        return self.noise.numbers(state, area)


@dataclass(eq=False)
class Drawn:
    """A control path with the numbers of its noise during one step, in units of the step.

    Attributes:
        path: the control path.
        w: W over the step, in the shape of a state.
    """

    path: ControlPath
    w: Tensor

    def __call__(self, t: Time) -> object:
        """u at a time."""
        return self.path(t)

    def numbers(self, state: Tensor, area: bool) -> tuple[Tensor, Tensor | None]:
        """The numbers."""
        return self.w, None

    @property
    def kind(self) -> DrawnKind:
        """What makes such paths."""
        return DrawnKind(getattr(self.path, "kind", type(self.path)))


@dataclass(eq=False)
class DrawnArea(Drawn):
    """The same with the integral of W - W(start) over the step."""

    u: Tensor

    def numbers(self, state: Tensor, area: bool) -> tuple[Tensor, Tensor | None]:
        """The numbers."""
        return self.w, self.u


@dataclass(frozen=True)
class DrawnKind:
    """Makes a path with numbers from those and the values of its control path, by names that begin with "path.".

    Attributes:
        kind: makes the control path.
    """

    kind: Any

    def __call__(self, **values: Any) -> Drawn:
        """The path of one step."""
        inner = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("path.")}
        numbers = {name: value for name, value in values.items() if not name.startswith("path.")}
        return (DrawnArea if "u" in numbers else Drawn)(self.kind(**inner), **numbers)


def rows_of(state: Tensor) -> Tensor:
    """A state as `(rows, columns)`, a row per sample."""
    return state.reshape(math.prod(state.shape[:-2]), state.shape[-2] * state.shape[-1])


def driven(paths: Sequence[ControlPath], seed: int) -> Paths:
    """The paths with the noise of a seed."""
    return Paths(Driven, path=paths, noise=Noises(Sheet(seed, range(len(paths)))))


class Brownian(BaseBrownian):  # type: ignore[misc]
    """Standard Brownian motions W(s), s from 0 to `length`, as torchsde asks for them: scaled from those of a `Noise`.

    W of row i and column j is a function of the noise, i, j and s alone: not of the number of rows, nor of the
    precision, the device or earlier questions.

    Args:
        noise: the motions.
        like: a tensor `(rows, columns)`.
        length: time that the noise is stretched over.
        area: torchsde will ask for integrals of W, too.
    """

    def __init__(self, noise: Noise, like: Tensor, length: int = 1, area: bool = False) -> None:
        self.noise, self.like, self.length, self.area = noise, like, length, area
        self.known: dict[tuple[int, int], _Piece] = {}
        self.top = _Piece(self)
        # Apple's devices have no float64.
        self.drawn_on = torch.device("cpu") if like.device.type == "mps" else like.device

    def __repr__(self) -> str:
        return f"Brownian({self.noise}, {tuple(self.shape)}, length={self.length})"

    @property
    def shape(self) -> torch.Size:
        """`(rows, columns)`."""
        return self.like.shape

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the answers."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Device of the answers."""
        return self.like.device

    @property
    def levy_area_approximation(self) -> str:
        """What torchsde calls knowing the integral of W."""
        return "space-time" if self.area else "none"

    def __call__(self, ta: Time, tb: Time | None = None, return_U: bool = False, return_A: bool = False) -> Any:
        """W(tb) - W(ta) and, with `return_U`, the integral of W - W(ta) from ta to tb."""
        a, b = (self.noise.at(float(s) / self.length) for s in (ta, ta if tb is None else tb))
        w, u = _over(self.top, a, b, return_U)
        stretch = self.length / (self.noise.last - self.noise.first)
        increment = (w * stretch**0.5).to(self.like)
        return (increment, (u * stretch**1.5).to(self.like)) if return_U else increment

    def normals(self, level: int, index: int, which: int) -> Tensor:
        """The normals that belong to one piece of the halving."""
        rows, columns = self.like.shape
        return normals(pieces([self.noise.key], level, [index]), which, rows, columns, self.drawn_on)[0, 0]


class _Piece:
    """W on the dyadic piece number `index` of 2^level: its increment w, and h, what its mean exceeds w / 2 by.

    The law of both halves given the whole: Foster, Lyons, Oberhauser, An optimal polynomial approximation of Brownian
    motion, SIAM J. Numer. Anal. 58 (2020), theorem 6.1 at the midpoint.
    """

    def __init__(self, motion: Brownian, level: int = 0, index: int = 0, parent: _Piece | None = None) -> None:
        self.motion, self.level, self.index, self.parent = motion, level, index, parent
        self.width = 2.0**-level
        self.start, self.end = index * self.width, (index + 1) * self.width

    def half(self, side: int) -> _Piece:
        """The left (0) or right (1) half."""
        place = self.level + 1, 2 * self.index + side
        known = self.motion.known
        piece = known.pop(place, None) or _Piece(self.motion, *place, self)
        # The last ones looked at are kept: the next question is near.
        known[place] = piece
        if len(known) > KEPT:
            del known[next(iter(known))]
        return piece

    @cached_property
    def first(self) -> Tensor:
        """The normals that tell the halves' increments apart."""
        return self.motion.normals(self.level, self.index, 0)

    @cached_property
    def second(self) -> Tensor:
        """The normals that tell the halves' means apart."""
        return self.motion.normals(self.level, self.index, 1)

    @cached_property
    def w(self) -> Tensor:
        """W at the end less W at the start."""
        up = self.parent
        if up is None:
            return self.motion.normals(0, 0, 2)
        excess = 1.5 * up.h + math.sqrt(up.width) / 4 * up.first
        return up.w / 2 - excess if self.index % 2 else up.w / 2 + excess

    @cached_property
    def h(self) -> Tensor:
        """The mean of W - W(start), less w / 2."""
        up = self.parent
        if up is None:
            return self.motion.normals(0, 0, 3) / math.sqrt(12)
        apart = math.sqrt(up.width / 48) * up.second
        both = up.h / 4 - math.sqrt(up.width) / 8 * up.first
        return both - apart if self.index % 2 else both + apart

    def inside(self, a: float, b: float) -> tuple[Tensor, Tensor]:
        """Increment and integral from a to b by the expected path: for the finest pieces."""
        x, y = (a - self.start) / self.width, (b - self.start) / self.width

        def path(s: float) -> Tensor:
            return s * self.w + 6 * s * (1 - s) * self.h

        def integral(s: float) -> Tensor:
            return s * s / 2 * self.w + s * s * (3 - 2 * s) * self.h

        return path(y) - path(x), self.width * (integral(y) - integral(x) - (y - x) * path(x))


def _over(piece: _Piece, a: float, b: float, area: bool) -> tuple[Tensor, Tensor]:
    """W(b) - W(a), and the integral of W - W(a) from a to b if it is asked for, for a and b in a piece."""
    if a <= piece.start and piece.end <= b:
        return piece.w, piece.width * (piece.w / 2 + piece.h) if area else piece.w
    if piece.level == FINEST:
        return piece.inside(a, b)
    middle = (piece.start + piece.end) / 2
    if b <= middle:
        return _over(piece.half(0), a, b, area)
    if a >= middle:
        return _over(piece.half(1), a, b, area)
    left, under_left = _over(piece.half(0), a, middle, area)
    right, under_right = _over(piece.half(1), middle, b, area)
    return left + right, under_left + under_right + (b - middle) * left
