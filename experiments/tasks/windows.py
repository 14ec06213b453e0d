"""Windows of recorded series, each with the values that follow it, and what is said of those without a network."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from experiments.tasks.columns import Recorded
from neuralosc.data.times import WORDS, Times, Unit
from solvers.errors import InputError

#: More horizons than any table has answers for.
MOST = 10_000
#: Horizons up to which errors are told of each.
EACH = 6


@dataclass(frozen=True)
class Asked:
    """How windows are cut, and what is asked after each.

    Attributes:
        history: how far a window reaches back from its last sample, which is included, as is what lies so far back.
        horizons: times after its last sample.
        stride: time from the end of one window to that of the next, at least; None for one that ends at every sample.
        tolerance: how far from an asked time a value may lie.
        relative: the change since the last value seen is asked for, not the value.
    """

    history: Any
    horizons: tuple[Any, ...]
    stride: Any = None
    tolerance: Any = 0.0
    relative: bool = False


class Windows(NamedTuple):
    """Windows of one series.

    Attributes:
        first, last: number of the first and of the last sample of each, `(windows,)`.
        targets: what follows, `(windows, columns * horizons)`, column by column; NaN where there is no value.
        until: time of the last value that is asked for, in ticks, `(windows,)`.
    """

    first: np.ndarray
    last: np.ndarray
    targets: np.ndarray
    until: np.ndarray


def reported(horizons: Sequence[Any]) -> list[int]:
    """Numbers of the horizons whose errors are told: of all of them, or of many those at the quartiles."""
    order = sorted(range(len(horizons)), key=lambda number: Unit.of(horizons[number], "horizon").size)
    if len(order) <= EACH:
        return order
    return [order[math.ceil(len(order) * part / 4) - 1] for part in range(1, 5)]


def durations(text: str, option: str) -> tuple[Any, ...]:
    """What is written as "1h,8h" or, for all multiples up to an end, "8h..24h"; numbers where times are numbers.

    Raises:
        InputError: it is neither.
    """
    found: list[Any] = []
    for part in filter(None, (part.strip() for part in str(text).split(","))):
        begin, dots, end = (side.strip() for side in part.partition(".."))
        step = duration(begin, option)
        count = 1.0
        if dots:
            first, last = Unit.of(step, option), Unit.of(duration(end, option), option)
            count = last.size / first.size
            if first.timed != last.timed or count < 1 or count > MOST or abs(count - round(count)) > 1e-9:
                raise InputError(f"--{option} is {part!r}, expected an end that is a multiple of its beginning")
        found += [_times(step, number) for number in range(1, round(count) + 1)]
    if not found:
        raise InputError(f"--{option} is {text!r}, expected times such as 24h, or 1h,8h, or 1h..24h")
    return tuple(dict.fromkeys(found))


def duration(text: Any, option: str) -> Any:
    """A positive number, or a text that is a duration.

    Raises:
        InputError: it is neither.
    """
    try:
        value: Any = float(text)
        value = int(value) if value.is_integer() else value
    except (ValueError, OverflowError):
        value = str(text)
    Unit.of(value, f"--{option}")
    return value


def _times(step: Any, number: int) -> Any:
    """A multiple of a duration, in its own words."""
    if not isinstance(step, str):
        return step * number
    written, word = re.fullmatch(r"\s*([\d.]*)\s*([a-zA-Z]+)\s*", step).groups()  # type: ignore[union-attr]
    return f"{float(written or 1) * number:g}{word}"


def in_ticks(value: Any, option: str, times: Times, column: str) -> Any:
    """How many ticks of some times a duration is, a whole number of them where they are whole.

    Raises:
        InputError: a number for times that are dates or durations, or the other way round.
    """
    unit = Unit.of(value, f"--{option}")
    if unit.timed != (times.tick is not None):
        expected = f"a duration with a unit, one of {', '.join(WORDS)}" if times.tick is not None else "a number"
        kind = f"times of column {column!r} are {times.what}" if column else "rows are counted, without --time-column"
        raise InputError(f"--{option} is {value!r}, and {kind}: expected {expected}")
    count = unit.size / (times.tick or 1.0)
    whole = round(count)
    if times.ticks.dtype.kind == "i" and (times.tick is not None or count == whole):
        if not whole:
            raise InputError(f"--{option} is {value!r}, less than the times of column {column!r} resolve")
        return whole
    return count


def cut(one: Recorded, asked: Asked, column: str) -> Windows:
    """The windows of a series with a whole history and at least one value to be asked for.

    Raises:
        InputError: durations that do not fit its times.
    """
    times = one.ticks
    ticks = times.ticks
    history = in_ticks(asked.history, "history", times, column)
    horizons = [in_ticks(value, "horizon", times, column) for value in asked.horizons]
    within = in_ticks(asked.tolerance, "tolerance", times, column) if asked.tolerance else 0
    if within and within >= min(horizons):
        raise InputError(f"--tolerance is {asked.tolerance!r}, as long as the horizon: expected less")
    last = np.flatnonzero(ticks - ticks[:1] >= history)
    if asked.stride is not None:
        last = _apart(ticks, last, in_ticks(asked.stride, "stride", times, column))
    first = np.searchsorted(ticks, ticks[last] - history, side="left")
    # The sum of two numbers is rounded, that of dates is not.
    rounding = 0 if ticks.dtype.kind == "i" else 8 * np.finfo(np.float64).eps * np.abs(ticks).max(initial=0.0)
    answers, until = [], ticks[last].copy()
    for values in one.targets.T:
        seen = np.flatnonzero(~np.isnan(values))
        for horizon in horizons:
            place, found = _nearest(ticks[seen], ticks[last] + horizon, max(within, rounding))
            row = seen[place] if len(seen) else np.zeros(len(last), np.int64)
            found = found & (row > last)
            answers.append(np.where(found, values[row], np.nan))
            until = np.where(found, np.maximum(until, ticks[row]), until)
    targets = np.stack(answers, axis=1)
    if asked.relative:
        targets = targets - np.repeat(last_seen(one, first, last), len(horizons), axis=1)
    kept = ~np.isnan(targets).all(1)
    return Windows(first[kept], last[kept], targets[kept], until[kept])


def _apart(ticks: np.ndarray, last: np.ndarray, stride: Any) -> np.ndarray:
    """Of these samples those that are so far apart at least."""
    chosen: list[int] = []
    for sample in last:
        if not chosen or ticks[sample] - ticks[chosen[-1]] >= stride:
            chosen.append(int(sample))
    return np.array(chosen, dtype=np.int64)


def _nearest(ticks: np.ndarray, asked: np.ndarray, within: Any) -> tuple[np.ndarray, np.ndarray]:
    """The place of the tick nearest to each asked one, and whether it is near enough."""
    if not len(ticks):
        return np.zeros(len(asked), np.int64), np.zeros(len(asked), bool)
    right = np.searchsorted(ticks, asked).clip(0, len(ticks) - 1)
    left = (right - 1).clip(0)
    place = np.where(np.abs(ticks[left] - asked) <= np.abs(ticks[right] - asked), left, right)
    return place, np.abs(ticks[place] - asked) <= within


def last_seen(one: Recorded, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The last value of each target in each of some windows, NaN where there is none, `(windows, columns)`."""
    rows = np.where(np.isnan(one.targets), -1, np.arange(len(one.targets))[:, None])
    latest = np.maximum.accumulate(rows, axis=0)[last]
    values = np.take_along_axis(one.targets, latest.clip(0), axis=0)
    return np.where(latest >= first[:, None], values, np.nan)
