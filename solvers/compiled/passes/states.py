"""The states of a compiled solve, seen as a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from solvers.base.solver import Solver
from solvers.compiled.step.layout import Layout
from solvers.errors import InputError


class States(Sequence[Any]):
    """The carried states after every interval, whole: taken apart only where one is asked for.

    Attributes:
        outs: each packed component `(time, batch, hidden)`, or the position alone.
        end: the last state, packed.
    """

    def __init__(self, solver: Solver, layout: Layout, outs: Sequence[Tensor], end: Tensor) -> None:
        self.solver, self.layout, self.outs, self.end = solver, layout, tuple(outs), end
        #: Whether there are the states, and not the positions and the last state alone.
        self.complete = len(self.outs) == layout.total
        self._parts: list[tuple[Tensor, ...]] | None = None

    def __len__(self) -> int:
        return len(self.outs[0])

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if i in (-1, len(self) - 1):
            return self.layout.taken(self.end)
        self._check()
        if self._parts is None:
            # Once for all: taking them one by one would make the backward pass quadratic in time.
            self._parts = [out.unbind(0) for out in self.outs]
        return self.layout.joined([part[i] for part in self._parts])

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def states(self) -> Tensor:
        """`(batch, time, components, hidden)`."""
        self._check()
        whole: Tensor = self.solver.close(self.layout.joined(self.outs))
        return whole.transpose(0, 1)

    def positions(self) -> Tensor:
        """`(batch, time, hidden)`."""
        first = (
            self.outs[0]
            if self.layout.single or not self.complete
            else self.solver.position(self.layout.joined(self.outs))
        )
        return first.transpose(0, 1)

    def _check(self) -> None:
        if not self.complete:
            raise InputError(
                "the states were asked of a solve that was told to keep positions_only: leave that option out"
            )
