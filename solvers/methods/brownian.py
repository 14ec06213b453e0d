"""Brownian motion as a function: the same seed gives the same path, wherever and however often it is looked at.

A path is drawn by halving: W over a whole interval first, then over its halves given the whole, and so on. Each number
drawn is a hash of the seed and of the place it stands for, so nothing is stored and nothing depends on the order of
the questions: a finer step, a second pass and a backward pass see one path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchsde import BaseBrownian

from solvers.protocol import ControlPath, Time

#: Halvings after which a path is drawn no finer: 2^-24 of an interval.
FINEST = 24

#: Pieces of a path that are remembered while it is in use.
KEPT = 3 * FINEST

#: Sebastiano Vigna's splitmix64: increment, and the multipliers of its output function.
_STRIDE, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def scrambled(z: int) -> int:
    """A 64-bit hash."""
    z = (z + _STRIDE) % 2**64
    z = (z ^ z >> 30) * _FIRST % 2**64
    z = (z ^ z >> 27) * _SECOND % 2**64
    return z ^ z >> 31


def _signed(z: int) -> int:
    return z - 2**64 if z >= 2**63 else z


def _mixed(z: Tensor) -> Tensor:
    """The same hash of every entry, int64 standing for 64 bits."""
    z = z + _signed(_STRIDE)
    z = (z ^ (z >> 30 & 2**34 - 1)) * _signed(_FIRST)
    z = (z ^ (z >> 27 & 2**37 - 1)) * _signed(_SECOND)
    return z ^ (z >> 31 & 2**33 - 1)


def _normals(key: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Standard normals in float64; entry (i, j) depends on the key, i and j alone."""
    row = _mixed(_mixed(torch.arange(rows, device=device).unsqueeze(-1)) ^ _signed(key))
    pair = _mixed(torch.arange((columns + 1) // 2, device=device) + 2**62)
    bits = _mixed(row + pair)
    # Box and Muller: the two halves of 64 bits make two normals, in neighbouring columns.
    first, second = ((half & 2**32 - 1).double().add_(0.5).mul_(2.0**-32) for half in (bits >> 32, bits))
    radius, angle = first.log_().mul_(-2).sqrt_(), second.mul_(2 * math.pi)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(-2)[:, :columns]


@dataclass(frozen=True)
class Noise:
    """Brownian motions on one interval, or on a part of it, one for each entry of a state; a name for them, no numbers.

    Attributes:
        key: which ones.
        first, last: the part, in units of the interval.
    """

    key: int
    first: float = 0.0
    last: float = 1.0

    @classmethod
    def of(cls, seed: int, interval: int) -> Noise:
        """The motions on one interval of a solve, independent of those on its other intervals."""
        return cls(scrambled(scrambled(seed) + interval))

    def at(self, fraction: float) -> float:
        """A place in the part, in units of the interval."""
        return self.last if fraction == 1 else self.first + (self.last - self.first) * fraction

    def part(self, j: int, n: int) -> Noise:
        """Part j of n equal ones."""
        return Noise(self.key, self.at(j / n), self.at((j + 1) / n))


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
        key = scrambled(scrambled(scrambled(self.noise.key) + level) + index) + which
        rows, columns = self.like.shape
        return _normals(scrambled(key), rows, columns, self.drawn_on)


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
