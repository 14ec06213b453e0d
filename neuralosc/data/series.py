"""One series or many, as they come to a model that is asked, and where the times that are asked for lie in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from neuralosc.data.times import Times, Unit
from solvers.errors import InputError


def taken(times: Any, values: Any, tokens: bool = False) -> tuple[list[tuple[Any, Any]], bool]:
    """Pairs of times and values, one for each series, and whether there is one series that stands alone.

    Args:
        times: of one series `(samples,)`, or a sequence of such; None where samples are one step apart.
        values: of one series `(samples, features)`, or a sequence of such.
        tokens: the values are tokens, those of one series `(samples,)`.

    Raises:
        InputError: there are not as many times as values, no series at all, or values of which it is not known whether
            they are one series.
    """
    if times is None:
        alone = not _many(values, 1 if tokens else 2)
        if tokens and not alone and _depth(values) == 2 and all(_count(each) == 1 for each in values):
            count = len(values)
            raise InputError(
                f"values are ({count}, 1), which is one series of {count} tokens or {count} series of one: give "
                "(samples,), or (series, samples, 1)"
            )
        every = [values] if alone else list(values)
        pairs = [(range(_count(each)), each) for each in every]
    else:
        alone = not _many(times, 1)
        pairs = [(times, values)] if alone else _paired(list(times), values)
    if not pairs:
        raise InputError("no series is given, expected at least one")
    return pairs, alone


def _paired(times: list[Any], values: Any) -> list[tuple[Any, Any]]:
    if not isinstance(values, list | tuple | Tensor | np.ndarray) or len(values) != len(times):
        count = len(values) if hasattr(values, "__len__") else None
        given = type(values).__name__ if count is None else f"{count} of them ({type(values).__name__})"
        raise InputError(
            f"times are those of {len(times)} series, and values {given}: give a sequence with one of each"
        )
    return list(zip(times, values, strict=True))


def _many(values: Any, dimensions: int) -> bool:
    """Whether these are several arrays of so many dimensions (or fewer), not one of them."""
    if hasattr(values, "ndim"):
        return int(values.ndim) > dimensions
    if not isinstance(values, list | tuple) or not values:
        return False
    return _depth(values) > dimensions


def _depth(values: Any) -> int:
    """Dimensions of an array, or of a sequence of sequences."""
    if hasattr(values, "ndim"):
        return int(values.ndim)
    if not isinstance(values, list | tuple):
        return 0
    return 1 + max((_depth(value) for value in values), default=0)


def _count(values: Any) -> int:
    if not hasattr(values, "__len__"):
        raise InputError(f"values are a {type(values).__name__}, expected (samples, features)")
    return len(values)


def asked_for(at: Any, count: int, alone: bool) -> list[Any]:
    """The times that are asked of each series: its own, or one set for all.

    Raises:
        InputError: there are not as many as series.
    """
    if alone or not _many(at, 1):
        return [at] * count
    if len(at) != count:
        raise InputError(f"at has times for {len(at)} series, expected {count}, or one set for all")
    return list(at)


def _placed(asked: Times, samples: Times, name: str) -> tuple[np.ndarray, np.ndarray]:
    """How many samples there are up to each asked time, that time included, and the ticks since the last of them.

    Before the first sample the ticks are those until it, and negative.

    Returns:
        counts, int64, and ticks of `samples`, float64; both `(times,)`.

    Raises:
        InputError: times of another kind.
    """
    if not len(asked):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    if not len(samples):
        raise InputError(f"{name} asks of a series without samples, expected one at least")
    tick = samples.tick or 1.0
    asked, samples = samples.alike(asked, name)
    counts = np.searchsorted(samples.ticks, asked.ticks, side="right")
    since = asked.ticks - samples.ticks[np.maximum(counts - 1, 0)]
    return counts, since.astype(np.float64) * ((samples.tick or 1.0) / tick)


def on_clock(clock: np.ndarray, samples: Times, asked: Times, unit: Unit, name: str) -> np.ndarray:
    """Asked times on the clock of the samples, each in the interval where it lies exactly, whatever rounding says.

    Args:
        clock: time of each sample since the initial state, in units, float64; what follows them does not count.
        samples, asked: their times, and those asked for.
        unit: the unit of the clock.
        name: what the asked times are called in messages.

    Raises:
        InputError: times of another kind, or before the initial state.
    """
    counts, ticks = _placed(asked, samples, name)
    known = clock[: len(samples)]
    times = known[np.maximum(counts - 1, 0)] + ticks * unit.per_tick(samples, name)
    # A little before zero is rounding of the first timespan.
    if (times < -1e-6 * known[:1]).any():
        early = int((times < -1e-6 * known[:1]).argmax())
        raise InputError(
            f"{name} asks {-times[early]:g} units before the initial state holds (row {early}), expected no time "
            f"before that, which is {known[0]:g} units before the first sample"
        )
    following = np.append(known, np.inf)[counts]
    inside: np.ndarray = np.where(times < following, times, np.nextafter(following, 0.0)).clip(0.0)
    return inside
