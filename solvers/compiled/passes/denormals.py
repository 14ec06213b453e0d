"""Numbers below the normal ones (in float32, below 1.2e-38), which are zero in the loops while they run.

A gradient that vanishes over a long sequence ends in such numbers, and on many processors each operation on one takes
as long as a hundred others. Whether they are flushed to zero is a mode of each thread. The generated C++ sets it in
every thread that runs it; here it is set in the threads that PyTorch shares its own operations out to.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from solvers.errors import InputError

#: Says what becomes of them: "flush" or "keep"; "flush" when not set.
DENORMALS = "NEURALOSC_DENORMALS"

#: Bytes that hold what C calls the floating-point environment, on every system.
_ROOM = 256


def flushing() -> bool:
    """Whether loops are to flush them.

    Raises:
        InputError: the variable says something else.
    """
    asked = os.environ.get(DENORMALS, "")
    if asked not in ("", "flush", "keep"):
        raise InputError(f"{DENORMALS} is {asked!r}, expected 'flush' or 'keep'")
    return asked != "keep"


def flushed_here(smallest: float = 2.0**-1022) -> bool:
    """Whether this thread flushes them now."""
    return smallest * 0.5 == 0


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Flush them in this thread and in those that PyTorch shares its operations out to, and restore the mode after.

    Where this thread flushes them already, whoever had it do so has chosen: nothing is set and nothing restored. The
    others are taken to be in the mode of this thread before. They are reached where PyTorch's threads are those of
    GNU's OpenMP (its builds for Linux); those of LLVM's take over the mode of this thread by themselves on x86.
    """
    if not flushing() or flushed_here() or not torch.set_flush_denormal(True):
        yield
        return
    try:
        threads, found = torch.get_num_threads(), _environment()
        if threads == 1 or found is None:
            yield
            return
        parallel, get, put = found
        before, during = (ctypes.create_string_buffer(_ROOM) for _ in range(2))
        get(during)
        # Threads that start now take over the mode of this one: they must not start in one that is to end.
        torch.set_flush_denormal(False)
        get(before)
        parallel(put, during, threads, 0)
        try:
            yield
        finally:
            parallel(put, before, threads, 0)
    finally:
        torch.set_flush_denormal(False)


@functools.lru_cache(maxsize=1)
def _environment() -> tuple[Any, Any, Any] | None:
    """What calls a function in all threads of PyTorch, and what reads and sets the mode of one; None where unknown."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel, get, put = library.GOMP_parallel, library.fegetenv, library.fesetenv
    except (OSError, AttributeError):
        return None
    parallel.restype, parallel.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    return parallel, get, ctypes.cast(put, ctypes.c_void_p)
