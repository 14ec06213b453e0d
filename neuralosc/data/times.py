"""Times as people have them, and the gaps between them: exact until they are divided by a unit."""

from __future__ import annotations

import dataclasses
import datetime
import math
import numbers
import re
import reprlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.base.clock import RESOLUTION
from solvers.errors import InputError

#: Seconds in one unit of NumPy's dates.
SECONDS = {
    "W": 604800.0, "D": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0,
    "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "ps": 1e-12, "fs": 1e-15, "as": 1e-18,
}  # fmt: skip

#: The same by what people write.
WORDS = {
    "w": 604800.0, "week": 604800.0, "weeks": 604800.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0,
    "h": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "ms": 1e-3, "us": 1e-6, "ns": 1e-9,
}  # fmt: skip


@dataclass(frozen=True)
class Times:
    """The times of one series.

    Attributes:
        ticks: int64 or float64, `(samples,)`.
        tick: seconds in one of them, or None where times are numbers without a unit.
        eps: how finely such numbers were known, relative to themselves; 0 for double precision and integers.
        kind: the type of dates or durations in NumPy; None of numbers.
    """

    ticks: np.ndarray
    tick: float | None
    eps: float = 0.0
    kind: np.dtype[Any] | None = None

    def __len__(self) -> int:
        return len(self.ticks)

    def __getitem__(self, places: Any) -> Times:
        return dataclasses.replace(self, ticks=self.ticks[places])

    def gaps(self) -> np.ndarray:
        """Ticks from each sample to the next, exact for integers and dates, float64."""
        return np.diff(self.ticks).astype(np.float64)

    @property
    def what(self) -> str:
        """What they are, in a word."""
        return "numbers" if self.kind is None else "dates" if self.kind.kind == "M" else "durations"

    def alike(self, others: Times, name: str) -> tuple[Times, Times]:
        """Others and these in ticks of one size, exactly: the differences between them are had from those.

        Args:
            others: further times, called `name` in messages.

        Raises:
            InputError: they are of another kind: dates, durations or numbers; or too far from each other for both.
        """
        if self.what != others.what:
            raise InputError(f"{name} are {others.what}, and the times of the samples {self.what}: give the same kind")
        if self.kind is None or others.kind is None or self.kind == others.kind:
            return others, self
        common = np.promote_types(self.kind, others.kind)
        size = SECONDS[np.datetime_data(common)[0]] * np.datetime_data(common)[1]
        both = []
        for times, kind in ((others, others.kind), (self, self.kind)):
            values = times.ticks.view(kind)
            finer = values.astype(common)
            if not np.array_equal(finer.astype(kind), values):
                raise InputError(
                    f"{name} and the times of the samples have no common unit in 64 bits: give one of both"
                )
            both.append(Times(finer.view(np.int64), size, kind=common))
        return both[0], both[1]


def read(times: Any, name: str) -> Times:
    """Times of any kind.

    Args:
        times: numbers, dates or durations: a sequence, an array of NumPy, a tensor, or an index or column of pandas.
        name: what they are called in messages.

    Raises:
        InputError: they are none, not one-dimensional, or not finite.
    """
    values, eps = _array(times, name)
    if values.ndim != 1:
        raise InputError(f"{name} have shape {values.shape}, expected (samples,)")
    if values.dtype.kind in "mM":
        return _dates(values, name)
    if not len(values):
        # An empty list says nothing of what its entries would be.
        return Times(np.zeros(0), None)
    if values.dtype.kind in "iu":
        if values.dtype == np.uint64 and values.max() > np.iinfo(np.int64).max:
            raise InputError(f"{name} hold {values.max()}, expected integers below 2^63")
        return Times(values.astype(np.int64), None)
    if values.dtype.kind != "f":
        first = reprlib.repr(values[0]) if len(values) else values.dtype
        raise InputError(f"{name} hold {first}, expected numbers, dates or durations: use pandas.to_datetime for text")
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        place = int(np.flatnonzero(~np.isfinite(exact))[0])
        raise InputError(f"{name} hold {exact[place]} at row {place}, expected finite times: leave such rows out")
    return Times(exact, None, eps)


def _array(times: Any, name: str) -> tuple[np.ndarray, float]:
    """Times as an array of NumPy, and how finely numbers of less than double precision are known."""
    eps = 0.0
    if isinstance(times, Tensor):
        times = times.detach().cpu()
        if times.is_floating_point():
            # NumPy has no bfloat16.
            times, eps = times.double(), torch.finfo(times.dtype).eps if times.element_size() < 8 else 0.0
    if getattr(getattr(times, "dtype", None), "tz", None) is not None:
        # Dates of pandas with a time zone, an index or a column.
        of = times.dt if hasattr(times, "dt") else times
        times = of.tz_convert("UTC")
        times = (times.dt if hasattr(times, "dt") else times).tz_localize(None)
    try:
        values: np.ndarray = np.asarray(times)
    except ValueError:
        raise InputError(f"{name} are {reprlib.repr(times)}, expected (samples,) numbers, dates or durations") from None
    if values.dtype == object and len(values) and values.ndim == 1:
        values = _objects(values, name)
    if values.dtype.kind == "f" and values.dtype.itemsize < 8:
        eps = float(np.finfo(values.dtype).eps)
    return values, eps


