"""Which backend a user chose, for the process or for a block."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from solvers.errors import InputError
from solvers.parallel import linear as parallel

#: "auto": compiled where it can be and pays off. "plain": the Python loop. The others give their own path, or an error:
#: "compiled" generated C++; "torch" the same plan in pure torch, which "auto" takes without a compiler; "triton" a
#: GPU kernel (tensors in main memory need Triton's interpreter, TRITON_INTERPRET=1 in the environment); "scan" and
#: "fft" solve a linear field for all times at once, which "auto" does where nothing compiled runs.
BACKENDS = ("auto", "plain", "compiled", "torch", "triton", *parallel.WAYS)

#: Steps below which "auto" does not compile: tracing and compiling take as long as some thousand steps.
WORTHWHILE = 64


class _Choice(threading.local):
    """The choices of each thread; a thread that made none follows the process."""

    name: str | None = None
    least: int | None = None


_process = "auto"

_thread = _Choice()


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise InputError(f"backend is {name!r}, expected one of {', '.join(BACKENDS)}: choose one")
    return name


def set_backend(name: str) -> None:
    """Choose how loops are run from now on: one of `BACKENDS`.

    Raises:
        InputError: an unknown name.
    """
    global _process
    _process = _checked(name)


def get_backend() -> str:
    """The backend in force here."""
    return _thread.name or _process


def least_steps() -> int:
    """Steps below which "auto" does not compile here."""
    return WORTHWHILE if _thread.least is None else _thread.least


@contextlib.contextmanager
def backend(name: str, least: int | None = None) -> Iterator[None]:
    """Choose how loops are run inside a `with` block, in this thread.

    Args:
        name: one of `BACKENDS`.
        least: steps of a sequence from which "auto" compiles; as around the block if left out, and 64 around all. For
            somebody who knows that short sequences will be many: a call of what is compiled costs as much as ten steps.

    Raises:
        InputError: an unknown name, or no number of steps.
    """
    if least is not None and (type(least) is not int or least < 1):
        raise InputError(f"least is {least!r}, expected a whole number of steps, at least 1")
    before = _thread.name, _thread.least
    _thread.name, _thread.least = _checked(name), before[1] if least is None else least
    try:
        yield
    finally:
        _thread.name, _thread.least = before
