"""The step of a field that relaxes towards a target at a rate, exact in the length of the step.

Gated networks are Euler steps of x' = r (m - x). Over a gap longer than their own step Euler overshoots the target, and
diverges where r dt exceeds 2. The step here goes the same way at the length that the network knows, and stays between x
and m at every other.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from dataclasses import replace as _replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.base.solver import Solver, register
from solvers.base.state import axpy, components, increment, packed
from solvers.errors import InputError
from solvers.protocol import ControlPath, Time


@dataclass(frozen=True)
class RelaxationEuler(Solver):
    """For x' = r(t, x, u) (m(t, x, u) - x), over a step of dt:

        x+ = m + (1 - r h)^s (x - m),    s = dt / h

    with h the `unit`, in the time of the field's `time_scale()`. At dt = h it is Euler's step; for 0 <= r h <= 1 it is
    a contraction towards m at every dt, and with r and m held two steps are one of their sum. In the limit h -> 0 it is
    x+ = m + exp(-r dt) (x - m). Where r h exceeds 1 Euler overshoots; here x+ = m then, but at dt = h.

    A field of several components has one after the other relax, the last first, each seeing those that have: the order
    of semi-implicit Euler.

    Attributes:
        unit: h, in units of time; None for the dt of a step of the network (its dt over its substeps), and for the
            limit where no network says one. As it goes to zero with the steps, the method has order 1.

    Source: Euler's step as the exponential of its own logarithm; in the limit Rush & Larsen, IEEE Trans. Biomed. Eng.
    25 (1978).
    """

    unit: float | None = field(default=None, metadata={"option": True})

    family: ClassVar[str] = "relaxation"
    split: ClassVar[bool] = True

    def __post_init__(self) -> None:
        unit = self.unit
        if unit is None:
            return
        if isinstance(unit, bool) or not isinstance(unit, numbers.Real) or not 0 < unit < float("inf"):
            raise InputError(f"unit of solver {self.name!r} is {unit!r}, expected a positive number or None")

    def exact(self, field: Any) -> bool:
        """Always; see `Solver.exact`."""
        return True

    def paced(self, dt: float) -> Solver:
        """The same with the step of a network as its unit, if it has none."""
        return _replace(self, unit=dt) if self.unit is None else self

    def step(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """One step; see `Solver.step`."""
        u, parts = control(t), list(components(state))
        for place in reversed(range(len(parts))):
            rate, target = field.relaxation(place, t, tuple(parts), u)
            parts[place] = axpy(parts[place], self._moved(field, rate, dt, target.dtype), target - parts[place])
        return tuple(parts) if isinstance(state, tuple) else packed(tuple(parts))

    def _moved(self, field: Any, rate: Time, dt: Time, dtype: torch.dtype) -> Time:
        """Which part of its way to the target a state goes."""
        if self.unit is None:
            return _gone(-(rate * increment(field, dt)))
        moved = rate * increment(field, self.unit)
        if not isinstance(dt, Tensor) and dt == self.unit:
            return moved
        # What is left of the way has a logarithm where there is something left of it.
        most = 1 - torch.finfo(dtype).eps
        left = -moved.clamp(max=most) if isinstance(moved, Tensor) else torch.tensor(-min(moved, most), dtype=dtype)
        return _gone(dt / self.unit * left.log1p())


def _gone(exponent: Any) -> Tensor:
    """1 - e^x."""
    return -torch.as_tensor(exponent).expm1()


register(RelaxationEuler("relaxation_euler", 1, 1, needs=("relaxing",)))
