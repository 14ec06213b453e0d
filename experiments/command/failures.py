"""From a failure to an exit code and a line: the one place where that is decided."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

import typer

from solvers.errors import InputError, NumericalError

PROGRAM = "python -m experiments"

# What typer raises for a wrong command line; the class is public only through its children.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def verdict(failure: BaseException) -> tuple[int, str]:
    """The exit code and the message of a failure; what is no failure of the input or the numerics is raised again."""
    if _is_broken_pipe(failure):
        silence(sys.stdout)
        return 141, ""
    match failure:
        case KeyboardInterrupt():
            return 130, str(failure) or "interrupted"
        case InputError():
            return 2, str(failure)
        case NumericalError():
            return 1, str(failure)
        case OSError(filename=str() | bytes() | os.PathLike()):
            return 2, f"{failure.filename}: {failure.strerror}"
        case OSError():
            # What has no name is a stream: standard output on a full disk.
            silence(sys.stdout)
            return 2, f"standard output, or what was read, failed: {failure.strerror or failure}"
        case MemoryError() | RuntimeError() if _is_out_of_memory(failure):
            return 2, "there is not enough memory for it: choose smaller sizes"
    if isinstance(failure, UsageError):
        context = getattr(failure, "ctx", None)
        path = context.command_path if context is not None else PROGRAM
        return 2, f"{failure.format_message()} (see {path} --help)"  # type: ignore[attr-defined]
    raise failure


def _is_out_of_memory(failure: BaseException) -> bool:
    # torch raises a RuntimeError of its own.
    said = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(failure, MemoryError) or any(words in str(failure) for words in said)


def silence(stream: TextIO) -> None:
    """What is still buffered must not fail again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_broken_pipe(failure: BaseException | None) -> bool:
    # rich turns a broken pipe into SystemExit.
    return isinstance(failure, BrokenPipeError) or (
        isinstance(failure, SystemExit) and _is_broken_pipe(failure.__context__)
    )
