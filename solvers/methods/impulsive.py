"""Jumps at the samples: between them a field is integrated as ever, at each one its state jumps.

An impulsive differential equation d x/dt = f(t, x, u) for t in (t_i-1, t_i), x(t_i) = jump(t_i, x(t_i-), u(t_i)). Any
method of this package steps f; what follows it at the end of an interval is here.

Source: Lakshmikantham, Bainov, Simeonov, Theory of Impulsive Differential Equations, 1989, section 1.1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.control import part
from solvers.base.loop import Loop
from solvers.base.solver import Solver
from solvers.base.state import over_state
from solvers.base.substeps import Division
from solvers.protocol import ControlPath, Time


@dataclass(frozen=True)
class Impulsive(Solver):
    """A whole interval of another method, and the jump of the field at its end; none where no time has passed.

    Attributes:
        inner: the method.
        substeps: its equal steps in an interval.
    """

    inner: Solver = field(kw_only=True)
    substeps: int = 1

    @classmethod
    def over(
        cls, inner: Solver, division: Division, clock: Clock, paths: Sequence[ControlPath]
    ) -> tuple[Solver, Division]:
        """The method with jumps, and the intervals of `clock`, in each of which it takes all of its steps.

        Where a bound on the step has cut intervals into different numbers of steps, all take as many as any does.
        """
        steps = division.substeps
        if len(division.clock) > len(clock):
            steps = max(last - first for first, last in itertools.pairwise((0, *division.marks)))
        marks = range(1, len(clock) + 1)
        solver = cls(inner.name, inner.order, inner.stages, inner.needs, inner=inner, substeps=steps)
        return solver, Division(clock, paths, 1, marks)

    @property
    def family(self) -> str:  # type: ignore[override]
        """That of the method."""
        return self.inner.family

    @property
    def adaptive(self) -> bool:  # type: ignore[override]
        """Whether the method chooses its steps."""
        return self.inner.adaptive

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether the method draws noise."""
        return self.inner.stochastic

    def open(self, state: Tensor) -> Any:
        """As the method carries it."""
        return self.inner.open(state)

    def close(self, carried: Any) -> Tensor:
        """The state of what the method carries."""
        return self.inner.close(carried)

    def position(self, carried: Any) -> Tensor:
        """Its first component."""
        return self.inner.position(carried)

    def step(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """One interval; see `Solver.step`."""
        inner, carried, h = self.inner, state, dt / self.substeps
        for j in range(self.substeps):
            path = part(control, j, self.substeps)
            carried = inner.step(field, t + j * h if j else t, h, carried, path)
        return inner.open(self.landed(field, t, dt, inner.close(state), inner.close(carried), control))

    def landed(self, field: Any, t: Time, dt: Time, start: Tensor, end: Tensor, control: ControlPath) -> Tensor:
        """The state after the jump that ends an interval; `start` where no time has passed."""
        if not isinstance(dt, Tensor) and not dt:
            return start
        after: Tensor = field.jump(t + dt, end, control(t + dt))
        return torch.where(torch.as_tensor(over_state(dt == 0)), start, after) if isinstance(dt, Tensor) else after

    def between(self, loop: Loop) -> Loop:
        """The loop without its jumps."""
        return dataclasses.replace(loop, solver=self.inner, substeps=self.substeps)
