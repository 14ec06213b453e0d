"""Any explicit method made reversible, and the steps of a solver taken back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.base.solver import SOLVERS, Paired, Solver, register
from solvers.base.state import over_state
from solvers.errors import InputError
from solvers.protocol import ControlPath, Time


@dataclass(frozen=True)
class ReversiblePair(Paired, Solver):
    """Any explicit method made reversible, by stepping a pair of states (y, z) with its increments Psi.

        y+ = c y + (1 - c) z + Psi(t, dt, z)
        z+ = z - Psi(t + dt, -dt, y+)

    Both start from the state, y is the state. Solving the two lines backwards undoes the step up to rounding, which
    grows like c^-n over n steps.

    The difference y - z is a solution too, and grows where the field decays: by about c exp(a dt) a step for a decay
    rate a. A damped field (a coRNN, say) therefore needs a dt below -log(c) / a, that is a small dt or a smaller
    coupling, and long sequences of it are better served by gradient 'checkpoint'.

    Attributes:
        base: name of the explicit method.
        coupling: c, in (0, 1].

    Source: McCallum & Foster, Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv:2410.11648.
    """

    base: str = field(default="midpoint", metadata={"option": True})
    coupling: float = field(default=0.999, metadata={"option": True})

    family: ClassVar[str] = "reversible"

    def __post_init__(self) -> None:
        method = SOLVERS[self.base]
        if method.family != "explicit":
            raise InputError(
                f"base of solver {self.name!r} is {self.base!r}, expected an explicit method such as 'rk4'"
            )
        if not 0 < self.coupling <= 1:
            raise InputError(f"coupling of solver {self.name!r} is {self.coupling!r}, expected above 0 and at most 1")
        object.__setattr__(self, "order", method.order)
        object.__setattr__(self, "stages", 2 * method.stages)

    def _increment(self, field: Any, t: Time, dt: Time, x: Tensor, control: ControlPath) -> Tensor:
        return SOLVERS[self.base].step(field, t, dt, x, control) - x

    def _mix(self, dt: Time) -> Time:
        """The coupling, or 1 in samples whose span is zero: where no time passes the pair must not mix either."""
        if isinstance(dt, Tensor):
            return over_state(torch.where(dt == 0, torch.ones_like(dt), torch.full_like(dt, self.coupling)))
        return self.coupling if dt else 1.0

    def step(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """One step of the pair, or of a state alone; see `Solver.step`."""
        y, z = state if isinstance(state, tuple) else (state, state)
        c = self._mix(dt)
        y = c * y + (1 - c) * z + self._increment(field, t, dt, z, control)
        z = z - self._increment(field, t + dt, -dt, y, control)
        return (y, z) if isinstance(state, tuple) else y

    def unstep(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """The step of the pair taken back; see `Solver.unstep`."""
        if not isinstance(state, tuple):
            raise InputError(
                f"solver {self.name!r} can only undo a step of its pair of states: pass what open returned"
            )
        y, z = state
        c = self._mix(dt)
        z = z + self._increment(field, t + dt, -dt, y, control)
        return (y - (1 - c) * z - self._increment(field, t, dt, z, control)) / c, z


@dataclass(frozen=True)
class Undoing(Solver):
    """The steps of another solver taken back: `step` is its `unstep`.

    Attributes:
        other: the solver.
    """

    other: Solver = field(kw_only=True)

    @classmethod
    def of(cls, solver: Solver) -> Undoing:
        """What undoes the steps of a solver."""
        return cls(solver.name, solver.order, solver.stages, other=solver)

    def open(self, state: Tensor) -> Any:
        """As the other solver."""
        return self.other.open(state)

    def close(self, carried: Any) -> Tensor:
        """As the other solver."""
        return self.other.close(carried)

    def step(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """The state at t from the one at t + dt."""
        return self.other.unstep(field, t, dt, state, control)


register(ReversiblePair("reversible", 2, 4, reversible=True))
