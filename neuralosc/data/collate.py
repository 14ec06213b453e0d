"""Series with times of their own as one padded batch."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from neuralosc.data.times import Times, Unit, check_resolution, read
from solvers.errors import InputError

#: What becomes of samples that have one time, and of those that are out of order.
DUPLICATES = ("refuse", "keep", "mean", "last")
ORDERS = ("refuse", "sort")


@dataclass(frozen=True)
class Batch:
    """Series of different lengths as a recurrent layer takes them: `output, state = rnn(**batch.inputs)`.

    Attributes:
        x: values, `(batch, time, features)`; NaN where a feature was not observed, 0 in the padding.
        timespans: time since the sample before, in units, `(batch, time)`; 0 in the padding.
        lengths: samples of each series, `(batch,)`.
        mask: what was observed, `(batch, time, features)`; False in the padding.
        start: time of the initial state, in units, float64 `(batch,)`: since 1970 of dates, since 0 of all else, and 0
            for a series without samples.
        others: what else the series had, by name, collated by torch.
        unit: the unit of time.
    """

    x: Tensor
    timespans: Tensor
    lengths: Tensor
    mask: Tensor
    start: Tensor
    others: dict[str, Any]
    unit: Unit

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a call of a recurrent layer."""
        return {"x": self.x, "timespans": self.timespans, "lengths": self.lengths}

    @property
    def times(self) -> Tensor:
        """Time of each sample since that of the initial state, in units, float64 `(batch, time)`; for `trajectory`."""
        return self.timespans.double().cumsum(1)

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on another device."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same in pinned memory, for a DataLoader that is asked for it."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, function: Any) -> Batch:
        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, dict):
                return {key: changed(part) for key, part in value.items()}
            return [changed(part) for part in value] if isinstance(value, list | tuple) else value

        fields = {field.name: changed(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return Batch(**fields)


@dataclass(frozen=True)
class Collator:
    """Makes batches of series; a `collate_fn` for a DataLoader.

    A series is `(times, values)`, `(times, values, mask)`, or a mapping with these names, whose other entries are
    collated as torch collates them. Times are numbers, dates or durations, in any precision, of NumPy, pandas or
    torch; the gaps between them are taken first and rounded to `dtype` after. Values are `(samples, features)` or
    `(samples,)`, NaN where a feature was not observed, or False in `mask`.

    Attributes:
        unit: the time that one step of the network (a timespan of 1) stands for: a number where times are numbers, else
            a duration such as "1h"; or "median", the median gap of the series that `fit` is given.
        first: timespan of the first sample, in units: for so long it acts on the initial state, and at 0 it has no
            effect under control "hold".
        origin: when the initial state holds, a time like those of the series, in place of `first`: the first timespan
            is then the time since.
        duplicates: what becomes of samples of one time: "refuse", "keep" (with a timespan of 0: see the timespans of a
            network), "mean" of what was observed of each feature, or the "last" that was.
        order: what becomes of times that go back: "refuse", or "sort", in which samples of one time keep their order.
        dtype: of x and timespans; that of torch when left out.

    Raises:
        InputError: an option that is none.
    """

    unit: Any = 1.0
    first: float = 1.0
    origin: Any = None
    duplicates: str = "refuse"
    order: str = "refuse"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.unit != "median":
            object.__setattr__(self, "unit", Unit.of(self.unit))
        first = self.first
        if isinstance(first, bool) or not isinstance(first, int | float) or not 0 <= first < math.inf:
            raise InputError(f"first is {first!r}, expected a timespan in units, at least 0")
        for name, known in (("duplicates", DUPLICATES), ("order", ORDERS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")

    def fit(self, series: Sequence[Any]) -> Collator:
        """The same with the unit of a training set where it is "median"; a unit that is given stays.

        Raises:
            InputError: no two samples of a series are apart.
        """
        if isinstance(self.unit, Unit):
            return self
        read_ones = [self._sorted(_taken_apart(one, i)[0], f"times of series {i}")[0] for i, one in enumerate(series)]
        kinds = {times.tick is None for times in read_ones if len(times)}
        if len(kinds) > 1:
            raise InputError("some series have dates or durations and some have numbers, expected one kind of times")
        timed = kinds == {False}
        gaps = np.concatenate([times.gaps() * (times.tick or 1.0) for times in read_ones] or [np.zeros(0)])
        gaps = gaps[gaps > 0]
        if not len(gaps):
            raise InputError("unit is 'median', and no two samples of a series are apart: give the unit")
        return dataclasses.replace(self, unit=Unit(float(np.median(gaps)), timed))

    def __call__(self, series: Sequence[Any]) -> Batch:
        """The batch.

        Raises:
            InputError: times or values that cannot be used; the message says of which series.
        """
        unit = self.unit
        if not isinstance(unit, Unit):
            raise InputError(
                "unit is 'median', which is that of a training set: call fit(training_series) once, and use the "
                "collator that it gives"
            )
        if not len(series):
            raise InputError("series is empty, expected at least one series")
        dtype = self.dtype or torch.get_default_dtype()
        rows = [self._row(one, i, unit) for i, one in enumerate(series)]
        features = {row.values.shape[1] for row in rows if row.values.shape[1] or len(row.values)}
        if len(features) > 1:
            raise InputError(
                f"series have {', '.join(map(str, sorted(features)))} features, expected one number of them"
            )
        shape = len(rows), max(1, *(len(row.values) for row in rows)), next(iter(features), 1)
        x, spans = torch.zeros(shape, dtype=dtype), torch.zeros(shape[:2], dtype=dtype)
        mask = torch.zeros(shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            count = len(row.values)
            if count:
                x[i, :count] = torch.from_numpy(row.values).to(dtype)
                spans[i, :count] = torch.from_numpy(row.spans).to(dtype)
                mask[i, :count] = torch.from_numpy(row.observed)
        lengths = torch.tensor([len(row.values) for row in rows])
        start = torch.tensor([row.start for row in rows], dtype=torch.float64)
        return Batch(x, spans, lengths, mask, start, _others([row.others for row in rows]), unit)

    def samples(self, times: Any, name: str = "times") -> tuple[Times, np.ndarray]:
        """The times of the samples of a series, in order and merged, and of each row the sample that it is in.

        Raises:
            InputError: times that cannot be used.
        """
        rows, order = self._sorted(read(times, name), name)
        new = self._new(rows)
        place = np.empty(len(rows), dtype=np.int64)
        place[order] = np.cumsum(new) - 1
        return rows[new], place

    def _new(self, times: Times) -> np.ndarray:
        """Which rows of sorted times begin a sample."""
        new = np.concatenate(([True], times.gaps() > 0))[: len(times)]
        return np.ones_like(new) if self.duplicates == "keep" else new

    def _row(self, one: Any, number: int, unit: Unit) -> _Row:
        times, values, observed, others = _taken_apart(one, number)
        name = f"times of series {number}"
        values, observed = _values(values, observed, len(times), number)
        times, order = self._sorted(times, name)
        check_resolution(times, name)
        values, observed = values[order], observed[order]
        times, values, observed = self._merged(times, values, observed, name)
        scale = unit.per_tick(times, name)
        first = self.first
        begin = 0.0
        if len(times):
            begin = float(times.ticks[0]) * scale - first
            if self.origin is not None:
                begin, first = self._since(times, unit, scale, name)
        spans = np.concatenate(([first], times.gaps() * scale))[: len(times)]
        return _Row(np.where(observed, values, np.nan), spans, observed, begin, others)

    def _since(self, times: Times, unit: Unit, scale: float, name: str) -> tuple[float, float]:
        """The time of the initial state, and how long before the first sample it is."""
        origin = read([self.origin], "origin")
        own = unit.per_tick(origin, "origin")
        if origin.tick == times.tick:
            # Both are exact, and so is the difference.
            first = float(times.ticks[0] - origin.ticks[0]) * scale
        else:
            first = float(times.ticks[0]) * scale - float(origin.ticks[0]) * own
        if first < 0:
            raise InputError(
                f"{name} begin {-first:g} units before origin, expected none before: give an earlier origin"
            )
        return float(origin.ticks[0]) * own, first

    def _sorted(self, times: Times, name: str) -> tuple[Times, np.ndarray]:
        """The times in order, and the order."""
        order = np.arange(len(times))
        back = np.flatnonzero(np.diff(times.ticks) < 0)
        if not len(back):
            return times, order
        if self.order == "refuse":
            raise InputError(
                f"{name} go back at row {int(back[0]) + 1}, expected an order: sort them, or give order='sort'"
            )
        order = np.argsort(times.ticks, kind="stable")
        return times[order], order

    def _merged(
        self, times: Times, values: np.ndarray, observed: np.ndarray, name: str
    ) -> tuple[Times, np.ndarray, np.ndarray]:
        """One sample of each time, or as many as there are."""
        new = self._new(times)
        if new.all():
            return times, values, observed
        if self.duplicates == "refuse":
            twice = np.flatnonzero(~new)
            raise InputError(
                f"{name} hold one time twice at {len(twice)} rows, the first of them {int(twice[0])}: "
                "give duplicates='mean', 'last' or 'keep'"
            )
        group, count = np.cumsum(new) - 1, int(new.sum())
        seen = np.zeros((count, values.shape[1]), dtype=bool)
        np.logical_or.at(seen, group, observed)
        if self.duplicates == "mean":
            total, number = np.zeros((2, count, values.shape[1]))
            np.add.at(total, group, np.where(observed, values, 0.0))
            np.add.at(number, group, observed)
            return times[new], total / np.maximum(number, 1), seen
        last = np.zeros((count, values.shape[1]), dtype=np.int64)
        np.maximum.at(last, group, np.where(observed, np.arange(len(values))[:, None], 0))
        return times[new], np.take_along_axis(values, last, 0), seen


@dataclass(frozen=True)
class _Row:
    values: np.ndarray
    spans: np.ndarray
    observed: np.ndarray
    start: float
    others: dict[str, Any]


def collate(
    series: Sequence[Any],
    *,
    unit: Any = 1.0,
    first: float = 1.0,
    origin: Any = None,
    duplicates: str = "refuse",
    order: str = "refuse",
    dtype: torch.dtype | None = None,
) -> Batch:
    """A padded batch of series with times of their own; for several batches make a `Collator`, which describes this.

    Returns:
        x, timespans, lengths, what was observed and the start times.
    """
    return Collator(unit, first, origin, duplicates, order, dtype)(series)


def _taken_apart(one: Any, number: int) -> tuple[Times, Any, Any, dict[str, Any]]:
    """Times, values, what was observed (or None) and all else of a series."""
    if isinstance(one, Mapping):
        missing = [name for name in ("times", "values") if name not in one]
        if missing:
            raise InputError(f"series {number} has {', '.join(map(str, one))}, expected times and values")
        parts, rest = (one["times"], one["values"], one.get("mask")), dict(one)
        for name in ("times", "values", "mask"):
            rest.pop(name, None)
        return read(parts[0], f"times of series {number}"), parts[1], parts[2], rest
    if not isinstance(one, tuple | list) or len(one) not in (2, 3):
        raise InputError(
            f"series {number} is {reprlib.repr(one)}, expected (times, values), (times, values, mask) or a mapping "
            "with these names"
        )
    times, values, *observed = one
    return read(times, f"times of series {number}"), values, observed[0] if observed else None, {}


def _values(values: Any, observed: Any, count: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Values `(samples, features)` in float64, and which were observed."""
    array = _plain(values)
    try:
        array = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"values of series {number} are {reprlib.repr(values)}, expected numbers") from None
    array = array[:, None] if array.ndim == 1 and len(array) else array
    array = array.reshape(0, 0) if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != count:
        raise InputError(
            f"values of series {number} have shape {array.shape}, expected ({count}, features), a row a time"
        )
    seen = ~np.isnan(array)
    if observed is None:
        return array, seen
    given = np.asarray(_plain(observed))
    given = given[:, None] if given.ndim == 1 else given
    if (
        given.dtype.kind not in "bui"
        or not np.isin(given, (0, 1)).all()
        or given.shape not in (array.shape, (count, 1))
    ):
        raise InputError(
            f"mask of series {number} has shape {given.shape} and dtype {given.dtype}, expected {array.shape} of True "
            "and False"
        )
    return array, seen & np.broadcast_to(given.astype(bool), array.shape)


def _plain(values: Any) -> Any:
    """A tensor as an array; all else as it is."""
    if not isinstance(values, Tensor):
        return values
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def _others(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len({tuple(sorted(row)) for row in rows}) > 1:
        names = [", ".join(sorted(row)) or "nothing" for row in rows]
        raise InputError(f"series 0 has {names[0]} beside times and values, another has {names[-1]}: give all the same")
    return default_collate(list(rows)) if rows and rows[0] else {}