def _objects(values: np.ndarray, name: str) -> np.ndarray:
    """Dates and durations of Python, and of pandas in a list."""
    if all(isinstance(value, datetime.datetime | np.datetime64) for value in values):
        if any(getattr(value, "tzinfo", None) is not None for value in values):
            if not all(getattr(value, "tzinfo", None) is not None for value in values):
                raise InputError(f"{name} hold dates with and without a time zone, expected one kind")
            utc = datetime.timezone.utc
            return np.array([value.astimezone(utc).replace(tzinfo=None) for value in values], "M8[us]")
        return np.array(list(values), "M8[us]" if not hasattr(values[0], "nanosecond") else "M8[ns]")
    if all(isinstance(value, datetime.date) for value in values):
        return np.array(list(values), "M8[D]")
    if all(isinstance(value, datetime.timedelta | np.timedelta64) for value in values):
        return np.array(list(values), "m8[us]" if not hasattr(values[0], "nanoseconds") else "m8[ns]")
    raise InputError(
        f"{name} hold {reprlib.repr(values[0])}, expected numbers, dates or durations: use pandas.to_datetime for text"
    )


def _dates(values: np.ndarray, name: str) -> Times:
    """Dates and durations of NumPy, in whatever unit."""
    if np.isnat(values).any():
        raise InputError(f"{name} hold NaT at row {int(np.flatnonzero(np.isnat(values))[0])}: leave such rows out")
    kind, (unit, count) = values.dtype.kind, np.datetime_data(values.dtype)
    if unit == "generic":
        raise InputError(f"{name} are durations without a unit, expected one: use astype('m8[s]'), say")
    if unit in ("Y", "M"):
        if kind == "m":
            raise InputError(f"{name} are durations in {unit}, which are of no one length: use days, 'm8[D]'")
        values, unit, count = values.astype("M8[D]"), "D", 1
    return Times(values.view(np.int64).astype(np.int64), SECONDS[unit] * count, kind=values.dtype)


@dataclass(frozen=True)
class Unit:
    """The time that one step of a network stands for.

    Attributes:
        size: how long it is, in seconds if it is `timed`, else in the numbers that times are given as.
        timed: whether it is a duration.
    """

    size: float = 1.0
    timed: bool = False

    @classmethod
    def of(cls, value: Any, name: str = "unit") -> Unit:
        """The unit that a number or a duration stands for.

        Raises:
            InputError: it is neither, or not positive.
        """
        if isinstance(value, Unit):
            return value
        size, timed = _size(value, name)
        if not 0 < size < math.inf:
            raise InputError(f"{name} is {value!r}, expected a positive one")
        return cls(size, timed)

    def __str__(self) -> str:
        return f"{self.size:g} seconds" if self.timed else f"{self.size:g}"

    def per_tick(self, times: Times, name: str) -> float:
        """Units in one tick of some times.

        Raises:
            InputError: one of them is a duration, and the other a number.
        """
        if not len(times):
            return 0.0
        if (times.tick is None) == self.timed:
            what = "numbers" if self.timed else "dates or durations"
            advice = "the number of them that makes one step" if self.timed else "a duration, such as unit='1h'"
            raise InputError(f"{name} are {what} and unit is {self}, expected {advice}")
        return (1.0 if times.tick is None else times.tick) / self.size


def _size(value: Any, name: str) -> tuple[float, bool]:
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)?\s*([a-zA-Z]+)\s*", value)
        word = found.group(2).lower() if found else ""
        if found is None or word not in WORDS:
            raise InputError(f"{name} is {value!r}, expected a number and one of {', '.join(WORDS)}: '1h', say")
        return float(found.group(1) or 1) * WORDS[word], True
    if isinstance(value, np.timedelta64):
        made = _dates(np.array([value]), name)
        return float(made.ticks[0]) * (made.tick or 1.0), True
    if isinstance(value, datetime.timedelta):
        return value.total_seconds(), True
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value), False
    raise InputError(f"{name} is {reprlib.repr(value)}, expected a number, or a duration such as '1h'")


def check_resolution(times: Times, name: str) -> None:
    """Warn of numbers that lie so far from zero that their gaps are rounded."""
    gaps = times.gaps()
    gaps = gaps[gaps > 0]
    if not times.eps or not len(gaps):
        return
    apart, median = times.eps * float(np.abs(times.ticks).max()), float(np.median(gaps))
    # Of half precision, which resolves nothing to a thousandth, a few of its own units are asked.
    if apart > max(RESOLUTION, 4 * times.eps) * median:
        warnings.warn(
            f"{name} are numbers whose neighbours are {apart:g} apart in the precision they came in, while the median "
            f"gap is {median:g}: give them as float64, as integers or as dates",
            stacklevel=4,
        )
