"""What is said of windows without a network: the mean of the training part in the hour of the day that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.tasks.columns import Recorded
from experiments.tasks.windows import Asked, Windows, in_ticks
from neuralosc.data.times import Times

HOUR, HOURS = 3600, 24


def hours(ticks: np.ndarray, tick: float) -> np.ndarray:
    """Hour of the day of dates, 0 to 23."""
    # Whole ticks of an hour, or whole hours of a tick: days are 24 hours either way.
    whole = ticks // round(HOUR / tick) if tick < HOUR else ticks * round(tick / HOUR)
    return np.asarray(whole % HOURS, dtype=np.int64)


class HourMeans:
    """Mean of each column in each hour of the day, of the values that it was given.

    Args:
        columns: how many there are.
    """

    def __init__(self, columns: int) -> None:
        self.total, self.count = np.zeros((HOURS, columns)), np.zeros((HOURS, columns))

    def add(self, times: Times, values: np.ndarray) -> None:
        """Count values `(samples, columns)` of these times; NaN does not count."""
        seen = ~np.isnan(values)
        place = hours(times.ticks, times.tick or 1.0)
        np.add.at(self.total, place, np.where(seen, values, 0.0))
        np.add.at(self.count, place, seen)

    def at(self, times: Times, ticks: np.ndarray, column: int) -> np.ndarray:
        """The mean of the hour of each tick, NaN where no value was given of it."""
        place = hours(ticks, times.tick or 1.0)
        with np.errstate(invalid="ignore"):
            means: np.ndarray = (self.total / self.count)[place, column]
        return means


def filled(answers: np.ndarray, means: Sequence[float]) -> np.ndarray:
    """Answers with the mean of the training part where there is none."""
    return np.where(np.isnan(answers), np.asarray(means), answers)


def hourly(
    training: Sequence[Recorded], series: Sequence[Recorded], cuts: Sequence[Windows], asked: Asked, column: str
) -> np.ndarray:
    """The mean of the training part in the hour of each answer; that of the series itself where it is in that part.

    Args:
        training: the series of the training part, with dates.
        series: those that are asked of.
        cuts: their windows.
        asked: what is asked.
        column: that of the times.

    Returns:
        `(windows, columns * horizons)`, NaN where the training part has no value in an hour.
    """
    outputs = series[0].targets.shape[1]
    own = {one.name: HourMeans(outputs) for one in training}
    shared = HourMeans(outputs)
    for one in training:
        for means in (own[one.name], shared):
            means.add(one.ticks, one.targets)
    rows = []
    for one, cut in zip(series, cuts, strict=True):
        times, means = one.ticks, own.get(one.name, shared)
        ends = times.ticks[cut.last]
        steps = [in_ticks(value, "horizon", times, column) for value in asked.horizons]
        rows.append(np.stack([means.at(times, ends + step, k) for k in range(outputs) for step in steps], axis=1))
    return np.concatenate(rows)
