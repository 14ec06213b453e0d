"""Explicit Runge-Kutta methods: one stepper, and each method a tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from solvers.protocol import ControlPath, Time, axpy, increment, over_state
from solvers.solver import Solver, register
from solvers.tableau import ButcherTableau


def combine(x: Tensor, h: Time, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h * sum_j weights_j slopes_j, without the terms of weight zero."""
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    if isinstance(h, Tensor):
        if not terms:
            return x
        total = terms[0][1] * terms[0][0]
        for w, k in terms[1:]:
            total = total.add(k, alpha=w)
        return axpy(x, h, total)
    for w, k in terms:
        x = x.add(k, alpha=h * w)
    return x


@dataclass(frozen=True)
class RungeKutta(Solver):
    """Explicit Runge-Kutta: k_i = f(t + c_i dt, x + dt sum_j a_ij k_j), x+ = x + dt sum_i b_i k_i."""

    tableau: ButcherTableau | None = None

    family: ClassVar[str] = "explicit"

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step of the tableau; see `Solver.step`."""
        assert self.tableau is not None
        h = over_state(increment(field, dt))
        slopes: list[Tensor] = []
        for a, c in zip(self.tableau.a, self.tableau.c, strict=True):
            at = t + c * dt if c else t
            slopes.append(field(at, combine(state, h, a, slopes), control(at)))
        return combine(state, h, self.tableau.b, slopes)


def runge_kutta(name: str, tableau: ButcherTableau) -> RungeKutta:
    """An explicit method from its tableau; `solvers.register` makes it known by name."""
    return RungeKutta(name, tableau.order, tableau.stages, tableau=tableau)


register(runge_kutta("euler", ButcherTableau(((),), (1.0,), order=1)))
register(runge_kutta("midpoint", ButcherTableau(((), (1 / 2,)), (0.0, 1.0), order=2)))
register(runge_kutta("heun", ButcherTableau(((), (1.0,)), (1 / 2, 1 / 2), order=2)))
register(
    runge_kutta(
        "rk4", ButcherTableau(((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)
    )
)
# Kutta's 3/8 rule: what torchdiffeq calls "rk4".
register(
    runge_kutta(
        "rk4_38",
        ButcherTableau(((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), order=4),
    )
)
