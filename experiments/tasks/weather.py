"""The weather of the next month, hour by hour, from that of the last one."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments.tasks.arrays import needed
from experiments.tasks.base import Splits, Task, positive
from experiments.tasks.guesses import HourMeans
from experiments.tasks.series import Batch, Index
from neuralosc.data.times import Times, read
from solvers.errors import InputError, unknown

FILE, DATE, WRITTEN = "WTH.csv", "date", "%m/%d/%Y %H:%M"
VARIABLES = (
    *("Visibility", "DryBulbFarenheit", "DryBulbCelsius", "WetBulbFarenheit", "DewPointFarenheit", "DewPointCelsius"),
    *("RelativeHumidity", "WindSpeed", "WindDirection", "StationPressure", "Altimeter", "WetBulbCelsius"),
)
#: Months from the beginning to the ends of the training, validation and test part.
MONTHS = (28, 38, 48)


class Weather(Task):
    """12 variables of a station, hour by hour; asked are the next 720 hours after 720 that are shown.

    Calendar months 1-28 from the first hour on are the training part, 29-38 the validation part, 39-48 the test part. A
    window, what is shown of it and what is asked, lies in one part; it begins at every hour, or every `apart` hours.
    Values are standardized by mean and deviation of the training part, and so are loss and figures.

    An hour that is asked for is a sample of which nothing is seen (NaN), after those that are shown: a network goes on
    for 720 samples without one and answers at each, as state-space networks are made to forecast.

    Source: H. Zhou et al., Informer: beyond efficient transformer for long sequence time-series forecasting, AAAI 2021,
    for the file WTH.csv and the months; A. Gu, K. Goel, C. Re, Efficiently modeling long sequences with structured
    state spaces, ICLR 2022, for forecasts by samples that are hidden. There the hours that a validation or test window
    shows may lie in the part before it, and the code of the former divides the rows 70 : 10 : 20.

    Args:
        data_dir: folder with WTH.csv.
        target: the variable that is asked for, such as WetBulbCelsius, from all of them; if left out all are.
        past: hours that are shown.
        future: hours that are asked for.
        apart: hours from the beginning of one window to that of the next.
    """

    name = "weather"
    description = "12 variables of a weather station for 720 hours, from the 720 before; needs WTH.csv"
    input_size = len(VARIABLES)
    kind = "regression"
    metrics = ("mae", "mse")
    baseline = "persistence, the mean of the hour: reported beside"
    every = True
    gaps = True

    def __init__(
        self, data_dir: str | None = None, target: str = "", past: int = 720, future: int = 720, apart: int = 1
    ) -> None:
        self.data_dir, self.target = data_dir, target
        if target and target not in VARIABLES:
            raise unknown(f"variable (--target) of task {self.name!r}", target, VARIABLES)
        self.past = positive(self.name, "past", past)
        self.future = positive(self.name, "future", future)
        self.apart = positive(self.name, "apart", apart)
        self.length = past + future
        self.columns = [VARIABLES.index(target)] if target else list(range(len(VARIABLES)))
        self.output_size = len(self.columns)

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: the file is missing, damaged, or holds something else, or has no window in one of its parts.
        """
        train, validation, test = self._sets
        return train, validation, test

    def guesses(self, part: int) -> dict[str, Any]:
        """The last values shown, and the mean of the training part in the hour of the day."""
        times, values, borders = self._hours
        means = HourMeans(self.output_size)
        trained = slice(borders[0], borders[1])
        answers = values[:, self.columns].double().numpy()
        means.add(times[trained], answers[trained])
        of_hours = np.stack([means.at(times, times.ticks, number) for number in range(self.output_size)], axis=1)
        # Of an hour that the training part has not, its mean, which is 0.
        hourly = torch.from_numpy(np.nan_to_num(of_hours)).float()
        data = self._sets[part]
        return {"persistence": Guess(data, None), "mean of the hour": Guess(data, hourly)}

    @functools.cached_property
    def _sets(self) -> tuple[Sliding, ...]:
        _, values, borders = self._hours
        sets = []
        for name, begin, end in zip(("training", "validation", "test"), borders[:-1], borders[1:], strict=True):
            starts = torch.arange(begin, max(begin, end - self.length + 1), self.apart)
            if not len(starts):
                raise InputError(
                    f"task {self.name!r}: the {name} part has {end - begin} hours, and a window {self.length}: give "
                    "less of --past and --future, or a file of 48 months"
                )
            sets.append(Sliding(values, starts, self.past, self.future, self.columns))
        return tuple(sets)

    @functools.cached_property
    def _hours(self) -> tuple[Times, Tensor, tuple[int, int, int, int]]:
        """The hours, their standardized values, and where the parts begin and end."""
        path = needed(self.name, self.data_dir, FILE)
        dates, values = _read(path)
        first = dates[0].astype("datetime64[M]")
        ends = [int(np.searchsorted(dates, (first + month).astype(dates.dtype))) for month in MONTHS]
        trained = values[: ends[0]]
        deviation = trained.std(0)
        scaled = (values - trained.mean(0)) / np.where(deviation > 0, deviation, 1.0)
        borders = (0, ends[0], ends[1], ends[2])
        return read(dates, f"dates of {path}"), torch.from_numpy(scaled.astype(np.float32)), borders


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The hours of a file and their values, `(hours, variables)`.

    Raises:
        InputError: it cannot be read, lacks a column, has an empty cell, or hours that do not follow each other.
    """
    # Imported here: it takes half a second, and only those who read a table need it.
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; fetch the file again") from error
    except (ValueError, pd.errors.ParserError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path} is no table that can be read ({said:.80}); fetch the file again") from error
    absent = [name for name in (DATE, *VARIABLES) if name not in table.columns]
    if absent:
        raise InputError(f"{path} has no column {absent[0]!r}: it has {', '.join(map(str, table.columns)):.200}")
    dates = pd.to_datetime(table[DATE], format=WRITTEN, errors="coerce").to_numpy("datetime64[s]")
    values = np.stack([pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in VARIABLES], axis=1)
    bad = np.flatnonzero(np.isnat(dates) | ~np.isfinite(values).all(1))
    if len(bad) or not len(dates):
        row = f"row {bad[0] + 1} has" if len(bad) else "its rows have"
        raise InputError(f"{path}: {row} no date such as 1/31/2010 5:00, or a variable without a number")
    apart = np.flatnonzero(np.diff(dates) != np.timedelta64(1, "h"))
    if len(apart):
        raise InputError(f"{path}: row {apart[0] + 2} is not one hour after the row before; fetch the file again")
    return dates, values


class Sliding(Dataset):
    """Windows of one long series, cut when they are asked for: what is shown at first, and asked for behind.

    Args:
        values: `(samples, features)`.
        starts: number of the first sample of each window.
        past, future: samples that are shown, and of which the values are asked for.
        columns: features that are asked for.
    """

    def __init__(self, values: Tensor, starts: Tensor, past: int, future: int, columns: list[int]) -> None:
        self.values, self.starts, self.past, self.future, self.columns = values, starts, past, future, columns

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, index: Index) -> Tensor:
        """Numbers of the samples of some windows, `(windows, past + future)`."""
        return self.starts[index].unsqueeze(-1) + torch.arange(self.past + self.future)

    def __getitem__(self, index: Index) -> Batch:
        whole = self.values[self.rows(index)]
        shown = torch.arange(whole.shape[-2]).unsqueeze(-1) < self.past
        return Batch(torch.where(shown, whole, math.nan), torch.where(shown, math.nan, whole[..., self.columns]))


@dataclass(frozen=True)
class Guess:
    """Answers to windows, made when they are asked for.

    Attributes:
        data: the windows.
        rows: the answer at each sample of the series, `(samples, outputs)`; None for the last values that are shown.
    """

    data: Sliding
    rows: Tensor | None

    def __getitem__(self, index: Index) -> Tensor:
        rows = self.data.rows(index)
        if self.rows is not None:
            return self.rows[rows]
        last = self.data.values[rows[..., self.data.past - 1]][..., self.data.columns]
        return last.unsqueeze(-2).expand(*rows.shape, -1)
