"""Labelled series in the .ts files of the UEA and UCR archives, read by aeon."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solvers.errors import InputError, listed

PARTS = ("TRAIN", "TEST")


@dataclass(frozen=True)
class Labelled:
    """What a file holds, in its order.

    Attributes:
        series: each `(time, channels)`, float64, NaN where a value is missing.
        labels: the class of each, in lower case, as aeon reads it.
        classes: all labels, in the order of the file's header.
    """

    series: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]


def files(task: str, data_dir: str | None, dataset: str) -> tuple[Path, Path]:
    """The training and the test file of a set: those of a folder, or those that aeon brings along.

    Raises:
        InputError: there is no such set, or no aeon.
    """
    folder = shipped(task) if data_dir is None else Path(data_dir).expanduser()
    train, test = (folder / dataset / f"{dataset}_{part}.ts" for part in PARTS)
    for path in (train, test):
        if not path.is_file() and data_dir is not None:
            raise InputError(f"task {task!r}: there is no {path}: give --data-dir a folder with {dataset}/{path.name}")
        if not path.is_file():
            brought = sorted(file.parent.name for file in folder.glob("*/*_TRAIN.ts") if _is_set(file))
            raise InputError(
                f"task {task!r}: no set {dataset!r} comes with aeon: give --data-dir a folder with "
                f"{dataset}/{path.name}; with aeon come {listed(dict.fromkeys(brought))}"
            )
    return train, test


def shipped(task: str) -> Path:
    """The folder of the sets that aeon brings along.

    Raises:
        InputError: there is no aeon.
    """
    return Path(_aeon(task).__file__).parent / "data"


def read_ts(task: str, path: Path, labelled: bool = True) -> Labelled:
    """The series of a .ts file, of any lengths; not `labelled`, of a file with or without classes, which are left out.

    Raises:
        InputError: there is no aeon; the file is damaged, has no classes, or has values that cannot be used.
    """
    load: Callable[..., Any] = _aeon(task).load_from_ts_file
    try:
        found, names, header = load(str(path), return_meta_data=True)
    except (OSError, ValueError, LookupError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        # aeon names the open file in the middle of what it says.
        reason = re.sub(r"<_io\.\w+ [^>]*>", "the file", " ".join(str(error).split()))
        raise InputError(f"{path} is damaged or no .ts file ({reason:.160})") from error
    if header["timestamps"]:
        # aeon's reader would lose the signs of the values, and the times.
        raise InputError(f"{path} has @timeStamps true: only series of evenly spaced samples can be read")
    if labelled and (header["targetlabel"] or not header["classlabel"] or not len(header["class_values"])):
        raise InputError(f"{path} names no classes: expected a header with @classLabel true and the labels")
    if not len(found):
        raise InputError(f"{path} holds no series after its @data: fetch the file again")
    series = tuple(np.asarray(one, dtype=np.float64).T for one in found)
    for number, one in enumerate(series, start=1):
        if np.isinf(one).any():
            raise InputError(
                f"{path}: series {number} has an infinite value: expected numbers, or ? where one is missing"
            )
    if not labelled:
        return Labelled(series, (), ())
    classes = tuple(str(label) for label in header["class_values"])
    # aeon writes "nan" as "NaN", in labels too.
    labels = tuple(str(name).strip().lower() for name in names)
    if len(set(classes)) < len(classes):
        raise InputError(f"{path} names a class twice in its header: {listed(classes)}; capitals make no difference")
    for number, label in enumerate(labels, start=1):
        if label not in classes:
            raise InputError(f"{path}: series {number} is of class {label!r}: its header names {listed(classes)}")
    return Labelled(series, labels, classes)


def _is_set(train: Path) -> bool:
    return train.name == f"{train.parent.name}_TRAIN.ts" and train.with_name(f"{train.parent.name}_TEST.ts").is_file()


def _aeon(task: str) -> Any:
    """aeon's module of data sets; imported here, since only those who read such files need it.

    Raises:
        InputError: it is not installed, or does not fit what is.
    """
    try:
        import aeon.datasets
    except ImportError as error:
        install = "pip install 'neuralosc[data]' (in a checkout '.[data]'; Python 3.11 or newer)"
        if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == "aeon":
            raise InputError(f"task {task!r} needs aeon: {install}") from error
        reason = " ".join(str(error).split())
        raise InputError(f"task {task!r} needs aeon, which cannot be imported ({reason:.120}): {install}") from error
    return aeon.datasets
