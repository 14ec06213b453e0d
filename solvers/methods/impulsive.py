"""Jumps at the samples: between them a field is integrated as ever, at each one its state jumps.

An impulsive differential equation d x/dt = f(t, x, u) for t in (t_i-1, t_i), x(t_i) = jump(t_i, x(t_i-), u(t_i)). Any
method of this package steps f; what follows it at the end of an interval is here.

Source: Lakshmikantham, Bainov, Simeonov, Theory of Impulsive Differential Equations, 1989, section 1.1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers.base.control import Paths, part
from solvers.base.loop import Loop
from solvers.base.series import Series
from solvers.base.solver import Solver
from solvers.base.state import over_state
from solvers.base.substeps import Division
from solvers.protocol import ControlPath, Time


@dataclass(eq=False)
class Arriving:
    """A control path during a step at whose end some samples of a batch jump, and others do not.

    Attributes:
        path: the control path.
        at: 1 for a sample of the batch that jumps, else 0, `(batch, 1)`.
    """

    path: ControlPath
    at: Tensor

    def __call__(self, t: Time) -> object:
        """u at a time."""
        return self.path(t)


@dataclass(frozen=True)
class Impulsive(Solver):
    """A step of another method, or a whole interval of several, and the jump of the field at the end of an interval.

    None where no time has passed.

    Attributes:
        inner: the method.
        substeps: its equal steps in an interval; 1 where intervals are cut, and `Arriving` says where they end.
    """

    inner: Solver = field(kw_only=True)
    substeps: int = 1

    @classmethod
    def over(cls, inner: Solver, division: Division, state: Tensor) -> tuple[Solver, Division]:
        """The method with jumps, and what it steps over."""
        solver = cls(inner.name, inner.order, inner.stages, inner.needs, inner=inner, substeps=division.substeps)
        if division.marks is None:
            return solver, dataclasses.replace(division, substeps=1)
        last = torch.from_numpy(division.marks - 1).to(state.device).expand(len(state), -1)
        at = state.new_zeros(len(state), len(division.clock)).scatter(1, last, 1.0)
        return solver, dataclasses.replace(
            division, paths=Paths(Arriving, path=division.paths, at=Series(at.unsqueeze(-1)))
        )

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
        path = control.path if isinstance(control, Arriving) else control
        for j in range(self.substeps):
            carried = inner.step(field, t + j * h if j else t, h, carried, part(path, j, self.substeps))
        return inner.open(self.landed(field, t, dt, inner.close(state), inner.close(carried), control))

    def landed(self, field: Any, t: Time, dt: Time, start: Tensor, end: Tensor, control: ControlPath) -> Tensor:
        """The state after the jump that ends an interval; `start` where no time has passed."""
        if not isinstance(dt, Tensor) and not dt:
            return start
        after: Tensor = field.jump(t + dt, end, control(t + dt))
        if isinstance(control, Arriving):
            after = torch.where(torch.as_tensor(over_state(control.at != 0)), after, end)
        return torch.where(torch.as_tensor(over_state(dt == 0)), start, after) if isinstance(dt, Tensor) else after

    def between(self, loop: Loop) -> Loop:
        """The loop without its jumps."""
        paths = loop.paths
        if isinstance(paths, Paths) and paths.kind is Arriving:
            paths = paths.columns["path"]
        return dataclasses.replace(loop, solver=self.inner, substeps=self.substeps, paths=paths)
