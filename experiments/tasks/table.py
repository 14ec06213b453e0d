"""A table of one's own: its rows as series, and what is asked of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.tasks import columns, guesses, windows
from experiments.tasks.base import SPLIT_SEED, Splits, Task, names, stratified
from experiments.tasks.columns import Layout, Recorded
from experiments.tasks.series import Series, collated
from experiments.tasks.windows import Asked, Windows
from neuralosc import Collator
from solvers.errors import InputError, unknown

KINDS = ("auto", "classification", "regression", "forecast")
PARTS = ("training", "validation", "test")
SPLITS_BY = ("auto", "time", "id")
#: Series from which on a forecast is tested on others than it was trained on.
MANY = 10
#: Fewest series that can be divided.
FEWEST = 3


class Table(Task):
    """Series in a file of one's own: one row a sample, in columns.

    Each value of the column `id` is a series. A classification or regression asks one answer of each, which is the same
    in all of its rows. A forecast asks the value of the target columns at times after a window of history: of windows
    which end at every sample, or `stride` apart, and do not cross from one part of the data into another. Values are
    as measured: the scales of the model are those of the training part, and so is the unit of time.

    Args:
        csv: the file, CSV or (by its ending) parquet; several, separated by commas, are one table. Without --task it
            chooses the task table.
        id: column that names the series of a row; left out, each file is one series.
        time_column: column of times: numbers, dates or durations; left out, rows are one step apart.
        time_format: how dates are written, such as "%d.%m.%Y %H:%M"; ISO 8601 if left out.
        time_unit: the time that one step of the network stands for, such as 1h; "median" is the median gap of the
            training part.
        inputs: columns that the network is shown, separated by commas; if left out all numbers, in a forecast those
            of the target too.
        target: column that is asked for; of numbers several, separated by commas.
        target_kind: "classification", "regression" or "forecast"; "auto" is forecast with a horizon, else
            classification of text and regression of numbers.
        classes: the classes in their order, separated by commas; if left out those of the file.
        horizon: times after the last sample of a window, of a forecast: 24h, or 1h,8h, or 1h..24h for all multiples.
        history: how far a window reaches back, of a forecast: 72h.
        stride: time between the ends of two windows; if left out one ends at every sample.
        tolerance: how far from the asked time a value may lie; if left out it must be of that very time.
        relative: ask for the change since the last value seen, of a forecast; `predict` adds that value again.
        order: what becomes of rows out of the order of time: "refuse" or "sort".
        duplicates: what becomes of rows of one time: "refuse", "keep", "mean" or "last".
        split_by: how the three parts are divided: by "time", training before validation before test, or by "id"; "auto"
            is time for forecasts of fewer than 10 series.
        validation_share, test_share: parts of the rows, or of the series.
        checksum: of the contents of the files, which a run writes down; others are refused.
    """

    name = "table"
    description = "your own file (--csv): classes or numbers of whole series, or forecasts"
    metrics: tuple[str, ...] = ("accuracy", "balanced_accuracy", "rmse", "mae", "mse")
    baseline = "the last value seen, the mean of the hour, the mean or the commonest class: reported beside"
    measured = True

    def __init__(
        self,
        csv: str = "",
        id: str = "",
        time_column: str = "",
        time_format: str = "",
        time_unit: str = "median",
        inputs: str = "",
        target: str = "",
        target_kind: str = "auto",
        classes: str = "",
        horizon: str = "",
        history: str = "",
        stride: str = "",
        tolerance: str = "",
        relative: bool = False,
        order: str = "refuse",
        duplicates: str = "refuse",
        split_by: str = "auto",
        validation_share: float = 0.15,
        test_share: float = 0.15,
        checksum: str = "",
    ) -> None:
        self.notices: list[str] = []
        self.csv = [str(Path(name).expanduser().absolute()) for name in names("csv", csv)]
        self.target = names("target", target)
        self.id, self.time_column, self.time_format = str(id), str(time_column), str(time_format)
        self.given_unit = windows.duration(time_unit, "time-unit") if time_unit != "median" else time_unit
        self.given_inputs, self.given_classes = names("inputs", inputs), names("classes", classes)
        self.horizon, self.history, self.stride, self.tolerance = map(str, (horizon, history, stride, tolerance))
        self.relative = bool(relative)
        self.order, self.duplicates, self.given_checksum = order, duplicates, checksum
        self.validation_share, self.test_share = validation_share, test_share
        self._check(target_kind, split_by)
        self.target_kind = self._kind(target_kind)
        self.kind = "classification" if self.labels else "regression"
        # Errors in the units of the target; several targets may differ in theirs.
        self.metrics = (
            ("accuracy", "balanced_accuracy") if self.labels else ("rmse", "mae") if len(self.target) == 1 else ("mse",)
        )
        self.split_by = split_by
        self._check_forecast()

    def _check(self, target_kind: str, split_by: str) -> None:
        if not self.csv:
            raise InputError("task 'table' needs a file of yours: give --csv FILE")
        if not self.target:
            raise InputError("task 'table' needs the column that is asked for: give --target COLUMN")
        for name, value, known in (("target-kind", target_kind, KINDS), ("split-by", split_by, SPLITS_BY)):
            if value not in known:
                raise unknown(name, value, known)
        if self.id in self.target or self.time_column in self.target:
            raise InputError(f"--target {','.join(self.target)}: it names the series or the times of a row already")
        shares = (self.validation_share, self.test_share)
        if not all(isinstance(share, int | float) and 0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise InputError(f"--validation-share and --test-share are {shares}: expected shares with a sum below 1")
        Collator(duplicates=self.duplicates, order=self.order)

    def _kind(self, given: str) -> str:
        """What is asked, by the horizon or by the cells of the target where nobody says."""
        if given != "auto":
            return given
        if self.horizon:
            return "forecast"
        import pandas.api.types as kinds

        layout = Layout(self.id, self.time_column, targets=tuple(self.target))
        column = columns.frames(self.paths, layout)[0][self.target[0]]
        if not kinds.is_numeric_dtype(column):
            return "classification"
        if (column.dropna() % 1 == 0).all() and column.nunique() <= MANY:
            self.notices.append(
                f"column {self.target[0]!r} has {column.nunique()} values, whole numbers, and is taken for numbers: "
                "--target-kind classification takes them for classes"
            )
        return "regression"

    def _check_forecast(self) -> None:
        if self.target_kind == "forecast":
            if not self.horizon or not self.history:
                raise InputError(
                    "a forecast needs --horizon, how far ahead, and --history, how much it is told: 24h and 72h, say"
                )
            # The first use of each is its check.
            assert self.asked.horizons
            return
        given = [name for name in ("horizon", "history", "stride", "tolerance", "relative") if getattr(self, name)]
        if given:
            raise InputError(f"--{given[0]} is of a forecast, and --target-kind is {self.target_kind}: leave it out")
        if self.target_kind == "classification" and len(self.target) > 1:
            raise InputError(f"--target has {len(self.target)} columns: expected one with the classes")
        if not self.id and len(self.csv) < FEWEST:
            raise InputError(f"a {self.target_kind} has one answer for each series: give --id, what names them")
        if self.split_by == "time":
            raise InputError(f"--split-by time is of a forecast, and --target-kind is {self.target_kind}: leave it out")

    # What a run writes down, found in the file where nobody gave it

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [Path(name) for name in self.csv]

    @property
    def inputs(self) -> list[str]:
        """The columns that the network is shown."""
        return self.given_inputs or list(self._layout.inputs)

    @property
    def classes(self) -> list[str]:
        """The classes, in their order."""
        return self.given_classes or (columns.class_order({one.label for one in self._series}) if self.labels else [])

    @property
    def time_unit(self) -> Any:
        """The time that one step stands for, a number or a text that is read back to the same."""
        if self.collator is None or self.given_unit != "median":
            return self.given_unit
        unit = self.collator.unit
        return f"{np.format_float_positional(unit.size, trim='-')} s" if unit.timed else unit.size

    @property
    def checksum(self) -> str:
        """Of the contents of the files."""
        return self.given_checksum or columns.checksum(self.paths)

    @property
    def labels(self) -> bool:
        """Whether classes are asked for."""
        return self.target_kind == "classification"

    @property
    def forecast(self) -> bool:
        """Whether values of later times are asked for."""
        return self.target_kind == "forecast"

    @functools.cached_property
    def asked(self) -> Asked:
        """How windows are cut."""
        return Asked(
            windows.duration(self.history, "history"),
            windows.durations(self.horizon, "horizon"),
            windows.duration(self.stride, "stride") if self.stride else None,
            windows.duration(self.tolerance, "tolerance") if self.tolerance not in ("", "0") else 0.0,
            self.relative,
        )

    # What a task says of itself

    @property
    def input_size(self) -> int:  # type: ignore[override]
        """The number of inputs."""
        return len(self.inputs)

    @property
    def output_size(self) -> int:  # type: ignore[override]
        """Classes, or target columns times horizons."""
        if self.labels:
            return len(self.classes)
        return len(self.target) * (len(self.asked.horizons) if self.forecast else 1)

    @property
    def irregular(self) -> bool:  # type: ignore[override]
        """Whether there are times."""
        return bool(self.time_column)

    @property
    def gaps(self) -> bool:  # type: ignore[override]
        """Whether a cell of the inputs is empty."""
        return any(bool(np.isnan(one.values).any()) for one in self._series)

    @property
    def length(self) -> int:  # type: ignore[override]
        """Samples of the longest series or window."""
        return max(int(part[:].x.shape[1]) for part in self.splits())

    @property
    def outputs(self) -> list[str]:
        """What each of the answers is called."""
        if not self.forecast:
            return self.classes if self.labels else self.target
        return [f"{column} +{horizon}" for column in self.target for horizon in self.asked.horizons]

    @property
    def reported(self) -> dict[str, int]:
        """Of a forecast of several values some horizons, of each target."""
        if not self.forecast or self.output_size == 1:
            return {}
        horizons = self.asked.horizons
        return {
            f"{column}_{horizons[place]}" if len(self.target) > 1 else f"{horizons[place]}": number * len(horizons)
            + place
            for number, column in enumerate(self.target)
            for place in windows.reported(horizons)
        }

    # The data

    @functools.cached_property
    def _tables(self) -> list[Any]:
        for path in self.paths:
            if not path.is_file():
                raise InputError(f"{path}: no such file (--csv)")
        if self.given_checksum and columns.checksum(self.paths) != self.given_checksum:
            raise InputError(f"{', '.join(self.csv)}: the contents are not those that the run was trained on")
        layout = Layout(self.id, self.time_column, targets=tuple(self.target), labels=self.labels)
        return columns.frames(self.paths, dataclasses.replace(layout, inputs=tuple(self.given_inputs)))

    @functools.cached_property
    def _layout(self) -> Layout:
        return self.layout(self._tables[0], self.notices.append)

    def layout(self, table: Any = None, say: columns.Say = lambda line: None) -> Layout:
        """What the columns are; the inputs of a table where none were given."""
        layout = Layout(
            self.id,
            self.time_column,
            self.time_format,
            tuple(self.given_inputs),
            tuple(self.target),
            self.labels,
            self.order,
            self.duplicates,
        )
        if self.given_inputs or table is None:
            return layout
        hidden = () if self.forecast else layout.targets
        return dataclasses.replace(
            layout, inputs=columns.input_columns(table, dataclasses.replace(layout, targets=hidden), say)
        )

    @functools.cached_property
    def _series(self) -> list[Recorded]:
        series = columns.recorded(self.paths, self._tables, self._layout, self.notices.append)
        if self.forecast:
            return series
        known = [
            one for one in series if (one.label is not None if self.labels else columns.has_target(one, self.target))
        ]
        if len(known) < len(series):
            self.notices.append(f"{len(series) - len(known)} series have no target, and are left out")
        if len(known) < FEWEST:
            raise InputError(
                f"there are {len(known)} series with a target: expected {FEWEST} at least, for training, validation "
                "and test; is --id the right column?"
            )
        return known

    @functools.cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor] | tuple[Any, Any]:
        """Numbers of the series of each part, or the two times that divide them, in ticks."""
        count, shares = len(self._series), (self.validation_share, self.test_share)
        by_id = not self.forecast or self.split_by == "id" or (self.split_by == "auto" and count >= MANY)
        if not by_id:
            ticks = np.sort(np.concatenate([one.ticks.ticks for one in self._series]))
            first, second = (ticks[int(len(ticks) * share)] for share in (1 - sum(shares), 1 - shares[1]))
            return first, second
        if count < FEWEST:
            raise InputError(f"there are {count} series: --split-by id needs {FEWEST} at least, use --split-by time")
        if self.labels:
            names = self.classes
            strange = next((one.label for one in self._series if one.label not in names), None)
            if strange is not None:
                raise InputError(f"class {strange!r} of the file is none of --classes {','.join(names)}")
            parts = stratified(np.array([names.index(one.label or "") for one in self._series]), *shares)
        else:
            order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(count))
            held, kept = (max(1, round(share * count)) for share in shares)
            parts = (order[held + kept :], order[:held], order[held : held + kept])
        for name, part in zip(PARTS, parts, strict=True):
            if not len(part):
                raise InputError(f"none of the {count} series is left for the {name} part: give more, or other shares")
        return parts

    @property
    def by_time(self) -> bool:
        """Whether the parts follow each other in time."""
        return len(self._parts) == 2

    def _of_part(self, part: int) -> list[Recorded]:
        """The series of a part; of parts that follow each other, what lies in it of each."""
        if not self.by_time:
            return [self._series[int(number)] for number in self._parts[part]]
        bounds = (None, *self._parts, None)
        cut = []
        for one in self._series:
            ticks = one.ticks.ticks
            inside = np.ones(len(ticks), dtype=bool)
            if bounds[part] is not None:
                inside &= ticks >= bounds[part]
            if bounds[part + 1] is not None:
                inside &= ticks < bounds[part + 1]
            cut.append(
                dataclasses.replace(
                    one, times=one.times[inside], values=one.values[inside], targets=one.targets[inside]
                )
            )
        return cut

    @functools.cached_property
    def collator(self) -> Collator | None:  # type: ignore[override]
        """How times become timespans, with the unit of the training part; None where there are no times."""
        if not self.irregular:
            return None
        collator = Collator(self.given_unit, duplicates=self.duplicates, order=self.order)
        if self.given_unit != "median":
            return collator
        return collator.fit([(one.times, one.values) for one in self._of_part(0) if len(one.times)])

    def splits(self, seed: int = 0) -> Splits:
        """The three parts, the same for every `seed`.

        Raises:
            InputError: what cannot be used of the file, in one line.
        """
        return self._sets

    @functools.cached_property
    def _sets(self) -> Splits:
        if self.irregular:
            windows.in_ticks(self.time_unit, "time-unit", self._series[0].ticks, self.time_column)
        train, validation, test = (self._set(part) for part in range(3))
        self._check_training(train)
        return train, validation, test

    def _set(self, part: int) -> Series:
        series = self._of_part(part)
        if not self.forecast:
            y = (
                torch.tensor([self.classes.index(one.label or "") for one in series])
                if self.labels
                else torch.from_numpy(np.stack([columns.first_values(one.targets) for one in series]))
            )
            return self.batch([(one.times, one.values) for one in series], y)
        pieces, answers = [], []
        for one, cut in zip(series, self._windows[part], strict=True):
            for first, last in zip(cut.first, cut.last, strict=True):
                pieces.append((one.times[first : last + 1], one.values[first : last + 1]))
            answers.append(cut.targets)
        if not pieces:
            raise InputError(self._empty(part, series))
        return self.batch(pieces, torch.from_numpy(np.concatenate(answers)))

    def _empty(self, part: int, series: Sequence[Recorded]) -> str:
        longest = max((one.times[-1] - one.times[0] for one in series if len(one.times)), default=0)
        longest = longest.astype("m8[s]").item() if isinstance(longest, np.timedelta64) else longest
        return (
            f"the {PARTS[part]} part has no window with a history of {self.history} and a value of "
            f"{' or '.join(self.target)} {self.horizon} later (its longest series spans {longest}): give a shorter "
            "history, a --tolerance where times do not match, or other shares"
        )

    @functools.cached_property
    def _windows(self) -> list[list[Windows]]:
        """The windows of the series of each part."""
        return [[windows.cut(one, self.asked, self.time_column) for one in self._of_part(part)] for part in range(3)]

    def batch(self, pieces: Sequence[tuple[np.ndarray, np.ndarray]], y: Tensor) -> Series:
        """Series with their targets, padded, in double precision."""
        return collated(pieces, y, self.collator, self.irregular)

    def _check_training(self, train: Series) -> None:
        """Refuse columns of which the training part has no value."""
        x, y = train.whole.x, train.whole.y
        inside = train.whole.valid
        for number, name in enumerate(self.inputs):
            if bool(x[..., number][inside].isnan().all()):
                raise InputError(f"column {name!r} has no value in the training part: leave it out of --inputs")
        if self.labels:
            counts = torch.bincount(y, minlength=self.output_size)
            if not counts.all():
                lacking = self.classes[int((counts == 0).nonzero()[0])]
                raise InputError(
                    f"the training part has no series of class {lacking!r}: give more of it, or leave it out"
                )
            return
        for name, column in zip(self.outputs, y.T, strict=True):
            if bool(column.isnan().all()):
                raise InputError(
                    f"the training part has no value for {name!r}: leave that horizon out, or give a --tolerance"
                )

    # What is said without a network

    def guesses(self, part: int) -> dict[str, Tensor]:
        """Answers to the windows or series of a part that need no network, by name, in the units of the targets.

        Those of a class are logarithms of probabilities.
        """
        y, count = self._sets[0].whole.y, len(self._sets[part])  # type: ignore[attr-defined,arg-type]
        if self.labels:
            shares = torch.bincount(y, minlength=self.output_size).double() / len(y)
            return {"commonest class": shares.log().expand(count, -1)}
        means = y.nanmean(0)
        if not self.forecast:
            return {"mean": means.expand(count, -1)}
        series, cuts = self._of_part(part), self._windows[part]
        seen = [windows.last_seen(one, cut.first, cut.last) for one, cut in zip(series, cuts, strict=True)]
        last = np.repeat(np.concatenate(seen), len(self.asked.horizons), axis=1)
        found = {"persistence": last}
        if series[0].ticks.what == "dates":
            training = self._of_part(0)
            found["mean of the hour"] = guesses.hourly(training, series, cuts, self.asked, self.time_column)
        # What has no such value, or hour, is answered by the mean of the training part.
        return {
            name: torch.from_numpy(guesses.filled(answers - last if self.relative else answers, means.tolist()))
            for name, answers in found.items()
        }
