"""The increments of Brownian paths over many steps at once: what `brownian` draws by halving, level by level.

Which halves are looked at for the ends of some steps does not depend on the path: a `Plan` says it for all samples,
channels and intervals.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Halvings after which a path is drawn no finer: 2^-24 of an interval.
FINEST = 24

#: Numbers that are made of tensors at once.
AT_ONCE = 1 << 20

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
    z = (z ^ (z >> 30 & 2**34 - 1)).mul_(_signed(_FIRST))
    z = (z ^ (z >> 27 & 2**37 - 1)).mul_(_signed(_SECOND))
    return z ^ (z >> 31 & 2**33 - 1)


def pieces(keys: Sequence[int], level: int, indices: Sequence[int]) -> Tensor:
    """What the numbers drawn for some of the 2^level pieces of some paths depend on, `(paths, pieces)`."""
    roots = torch.tensor([_signed(scrambled(scrambled(key) + level)) for key in keys])
    return _mixed(roots.unsqueeze(1) + torch.tensor(indices))


def normals(of: Tensor, which: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Standard normals in float64, `(paths, pieces, rows, columns)`.

    Entry (i, j) of a piece depends on the piece, i and j alone; `which` tells those of a piece apart.
    """
    key = _mixed(of + which).to(device)[..., None, None]
    row = _mixed(_mixed(torch.arange(rows, device=device).unsqueeze(-1)) ^ key)
    pair = _mixed(torch.arange((columns + 1) // 2, device=device) + 2**62)
    bits = _mixed(row + pair)
    # Box and Muller: the two halves of 64 bits make two normals, in neighbouring columns.
    first, second = ((half & 2**32 - 1).double().add_(0.5).mul_(2.0**-32) for half in (bits >> 32, bits))
    radius, angle = first.log_().mul_(-2).sqrt_(), second.mul_(2 * math.pi)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(-2)[..., :columns]


@dataclass(frozen=True)
class Level:
    """The pieces of one level that ends of steps lie in.

    Attributes:
        indices: their numbers among the 2^level pieces.
        parents: for each, the place of the piece it is a half of among those of the level above.
        right: for each, whether it is the right half.
        ends: places of the pieces at whose end a step ends, and the numbers of those ends.
        below: whether some of the ends lie inside of the pieces.
    """

    indices: np.ndarray
    parents: np.ndarray
    right: np.ndarray
    ends: tuple[np.ndarray, np.ndarray]
    below: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """What is looked at of a path for its values at some places.

    Attributes:
        points: the places, increasing, in units of the interval; 0 may be the first.
        levels: from the whole interval down.
        inside: of the places that lie within finest pieces: the pieces' places, the places' numbers, and how far within
            the piece each lies, from 0 to 1.
    """

    points: np.ndarray
    levels: tuple[Level, ...]
    inside: tuple[np.ndarray, np.ndarray, np.ndarray]


@functools.lru_cache(maxsize=64)
def plan(first: float, last: float, n: int, start: int, stop: int) -> Plan:
    """For the ends of steps `start` to `stop` - 1 of `n` equal ones from `first` to `last`."""
    points = first + (last - first) * (np.arange(start, stop + 1) / n)
    if stop == n:
        points[-1] = last
    numbers = np.flatnonzero(points > 0)
    levels, above = [], np.zeros(1, np.int64)
    for level in range(FINEST + 1):
        # The piece that a place lies in or ends.
        scaled = points[numbers] * 2.0**level
        own = np.ceil(scaled).astype(np.int64) - 1
        indices, where = np.unique(own, return_inverse=True)
        parents = np.searchsorted(above, indices >> 1)
        done = scaled == own + 1
        left = bool((~done).any())
        levels.append(Level(indices, parents, indices % 2 == 1, (where[done], numbers[done]), left))
        numbers, scaled, where, above = numbers[~done], scaled[~done], where[~done], indices
        if not left:
            break
    return Plan(points, tuple(levels), (where, numbers, scaled - np.floor(scaled)))


#: What draws in the stead of the tensors below, and gives None where it cannot: the room of the compiled loop puts one
#: here, which this one does not know.
FASTER: list[Callable[..., tuple[Tensor, Tensor | None] | None]] = []


def draw(
    keys: Sequence[int], chosen: Plan, rows: int, columns: int, area: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """W over each step, and with `area` the integral of W - W(start) over it, in units of the step.

    Args:
        keys: of the paths.
        chosen: the ends of the steps.
        rows, columns: of each path.
        area: the integrals are wanted too.
        dtype, device: of the results.

    Returns:
        `(paths, steps, rows, columns)` each.
    """
    for faster in FASTER:
        drawn = faster(keys, chosen, rows, columns, area, dtype, device)
        if drawn is not None:
            return drawn
    # Apple's devices have no float64.
    drawn_on = torch.device("cpu") if device.type == "mps" else device
    lengths = torch.as_tensor(np.diff(chosen.points), device=drawn_on).view(-1, 1, 1)
    # Some paths at a time: what is needed on the way is many times as large as the result.
    count = max(1, AT_ONCE // max(1, len(chosen.points) * rows * columns))
    parts = []
    for first in range(0, len(keys), count):
        w, u = _drawn(keys[first : first + count], chosen, rows, columns, area, drawn_on)
        scaled = [w / lengths.sqrt()] if u is None else [w / lengths.sqrt(), u / lengths**1.5]
        parts.append([x.to(device, dtype) for x in scaled])
    results = [torch.cat(each) for each in zip(*parts, strict=True)]
    return results[0], results[1] if area else None


def _drawn(
    keys: Sequence[int], chosen: Plan, rows: int, columns: int, area: bool, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    shape = (len(keys), len(chosen.points), rows, columns)
    values = torch.zeros(shape, dtype=torch.float64, device=device)
    integrals = torch.zeros_like(values) if area else None
    walk = _Walk(keys, rows, columns, area, device)
    for number, level in enumerate(chosen.levels):
        walk.down(number, level)
        places, ends = level.ends
        values[:, ends], at_end = walk.end(places)
        if integrals is not None and at_end is not None:
            integrals[:, ends] = at_end
    places, ends, fractions = chosen.inside
    if len(places):
        values[:, ends], within = walk.inside(places, fractions)
        if integrals is not None and within is not None:
            integrals[:, ends] = within
    w = values.diff(dim=1)
    if integrals is None:
        return w, None
    lengths = torch.as_tensor(np.diff(chosen.points), device=device).view(-1, 1, 1)
    return w, integrals.diff(dim=1) - lengths * values[:, :-1]


class _Walk:
    """From level to level: of each piece W at its start, the integral of W up to there, its w and its h.

    The increment of a piece is w, and its mean exceeds w / 2 by h. The law of both halves given the whole: Foster,
    Lyons, Oberhauser, An optimal polynomial approximation of Brownian motion, SIAM J. Numer. Anal. 58 (2020), theorem
    6.1 at the midpoint.
    """

    def __init__(self, keys: Sequence[int], rows: int, columns: int, area: bool, device: torch.device) -> None:
        self.keys, self.rows, self.columns, self.area, self.device = keys, rows, columns, area, device
        self.width = 1.0
        self.w: Tensor
        self.h: Tensor
        self.before: Tensor
        self.under: Tensor
        self.pieces: Tensor

    def drawn(self, of: Tensor, which: int) -> Tensor:
        """Normals of some pieces."""
        return normals(of, which, self.rows, self.columns, self.device)

    def down(self, number: int, level: Level) -> None:
        """To the pieces of a level."""
        own = pieces(self.keys, number, level.indices.tolist())
        deeper = level.below or self.area
        if not number:
            self.w = self.drawn(own, 2)
            self.h = self.drawn(own, 3) / math.sqrt(12) if deeper else self.w
            self.before = self.under = torch.zeros_like(self.w)
            self.pieces = own
            return
        at = torch.as_tensor(level.parents)
        right = torch.as_tensor(level.right).view(-1, 1, 1).to(self.device)
        sign = torch.where(right, -1.0, 1.0).double()
        whole, h = self.w[:, at], self.h[:, at]
        first = self.drawn(self.pieces, 0)[:, at]
        excess = 1.5 * h + math.sqrt(self.width) / 4 * first
        self.w = whole / 2 + sign * excess
        before, under, half = self.before[:, at], self.under[:, at], self.width / 2
        left = whole / 2 + excess
        if deeper:
            both = h / 4 - math.sqrt(self.width) / 8 * first
            apart = math.sqrt(self.width / 48) * self.drawn(self.pieces, 1)[:, at]
            self.h = both + sign * apart
            self.under = torch.where(right, under + half * (before + left / 2 + both + apart), under)
        self.before = torch.where(right, before + left, before)
        self.pieces, self.width = own, half

    def end(self, places: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """W and its integral at the ends of some pieces."""
        at = torch.as_tensor(places)
        before, w = self.before[:, at], self.w[:, at]
        if not self.area:
            return before + w, None
        return before + w, self.under[:, at] + self.width * (before + w / 2 + self.h[:, at])

    def inside(self, places: np.ndarray, fractions: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """The same within finest pieces, where the path is taken to be the one to be expected."""
        at, s = torch.as_tensor(places), torch.as_tensor(fractions, device=self.device).view(-1, 1, 1)
        before, w, h = self.before[:, at], self.w[:, at], self.h[:, at]
        value = before + s * w + 6 * s * (1 - s) * h
        if not self.area:
            return value, None
        return value, self.under[:, at] + self.width * (s * before + s * s / 2 * w + s * s * (3 - 2 * s) * h)
