"""Explicit Runge-Kutta methods: one stepper, and each method a tableau."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from solvers.base.solver import Solver, register
from solvers.base.state import axpy, increment, over_state
from solvers.numerics.tableau import ButcherTableau
from solvers.protocol import ControlPath, Time


def combine(x: Tensor, h: Time, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h * sum_j weights_j slopes_j, without the terms of weight zero."""
    if not isinstance(h, Tensor):
        for w, k in zip(weights, slopes, strict=True):
            if w:
                x = x.add(k, alpha=h * w)
        return x
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    if not terms:
        return x
    total = terms[0][1] * terms[0][0]
    for w, k in terms[1:]:
        total = total.add(k, alpha=w)
    return axpy(x, h, total)


def stepped(tableau: ButcherTableau, slope: Callable[[float, Tensor], Tensor], h: Time, x: Tensor) -> Tensor:
    """One step of x' = slope from x; `slope` takes the fraction of the step that has passed, and x there."""
    slopes = [slope(0.0, x)]
    for a, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
        slopes.append(slope(c, combine(x, h, a, slopes)))
    return combine(x, h, tableau.b, slopes)


@dataclass(frozen=True)
class RungeKutta(Solver):
    """Explicit Runge-Kutta: k_i = f(t + c_i dt, x + dt sum_j a_ij k_j), x+ = x + dt sum_i b_i k_i."""

    tableau: ButcherTableau | None = None

    family: ClassVar[str] = "explicit"

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step of the tableau; see `Solver.step`."""
        assert self.tableau is not None

        def slope(c: float, x: Tensor) -> Tensor:
            at = t + c * dt if c else t
            k: Tensor = field(at, x, control(at))
            return k

        return stepped(self.tableau, slope, over_state(increment(field, dt)), state)


def runge_kutta(name: str, tableau: ButcherTableau) -> RungeKutta:
    """An explicit method from its tableau; `solvers.register` makes it known by name."""
    return RungeKutta(name, tableau.order, tableau.stages, tableau=tableau)


EULER = ButcherTableau(((),), (1.0,), order=1)
MIDPOINT = ButcherTableau(((), (1 / 2,)), (0.0, 1.0), order=2)
HEUN = ButcherTableau(((), (1.0,)), (1 / 2, 1 / 2), order=2)
# Ralston, Math. Comp. 16 (1962): the least bound on the truncation error of two stages.
RALSTON = ButcherTableau(((), (2 / 3,)), (1 / 4, 3 / 4), order=2)
# Bogacki & Shampine, Appl. Math. Lett. 2 (1989), the method of order 3; the adaptive pair is "bosh3".
BOSH3 = ButcherTableau(((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), order=3)
# Shu & Osher, J. Comput. Phys. 77 (1988): a convex combination of Euler steps (strong stability preserving).
SSPRK3 = ButcherTableau(((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), order=3)
RK4 = ButcherTableau(((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)
# Kutta's 3/8 rule: what torchdiffeq calls "rk4".
RK4_38 = ButcherTableau(((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), order=4)
# Dormand & Prince, J. Comput. Appl. Math. 6 (1980), the method of order 5; the adaptive pair is "dopri5".
DOPRI5 = ButcherTableau(
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    order=5,
)

for _name, _tableau in (
    ("euler", EULER),
    ("midpoint", MIDPOINT),
    ("heun", HEUN),
    ("ralston", RALSTON),
    ("bosh3_fixed", BOSH3),
    ("ssprk3", SSPRK3),
    ("rk4", RK4),
    ("rk4_38", RK4_38),
    ("dopri5_fixed", DOPRI5),
):
    register(runge_kutta(_name, _tableau))
