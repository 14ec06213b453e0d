"""Tensors that lie alone between guards, so that a kernel which leaves one of them is found out."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import torch

#: Elements before and after a tensor: more than a tile of samples.
GUARD = 4096
#: A NaN that nobody computes, by the size of its type.
NAN = {2: (torch.int16, 0x7FC5), 4: (torch.int32, 0x7FC1_2345), 8: (torch.int64, 0x7FF8_0000_1234_5678)}


def once(tensor):
    """Every element one time: axes along which a tensor is repeated are cut to one entry."""
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def walled(count, kind):
    """Memory that ends where a page begins which nobody may touch: the process ends where one does."""
    if os.name != "posix":
        return torch.empty(count, dtype=kind)
    page = mmap.PAGESIZE
    size = -(-count * kind.itemsize // page) * page
    pages = mmap.mmap(-1, size + page)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + size
    # 0 is PROT_NONE.
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(page), 0) == 0
    return torch.frombuffer(pages, dtype=kind, count=count, offset=size - count * kind.itemsize)


class Guarded:
    """A copy of a tensor with the same strides; between its elements, before and after them are NaNs.

    Args:
        tensor: what is copied.
        written: whether a kernel may change it.
        wall: after the last element comes no NaN but a page that nobody may touch, even to drop what it holds.
    """

    def __init__(self, tensor, written, wall=False):
        self.tensor, self.written = tensor, written
        kind, nan = NAN[tensor.element_size()]
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        if wall:
            self.memory = walled(GUARD + span, kind).fill_(nan)
        else:
            self.memory = torch.full((span + 2 * GUARD,), nan, dtype=kind, device=tensor.device)
        inside = torch.zeros(len(self.memory), dtype=torch.bool, device=tensor.device)
        self.view = self._seen(self.memory.view(tensor.dtype))
        once(self.view).copy_(once(tensor))
        once(self._seen(inside)).fill_(True)
        self.inside, self.before = inside.cpu().numpy(), self.memory.clone()

    def _seen(self, memory):
        return memory.as_strided(self.tensor.shape, self.tensor.stride(), GUARD)

    def close(self):
        """Nothing but what may be written was, and that is copied back."""
        changed = (self.memory != self.before).cpu().numpy()
        assert not (changed & ~self.inside).any(), "a kernel wrote beside a tensor"
        if self.written:
            once(self.tensor).copy_(once(self.view))
        else:
            assert not changed.any(), "a kernel wrote what it may only read"


class Watch:
    """Checks addresses against the elements of some guarded tensors."""

    def __init__(self, tensors):
        self.tensors, self.looked = [], 0
        self.add(tensors)

    def add(self, tensors):
        """More tensors that may be looked at."""
        self.tensors = sorted([*self.tensors, *tensors], key=lambda t: t.memory.data_ptr())
        self.starts = np.array([t.memory.data_ptr() for t in self.tensors], dtype=np.uint64)

    def check(self, addresses, mask, writes=False):
        """Every address where the mask holds is that of an element; of one that may be written."""
        addresses, mask = np.broadcast_arrays(addresses, mask)
        wanted = addresses[mask.astype(bool)].astype(np.uint64)
        which = np.searchsorted(self.starts, wanted, side="right").astype(np.int64) - 1
        for k in np.unique(which):
            assert k >= 0, "a kernel looks outside of its tensors"
            tensor = self.tensors[k]
            at, left = np.divmod(wanted[which == k] - self.starts[k], tensor.tensor.element_size())
            fits = at < len(tensor.inside)
            assert not left.any() and fits.all() and tensor.inside[at].all(), "a kernel looks beside a tensor"
            assert tensor.written or not writes, "a kernel writes what it may only read"
        self.looked += len(wanted)
