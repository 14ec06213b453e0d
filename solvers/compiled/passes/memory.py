"""Large buffers, used again: fresh memory costs a page fault for every few kilobytes, as much as computing on them."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Bytes of unused buffers that are kept.
KEPT = 1 << 30
#: Smaller tensors are left to torch.
LEAST = 1 << 20

#: Bytes of the buffers in use, and the most there were since `count` was last called.
_lent = _most = 0
_free: list[Any] = []
_lock = threading.RLock()


class _Lent(np.ndarray):
    """A buffer in use: its end of life, when the last tensor over it is gone, gives the buffer back."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor with any content, over a used buffer where one fits; on other devices torch has its own."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    _note(size)
    lent = _taken(size).view(_Lent)
    weakref.finalize(lent, _give, lent.view(np.ndarray).base if lent.base is None else lent.base, size)
    whole = torch.from_numpy(lent)
    # Vectors and cache lines want an aligned start.
    shift = -whole.data_ptr() % 64
    return whole[shift : shift + size].view(dtype).view(shape)


def _taken(size: int) -> Any:
    with _lock:
        fits = [b for b in _free if size + 64 <= b.nbytes <= 2 * size + 64]
        if fits:
            best = min(fits, key=lambda b: b.nbytes)
            _free[:] = [b for b in _free if b is not best]
            return best
    return np.empty(size + 64, dtype=np.uint8)


def _give(buffer: Any, size: int) -> None:
    _note(-size)
    with _lock:
        _free.append(buffer)
        while sum(b.nbytes for b in _free) > KEPT:
            del _free[0]


def _note(size: int) -> None:
    global _lent, _most
    with _lock:
        _lent += size
        _most = max(_most, _lent)


def count() -> tuple[int, int]:
    """Bytes of the buffers in use, and the most there were since the last call."""
    global _most
    with _lock:
        bytes_lent = (_lent, _most)
        _most = _lent
    return bytes_lent


def release() -> None:
    """Give the buffers that the compiled loop keeps for its next call back to the system."""
    with _lock:
        _free.clear()
