"""A field, a solver and an input, ready to be stepped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from solvers.base.clock import Clock
from solvers.base.control import part
from solvers.base.solver import Solver
from solvers.base.state import parts_of
from solvers.errors import NumericalError
from solvers.protocol import ControlPath, Time, check_slope


@dataclass(frozen=True)
class Loop:
    """A field, a solver and an input, ready to be stepped from any interval to any later one."""

    field: Any
    solver: Solver
    paths: Sequence[ControlPath]
    clock: Clock
    substeps: int

    def __len__(self) -> int:
        return len(self.clock)

    def substep(self, i: int) -> tuple[Time, Time]:
        """Start of interval i and the size of its steps."""
        span = self.clock.spans[i]
        return self.clock.starts[i], span if self.substeps == 1 else span / self.substeps

    def path(self, i: int, j: int) -> ControlPath:
        """What drives step j of interval i."""
        return part(self.paths[i], j, self.substeps)

    def interval(self, i: int, carried: Any) -> Any:
        """Interval i in `substeps` equal steps."""
        if self.substeps > 1:
            return self.steps(i, carried, 0, self.substeps)
        return self.solver.step(self.field, self.clock.starts[i], self.clock.spans[i], carried, self.paths[i])

    def steps(self, i: int, carried: Any, first: int, last: int) -> Any:
        """Steps `first` to `last` - 1 of interval i."""
        t, h = self.substep(i)
        for j in range(first, last):
            carried = self.solver.step(self.field, t + j * h if j else t, h, carried, self.path(i, j))
        return carried

    def stretch(self, first: int, last: int) -> Loop:
        """The loop over intervals `first` to `last` - 1 alone."""
        clock = Clock(self.clock.starts[first:last], self.clock.spans[first:last])
        return Loop(self.field, self.solver, self.paths[first:last], clock, self.substeps)

    def advance(
        self, carried: Any, first: int, last: int, interval: Callable[[int, Any], Any] | None = None
    ) -> list[Any]:
        """The carried states after intervals `first` to `last` - 1; `interval` replaces the plain stepping of one."""
        step = interval or self.interval
        states: list[Any] = []
        for i in range(first, last):
            before = carried
            try:
                carried = step(i, carried)
            except NumericalError as error:
                raise error.at(step=i, time=self.clock.time_at(i, error.sample)) from None
            if i == 0:
                for old, new in zip(parts_of(before), parts_of(carried), strict=True):
                    check_slope(self.field, old, new)
            states.append(carried)
        return states
