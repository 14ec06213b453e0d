"""The step of a field that says itself where an interval leads.

Some networks are no differential equation but a map from the state before a gap to the state after it, in which the
length of the gap is a variable. Others have an equation whose solution they know. Both are stepped here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.base.solver import Solver, register
from solvers.base.state import increment, over_state
from solvers.protocol import ControlPath, Time, structure


@dataclass(frozen=True)
class ClosedForm(Solver):
    """The field's own map, x+ = propagate(t, dt, x, u), with the input as it is at the end of the interval.

    Where the map solves a right-hand side (a differential field) it is exact for an input that is held, and two steps
    are one of their sum. Where it does not, an interval is one step, whatever its length: to cut it would be to take
    another map. Such a map need not be the identity at dt = 0; where no time passes it is not applied, and the state
    stays.

    Source: Hasani et al., Closed-form Continuous-time Neural Networks, Nature Machine Intelligence 4 (2022), eq. 2.
    """

    family: ClassVar[str] = "closed_form"

    def exact(self, field: Any) -> bool:
        """Always; see `Solver.exact`."""
        return True

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step; see `Solver.step`."""
        flow = "differential" in structure(field)
        if not (flow or isinstance(dt, Tensor) or dt):
            return state
        end: Tensor = field.propagate(t, increment(field, dt), state, control(t + dt))
        if flow or not isinstance(dt, Tensor):
            return end
        return torch.where(torch.as_tensor(over_state(dt == 0)), state, end)


register(ClosedForm("closed_form", 1, 1, needs=("closed_form",)))
