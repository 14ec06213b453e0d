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
    """The backend of each thread; a thread that chose none follows the process."""

    name: str | None = None


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


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose how loops are run inside a `with` block, in this thread."""
    before, _thread.name = _thread.name, _checked(name)
    try:
        yield
    finally:
        _thread.name = before
