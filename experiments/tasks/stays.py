"""Reading the intensive-care stays of the PhysioNet/CinC Challenge 2012, from its text files or from one of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.tasks.arrays import needed, read_arrays
from solvers.errors import InputError

#: What is measured again and again, and what is noted once on admission.
PARAMETERS = (
    *("Weight", "GCS", "HR", "NIDiasABP", "NIMAP", "NISysABP", "RespRate", "Temp", "Urine", "HCT", "BUN", "Creatinine"),
    *("Glucose", "HCO3", "Mg", "Platelets", "K", "Na", "WBC", "pH", "PaCO2", "PaO2", "DiasABP", "FiO2", "MAP"),
    *("MechVent", "SysABP", "SaO2", "Albumin", "ALP", "ALT", "AST", "Bilirubin", "Lactate", "Cholesterol"),
    *("TroponinI", "TroponinT"),
)
STATIC = ("Age", "Gender", "Height", "ICUType")

ARRAYS, TEXTS, OUTCOMES = "set-a.npz", "set-a", "Outcomes-a.txt"
#: What stands for a value that is not known.
UNKNOWN = -1.0


@dataclass(frozen=True)
class Stays:
    """Stays in the order of their record numbers, and all observations, by stay and time, as they were recorded.

    Attributes:
        record: record number of each stay.
        died: 1 of those who died in hospital, else 0.
        static: `(stays, 4)`, NaN where it is not known.
        stay, minute, parameter, value: of each observation: a place in `record`, minutes since admission, a place in
            `PARAMETERS`, what was measured.
    """

    record: np.ndarray
    died: np.ndarray
    static: np.ndarray
    stay: np.ndarray
    minute: np.ndarray
    parameter: np.ndarray
    value: np.ndarray


def read_stays(task: str, data_dir: str | None) -> Stays:
    """The stays of set A in a folder: of set-a.npz, or of set-a/*.txt and Outcomes-a.txt as they were published.

    Raises:
        InputError: there are neither, or they are damaged.
    """
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder is not None and not (folder / ARRAYS).is_file() and (folder / OUTCOMES).is_file():
        return _of_texts(folder)
    if folder is not None and not (folder / ARRAYS).is_file():
        state = "no such file" if folder.is_dir() else "no such folder"
        raise InputError(
            f"{ARRAYS} of task {task!r} not found in {folder}: {state}; give --data-dir the folder that holds it, or "
            f"{OUTCOMES} and the folder {TEXTS} with a file RecordID.txt for each stay"
        )
    return _of_arrays(needed(task, data_dir, ARRAYS))


def _of_arrays(path: Path) -> Stays:
    names = {"parameter_names": (len(PARAMETERS),), "static_names": (len(STATIC),)}
    lists = dict.fromkeys(("stay", "minute", "parameter", "value", "record_id", "in_hospital_death"), (None,))
    arrays = read_arrays(path, {**names, **lists, "static": (None, len(STATIC))})
    stay, parameter, record = (arrays[name] for name in ("stay", "parameter", "record_id"))
    known = {name: list(arrays[name].astype(str)) for name in names}
    for name, wanted in (("parameter_names", PARAMETERS), ("static_names", STATIC)):
        if sorted(known[name]) != sorted(wanted):
            raise InputError(f"{path} holds the {name} {', '.join(known[name])}: expected {', '.join(wanted)}")
    observations = {len(arrays[name]) for name in ("stay", "minute", "parameter", "value")}
    stays = {len(arrays[name]) for name in ("record_id", "in_hospital_death", "static")}
    if len(observations) > 1 or len(stays) > 1 or not len(stay) or not len(record):
        raise InputError(f"{path} holds arrays of lengths that do not fit each other; fetch the file again")
    if stay.max() >= len(record) or parameter.max() >= len(PARAMETERS) or min(stay.min(), parameter.min()) < 0:
        raise InputError(f"{path} holds observations of stays or parameters that are none; fetch the file again")
    places = np.array([PARAMETERS.index(name) for name in known["parameter_names"]])
    order = [known["static_names"].index(name) for name in STATIC]
    return _ordered(
        record,
        arrays["in_hospital_death"],
        arrays["static"][:, order],
        (stay, arrays["minute"], places[parameter], arrays["value"]),
    )


def _of_texts(folder: Path) -> Stays:
    died = _outcomes(folder / OUTCOMES)
    records = list(died)
    static = np.full((len(records), len(STATIC)), np.nan)
    seen: list[tuple[int, int, int, float]] = []
    for number, record in enumerate(records):
        path = folder / TEXTS / f"{record}.txt"
        for line, minute, name, value in _lines(path):
            if name in STATIC:
                static[number, STATIC.index(name)] = value
            elif name in PARAMETERS:
                seen.append((number, minute, PARAMETERS.index(name), value))
            elif name != "RecordID":
                raise InputError(f"{path}, line {line}: there is no parameter {name!r}; fetch the file again")
    if not seen:
        raise InputError(f"the files of {folder / TEXTS} hold no observation; fetch them again")
    observations = tuple(np.array(column) for column in zip(*seen, strict=True))
    return _ordered(np.array(records), np.array([*died.values()]), static, observations)


def _outcomes(path: Path) -> dict[int, int]:
    """Whether each stay ended in death, by record number."""
    head, *rows = [line.split(",") for line in _read(path).splitlines()]
    try:
        record, death = head.index("RecordID"), head.index("In-hospital_death")
        outcomes = {int(row[record]): int(row[death]) for row in rows}
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} holds no outcomes ({error}): expected RecordID and In-hospital_death") from error
    if not outcomes:
        raise InputError(f"{path} holds no stay; fetch the file again")
    return outcomes


def _lines(path: Path) -> list[tuple[int, int, str, float]]:
    """Number, minute, parameter and value of every line of a stay."""
    parsed = []
    for number, line in enumerate(_read(path).splitlines()[1:], 2):
        try:
            time, name, value = line.split(",")
            hours, minutes = time.split(":")
            # A line of the published files has no name and no value that is one.
            if name:
                parsed.append((number, 60 * int(hours) + int(minutes), name, float(value)))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {line!r:.60}, expected HH:MM,Parameter,Value") from error
    return parsed


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error.reason}; fetch the file again") from error


def _ordered(record: np.ndarray, died: np.ndarray, static: np.ndarray, observations: tuple[np.ndarray, ...]) -> Stays:
    """Stays by record number, without what is not known."""
    if not np.isin(died, (0, 1)).all():
        raise InputError(f"an outcome is {died[~np.isin(died, (0, 1))][0]}: expected 1 for a death in hospital, else 0")
    order = np.argsort(record, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    stay, minute, parameter, value = observations
    stay, minute, value = place[stay.astype(np.int64)], minute.astype(np.int64), value.astype(np.float64)
    static = static.astype(np.float64)
    static = np.where(static == UNKNOWN, np.nan, static)
    known = (value != UNKNOWN) & np.isfinite(value)
    # Stable: of one minute as they were recorded.
    chosen = np.lexsort((minute, stay))
    chosen = chosen[known[chosen]]
    columns = (column[chosen] for column in (stay, minute, parameter.astype(np.int64), value))
    return Stays(record[order].astype(np.int64), died[order].astype(np.int64), static[order], *columns)
