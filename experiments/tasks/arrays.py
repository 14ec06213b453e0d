"""Reading named arrays from files of NumPy, checked against what a task expects of them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from solvers.errors import InputError


def needed(task: str, data_dir: str | None, name: str) -> Path:
    """The file of that name in the folder that a task was given.

    Raises:
        InputError: no folder was given, or there is no such file.
    """
    if data_dir is None:
        raise InputError(f"task {task!r} needs the file {name}: give --data-dir the folder that holds it")
    path = Path(data_dir).expanduser() / name
    if not path.is_file():
        state = "no such file" if path.parent.is_dir() else "no such folder"
        raise InputError(f"{name} of task {task!r} not found in {path.parent}: {state}; give --data-dir its folder")
    return path


def given_path(task: str, option: str, value: Any, data_dir: str | None) -> str:
    """The path of a text file as an option gives it, as it is kept; with a folder its name in that, "" for none.

    Raises:
        InputError: it is no path.
    """
    if not isinstance(value, str):
        raise InputError(f"task {task!r}: option {option!r} is {value!r}: expected the path of a text file")
    # A run is gone on with from any folder.
    return str(Path(value).expanduser().absolute()) if value and data_dir is None else value


def path_in(data_dir: str | None, kept: str) -> Path:
    """Where that file is."""
    return Path(kept) if data_dir is None else Path(data_dir).expanduser() / kept


def read_arrays(path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, np.ndarray]:
    """The arrays of these names in a .npz file; nothing that it holds is executed.

    Args:
        path: the file.
        shapes: names, each with the shape that is expected; None for any number.

    Raises:
        InputError: it cannot be read, an array is missing, or one is of another shape.
    """
    try:
        # Opened here: NumPy leaves a file that is none open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            absent = [name for name in shapes if name not in file.files]
            if absent:
                held = ", ".join(file.files)
                raise InputError(f"{path} has no array {absent[0]!r}: it holds {held}; fetch the file again")
            arrays = {name: file[name] for name in shapes}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; fetch the file again") from error
    except (ValueError, TypeError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged or no .npz file ({reason:.80}); fetch the file again") from error
    for name, expected in shapes.items():
        shape = arrays[name].shape
        fits = len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in expected)
            raise InputError(f"{path} holds {name!r} of shape {shape}: expected ({wanted})")
    return arrays
