"""Series out of a table: columns are read from files, and rows are sorted into series in the order of time."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralosc import Collator
from neuralosc.data.times import Times, Unit, read
from solvers.errors import InputError, unknown

PARQUET = (".parquet", ".pq")
#: What a date of ISO 8601 begins with, and what ends one that says its time zone.
DATE, ZONE = r"\s*\d{4}-?\d{2}", r"(?:Z|[+-]\d{2}:?\d{2})\s*$"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Layout:
    """What the columns of a table are.

    Attributes:
        id: column that names the series of a row; empty where a file is one series.
        time: column of times; empty where rows are one step apart.
        time_format: how dates are written, as in `datetime.strptime`; empty for ISO 8601.
        inputs: columns that a network is shown; empty for every column of numbers that is none of the others.
        targets: columns that are asked for.
        labels: the target is the name of a class.
        order, duplicates: as of `Collator`.
    """

    id: str = ""
    time: str = ""
    time_format: str = ""
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    labels: bool = False
    order: str = "refuse"
    duplicates: str = "refuse"


@dataclass(frozen=True)
class Recorded:
    """One series, in the order of time.

    Attributes:
        name: its id, or the name of its file.
        times: numbers, dates or durations, `(samples,)`; the numbers of the rows where there are no times.
        values: inputs, float64 `(samples, inputs)`, NaN where there is none.
        targets: float64 `(samples, targets)`, the same; `(samples, 0)` of classes, and where nobody asks.
        label: the class.
        utc: the dates had time zones, and are those of UTC.
    """

    name: str
    times: np.ndarray
    values: np.ndarray
    targets: np.ndarray
    label: str | None = None
    utc: bool = False

    @property
    def ticks(self) -> Times:
        """The times as exact numbers."""
        return read(self.times, f"times of series {self.name!r}")


def checksum(paths: Sequence[Path]) -> str:
    """Of the contents of files, in their order."""
    return hashlib.sha256("".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths).encode()).hexdigest()


def frames(paths: Sequence[Path], layout: Layout) -> list[Any]:
    """The tables of the files, which must have the columns of the layout; ids and classes are text.

    Raises:
        InputError: a file is missing, cannot be read or lacks a column; the line lists those it has.
    """
    text = [name for name in (layout.id, *(layout.targets if layout.labels else ())) if name]
    tables = []
    for path in paths:
        table = _table(path, text)
        for role, names in (("id", [layout.id]), ("time-column", [layout.time]), ("inputs", layout.inputs)):
            _require(path, table, role, names)
        _require(path, table, "target", layout.targets)
        if not len(table):
            raise InputError(f"{path} has no rows below its header: expected one sample a row")
        tables.append(table)
    return tables


def _require(path: Path, table: Any, role: str, names: Sequence[str]) -> None:
    for name in names:
        if name and name not in table.columns:
            message = f"{unknown('column', name, list(table.columns))}".partition(":")[2].strip()
            raise InputError(f"{path} has no column {name!r} (--{role}): {message}")


def _table(path: Path, text: Sequence[str]) -> Any:
    # Imported here: it takes half a second, and only those who read a table need it.
    import pandas as pd

    try:
        if path.suffix.lower() in PARQUET:
            table = pd.read_parquet(path)
            for name in text:
                if name in table.columns:
                    table[name] = table[name].map(str, na_action="ignore").astype(object)
            return table
        # What a file calls its columns decides, not what pandas would make of names that are given twice.
        header = [str(name) for name in pd.read_csv(path, nrows=1, header=None, dtype=str).iloc[0]]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise InputError(f"{path} has the column {twice[0]!r} twice: give each a name of its own")
        # From its third version on pandas reads numbers exactly, and warns of being told to.
        exact: dict[str, Any] = {} if int(pd.__version__.partition(".")[0]) > 2 else {"float_precision": "round_trip"}
        return pd.read_csv(path, dtype=dict.fromkeys(text, "object"), low_memory=False, **exact)
    except ImportError as error:
        raise InputError(
            f"{path}: pandas reads parquet with the package pyarrow or fastparquet, and neither is installed: install "
            "one, or save the table as CSV"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, pd.errors.ParserError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no table that can be read ({' '.join(str(error).split()):.120})") from error


def input_columns(table: Any, layout: Layout, say: Say) -> tuple[str, ...]:
    """The columns of numbers that are not spoken for.

    Raises:
        InputError: there are none.
    """
    import pandas.api.types as kinds

    spoken_for = {layout.id, layout.time, *layout.targets}
    left = [str(name) for name in table.columns if name not in spoken_for]
    chosen = tuple(name for name in left if kinds.is_numeric_dtype(table[name]) and table[name].notna().any())
    if not chosen:
        raise InputError(f"no column of numbers is left for the inputs, of {', '.join(table.columns)}: give --inputs")
    if len(chosen) < len(left):
        others = ", ".join(name for name in left if name not in chosen)
        say(f"columns without numbers are not shown to the network: {others}")
    return chosen


def numbers(path: Path, table: Any, name: str, role: str) -> np.ndarray:
    """A column of numbers as float64, NaN where a cell is empty.

    Raises:
        InputError: a cell holds something else, or an infinite number.
    """
    import pandas as pd

    column = table[name]
    if not pd.api.types.is_numeric_dtype(column):
        bad = column[pd.to_numeric(column, errors="coerce").isna() & column.notna()]
        if len(bad) or column.notna().any():
            row, cell = (int(bad.index[0]) + 1, bad.iloc[0]) if len(bad) else (1, column.dropna().iloc[0])
            advice = "leave it out" if role == "inputs" else "--target-kind classification takes text"
            raise InputError(f"{path}: column {name!r} (--{role}) holds {cell!r} at row {row}, no number: {advice}")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(values).any():
        row = int(table.index[np.isinf(values)][0]) + 1
        raise InputError(f"{path}: column {name!r} (--{role}) is infinite at row {row}: leave such cells empty")
    return values


def times_of(path: Path, column: Any, layout: Layout) -> tuple[np.ndarray, bool]:
    """A column of times, without empty cells, as numbers, dates or durations; and whether the dates had a time zone.

    Raises:
        InputError: they are none of these.
    """
    import pandas as pd

    kinds = pd.api.types
    if kinds.is_numeric_dtype(column):
        return column.to_numpy(), False
    name, zoned = column.name, isinstance(column.dtype, pd.DatetimeTZDtype)
    if not (kinds.is_datetime64_any_dtype(column) or kinds.is_timedelta64_dtype(column)):
        written = column.astype(str)
        if not layout.time_format and not re.match(DATE, written.iloc[0]):
            # A bare number among durations would be read as nanoseconds.
            column = pd.to_timedelta(written.where(written.str.contains(r"[A-Za-z:]")), errors="coerce")
        else:
            offsets = written.str.contains(ZONE)
            if not layout.time_format and offsets.nunique() > 1:
                raise InputError(f"{path}: column {name!r} has dates with and without a time zone: give all alike")
            zoned = "%z" in layout.time_format if layout.time_format else bool(offsets.any())
            column = pd.to_datetime(written, format=layout.time_format or "ISO8601", utc=zoned, errors="coerce")
        if column.isna().any():
            place = int(np.flatnonzero(column.isna())[0])
            expected = layout.time_format or (
                "numbers, dates of ISO 8601 such as 2026-03-01 08:00 (others by --time-format, such as '%d.%m.%Y'), or "
                "durations such as 00:45:00"
            )
            row = int(written.index[place]) + 1
            raise InputError(
                f"{path}: column {name!r} (--time-column) holds {written.iloc[place]!r} at row {row}, expected "
                f"{expected}"
            )
    if zoned:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    return column.to_numpy(), zoned


def recorded(paths: Sequence[Path], tables: Sequence[Any], layout: Layout, say: Say) -> list[Recorded]:
    """The series of some files; `say` is told of rows that are left out or sorted.

    Raises:
        InputError: cells that cannot be used, times out of order or given twice, several classes in a series.
    """
    groups: dict[str, list[Recorded]] = {}
    for path, table in zip(paths, tables, strict=True):
        for one in _of_file(path, table, layout, say):
            groups.setdefault(one.name, []).append(one)
    sorted_ones: list[str] = []
    series = [_in_order(_joined(parts), layout, sorted_ones) for parts in groups.values()]
    if sorted_ones:
        more = f" and {len(sorted_ones) - 1} more" if len(sorted_ones) > 1 else ""
        say(f"rows of series {sorted_ones[0]!r}{more} were not in the order of time, and are sorted")
    return series


def _of_file(path: Path, table: Any, layout: Layout, say: Say) -> list[Recorded]:
    """The series of one file, as they stand."""
    for name in (layout.id, layout.time):
        empty = table[name].isna() if name else None
        if empty is not None and empty.any():
            say(f"{path.name}: {int(empty.sum())} rows without a value of {name!r} are left out")
            table = table[~empty]
    if not len(table):
        raise InputError(f"{path} has no row with a value of {' and '.join(filter(None, (layout.id, layout.time)))}")
    values = np.stack([numbers(path, table, name, "inputs") for name in layout.inputs], axis=1)
    asked = () if layout.labels else layout.targets
    targets = np.stack([numbers(path, table, name, "target") for name in asked] or [np.zeros(len(table))], axis=1)
    targets = targets[:, : len(asked)]
    times, utc = times_of(path, table[layout.time], layout) if layout.time else (np.arange(len(table)), False)
    places = table.groupby(layout.id, sort=False).indices if layout.id else {path.stem: np.arange(len(table))}
    series = []
    for name, rows in places.items():
        label = _label(name, table[layout.targets[0]].iloc[rows]) if layout.labels and layout.targets else None
        of_its_own = times[rows] if layout.time else np.arange(len(rows))
        series.append(Recorded(str(name), of_its_own, values[rows], targets[rows], label, utc))
    return series


def _label(name: str, column: Any) -> str | None:
    """The class of a series, None where no row has one."""
    found = list(column.dropna().unique())
    if len(found) > 1:
        raise InputError(
            f"series {name!r} has the classes {found[0]!r} and {found[1]!r} in column {column.name!r}: expected one of "
            "each series; is --id the right column?"
        )
    return str(found[0]) if found else None


def _joined(parts: Sequence[Recorded]) -> Recorded:
    """A series that goes on from file to file."""
    first = parts[0]
    if len(parts) == 1:
        return first
    kinds = {(part.times.dtype.kind, part.utc) for part in parts}
    labels = {part.label for part in parts if part.label is not None}
    if len(kinds) > 1 or len(labels) > 1:
        what = "classes" if len(labels) > 1 else "kinds of times"
        raise InputError(f"series {first.name!r} has several {what} in the files: give each series one")
    times, values, targets = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("times", "values", "targets")
    )
    return dataclasses.replace(first, times=times, values=values, targets=targets, label=next(iter(labels), None))


def _in_order(one: Recorded, layout: Layout, sorted_ones: list[str]) -> Recorded:
    """The series with one row a time, in order."""
    if not layout.time:
        return dataclasses.replace(one, times=np.arange(len(one.times)))
    ticks = one.ticks
    back = np.flatnonzero(np.diff(ticks.ticks) < 0)
    if len(back):
        if layout.order == "refuse":
            later, earlier = one.times[back[0]], one.times[back[0] + 1]
            raise InputError(f"times of series {one.name!r} go back, from {later} to {earlier}: give --order sort")
        sorted_ones.append(one.name)
    if layout.duplicates == "refuse":
        ordered = np.sort(one.times)
        twice = ordered[1:][np.diff(np.sort(ticks.ticks)) == 0]
        if len(twice):
            advice = "give --duplicates mean, last or keep" + ("" if layout.id else ", or --id for several series")
            raise InputError(f"series {one.name!r} has several rows of one time, the first {twice[0]}: {advice}")
    collator = Collator(Unit(1.0, ticks.tick is not None), 1.0, None, layout.duplicates, layout.order, dtype=_double())
    both = np.concatenate((one.values, one.targets), axis=1)
    merged = collator([(one.times, both)]).x[0].numpy()
    clean = collator.samples(one.times)[0]
    times = clean.ticks if clean.kind is None else clean.ticks.view(clean.kind)
    inputs = one.values.shape[1]
    return dataclasses.replace(one, times=times, values=merged[:, :inputs], targets=merged[:, inputs:])


def _double() -> Any:
    import torch

    return torch.float64


def class_order(labels: set[str | None]) -> list[str]:
    """Classes as numbers where they are such, else as text."""
    known = [label for label in labels if label is not None]
    try:
        return sorted(known, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(known)


def first_values(targets: np.ndarray) -> np.ndarray:
    """The value of each column, which is the same in all rows that have one."""
    seen = ~np.isnan(targets)
    return targets[seen.argmax(0), np.arange(targets.shape[1])]


def has_target(one: Recorded, names: Sequence[str]) -> bool:
    """Whether there is a target; refuses one that changes."""
    for name, column in zip(names, one.targets.T, strict=True):
        found = np.unique(column[~np.isnan(column)])
        if len(found) > 1:
            raise InputError(
                f"series {one.name!r} has {found[0]:g} and {found[1]:g} in column {name!r}: expected one target of "
                "each series; --horizon asks for the values of later times"
            )
        if not len(found):
            return False
    return True
