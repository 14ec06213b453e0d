"""Checkpointing: keep the states at a few intervals, recompute the rest when the gradient is wanted."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from solvers.base.gradient import GRADIENTS, Gradient
from solvers.base.kept import Kept, Versions
from solvers.base.leaves import Leaves
from solvers.base.loop import Loop
from solvers.base.segments import Cut
from solvers.base.state import parts_of
from solvers.base.values import transformed
from solvers.errors import InputError


@dataclass(frozen=True)
class Checkpoint(Gradient):
    """The gradient of backprop for one more forward pass: only the states between segments are kept.

    The loop is cut into segments of equal length. What autograd would store is stored for one segment at a time, so
    that with sqrt(T) segments the memory above the inputs and outputs grows like sqrt(T).

    Attributes:
        segments: number of segments; about sqrt(T) when None.
        budget: bytes that may be stored; the fewest segments that keep within it are chosen, and none (plain backprop)
            where everything fits.

    Source: Griewank & Walther, ACM Trans. Math. Softw. 26 (2000); Chen et al., arXiv:1604.06174.
    """

    segments: int | None = None
    budget: int | None = None

    compilable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("segments", "budget"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} of gradient 'checkpoint' is {value!r}, expected a positive integer or None")
        if self.segments is not None and self.budget is not None:
            raise InputError("gradient 'checkpoint' was given both segments and a budget: give one of them")

    def run(self, loop: Loop, state: Tensor) -> list[Any]:
        """The loop, segment by segment."""
        carried = loop.solver.open(state)
        if not len(loop) or not torch.is_grad_enabled() or transformed():
            return loop.advance(carried, 0, len(loop))
        edges = self.edges(loop, carried)
        if len(edges) == 2:
            return loop.advance(carried, 0, len(loop))
        states: list[Any] = []
        kept = Kept(loop)
        for first, last in itertools.pairwise(edges):
            states += checkpoint(_Segment(loop, kept, first, last), carried, use_reentrant=False)
            carried = states[-1]
        return states

    def cut(self, loop: Loop, carried: Any, fitting: int) -> Cut | None:
        """The same segments: the state is kept wherever one begins."""
        edges = [edge * loop.substeps for edge in self.edges(loop, carried)]
        return Cut(edges, edges[:-1]) if len(edges) > 2 else None

    def edges(self, loop: Loop, carried: Any) -> list[int]:
        """The intervals at which segments begin, and the end of the last one.

        Raises:
            InputError: the budget is too small for any number of segments.
        """
        total = len(loop)
        count = min(total, self.segments or math.ceil(math.sqrt(total)))
        if self.budget is not None:
            count = self._within(self.budget, loop, carried)
        return [round(k * total / count) for k in range(count + 1)]

    def _within(self, budget: int, loop: Loop, carried: Any) -> int:
        """The fewest segments that keep within the budget."""
        total, kept = len(loop), _bytes(parts_of(carried))
        per_interval = _stored_by_interval(loop, carried)
        sizes = {count: count * kept + math.ceil(total / count) * per_interval for count in range(2, total + 1)}
        if total * per_interval <= budget:
            return 1
        fitting = [count for count, size in sizes.items() if size <= budget]
        if not fitting:
            least = min(sizes.values(), default=total * per_interval)
            raise InputError(
                f"a budget of {budget} bytes is too small for gradient 'checkpoint' here, which needs at least "
                f"{least}: raise it, or use gradient 'reversible' with a reversible solver"
            )
        return fitting[0]


class _Segment:
    """Intervals `first` to `last` - 1, to be stepped once, and then again with the field as it was the first time."""

    def __init__(self, loop: Loop, kept: Kept, first: int, last: int) -> None:
        self.loop: Loop | None = loop
        self.kept, self.first, self.last = kept, first, last
        self.running = False

    def __call__(self, carried: Any) -> list[Any]:
        """The carried states after each."""
        loop, kept = self.loop, self.kept
        if loop is not None and self.running:
            # A step that differentiates by itself asks for what it has computed up to there.
            return loop.advance(carried, self.first, self.last)
        if loop is not None:
            self.running = True
            try:
                states = loop.advance(carried, self.first, self.last, partial(self._interval, loop))
            finally:
                # Not held any longer: the field may hold the states, and with them what steps again.
                self.loop = None
            self.versions = Versions.of(kept.leaves(self.first, self.last))
            return states
        kept.check(self.versions)
        with kept.snapshot.counting():
            return kept.loop.advance(carried, self.first, self.last, kept.again if self.first == 0 else None)

    def _interval(self, loop: Loop, i: int, carried: Any) -> Any:
        return self.kept.interval(loop, i, carried)


def _bytes(tensors: Any) -> int:
    """Memory of the distinct storages of some tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _stored_by_interval(loop: Loop, carried: Any) -> int:
    """Bytes that autograd stores for one interval, parameters and inputs not counted."""
    stored: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        stored.append(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        start = tuple(part.detach().requires_grad_(True) for part in parts_of(carried))
        loop.stretch(0, 1).interval(0, start if isinstance(carried, tuple) else start[0])
    known = {t.untyped_storage().data_ptr() for t in Leaves(loop, 0, 1).tensors.values()}
    return _bytes(t for t in stored if t.untyped_storage().data_ptr() not in known)


GRADIENTS.add("checkpoint", Checkpoint("checkpoint"))
