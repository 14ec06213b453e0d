"""Exponential methods for f = L x + N(t, x, u): the linear part is integrated exactly, the rest explicitly.

They do not need a step small against the stiffness or the frequencies of L, only against the change of N. Without N
every one of them is the exact solution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from solvers.base.solver import Solver, register
from solvers.base.state import axpy, increment, over_state
from solvers.errors import PairingError
from solvers.methods.explicit import MIDPOINT, RK4, combine, stepped
from solvers.numerics.linear import linear_part, split_at
from solvers.numerics.tableau import ButcherTableau, ExponentialTableau
from solvers.protocol import ControlPath, Time, structure

#: The exact flow of a linear part over a fraction of the step.
Flow = Callable[[float, Tensor], Tensor]


def transported(
    tableau: ButcherTableau, slope: Callable[[float, Tensor], Tensor], flow: Flow, h: Time, x: Tensor
) -> Tensor:
    """One step of x' = L x + slope by a Runge-Kutta method for exp(-t L) x, in which L is exact (Lawson's method).

    The nodes of the tableau must not decrease; `flow` is then only asked for the gaps between them.

    Source: Lawson, SIAM J. Numer. Anal. 4 (1967).
    """
    slopes: list[Tensor] = []

    def moved(weights: Sequence[float], end: float) -> Tensor:
        y, at = x, 0.0
        for w, c, k in zip(weights, tableau.c, slopes, strict=False):
            if not w:
                continue
            if c > at:
                y, at = flow(c - at, y), c
            y = axpy(y, h * w, k)
        return flow(end - at, y) if end > at else y

    for a, c in zip(tableau.a, tableau.c, strict=True):
        slopes.append(slope(c, moved(a, c)))
    return moved(tableau.b, 1.0)


@dataclass(frozen=True)
class Exponential(Solver):
    """What exponential methods share: the field taken apart."""

    family: ClassVar[str] = "exponential"

    def exact(self, field: Any) -> bool:
        """Where the field is linear, but for inputs that change during a step; see `Solver.exact`."""
        return "linear" in structure(field)

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step; see `Solver.step`."""
        h, operator = increment(field, dt), linear_part(field)

        def nonlinear(c: float, x: Tensor) -> Tensor:
            at = t + c * dt if c else t
            slope: Tensor = field.nonlinear(at, x, control(at))
            return slope

        return self.advance(operator, nonlinear, h, state)

    def advance(self, operator: Any, nonlinear: Callable[[float, Tensor], Tensor], h: Time, state: Tensor) -> Tensor:
        """The state after the step; `nonlinear` takes the fraction of the step that has passed, and x there."""
        raise PairingError(f"solver {self.name!r} defines no advance: subclass Exponential and implement it")


@dataclass(frozen=True)
class ExponentialRungeKutta(Exponential):
    """An exponential Runge-Kutta method; see `ExponentialTableau` for its formula."""

    tableau: ExponentialTableau | None = None

    def advance(self, operator: Any, nonlinear: Callable[[float, Tensor], Tensor], h: Time, state: Tensor) -> Tensor:
        """Stage by stage, each one combination of phi-functions."""
        assert self.tableau is not None
        wide, slopes = over_state(h), [nonlinear(0.0, state)]
        maps = {c: operator.phis(c * h, order, state) for c, order in self.tableau.orders.items()}

        def combined(rows: Sequence[Sequence[float]], c: float) -> Tensor:
            sums = (combine(slopes[0] * row[0], 1.0, row[1:], slopes[1:]) for row in rows)
            moved: Tensor = maps[c]((state, *(wide * total for total in sums)))
            return moved

        for rows, c in zip(self.tableau.a, self.tableau.c[1:], strict=True):
            slopes.append(nonlinear(c, combined(rows, c)))
        return combined(self.tableau.b, 1.0)


@dataclass(frozen=True)
class ExponentialEuler(ExponentialRungeKutta):
    """Exponential Euler: x+ = exp(dt L) x + dt phi_1(dt L) N(t, x, u), the exact solution with L and N held.

    L may depend on t, x and u; it is then taken at the start of the step, as N is.

    Source: Cox & Matthews, J. Comput. Phys. 176 (2002), eq. 4; with such an L: Rush & Larsen, IEEE Trans. Biomed.
    Eng. 25 (1978).
    """

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step; see `Solver.step`."""
        operator, rest = split_at(field, t, state, control(t))
        return self.advance(operator, lambda c, x: rest, increment(field, dt), state)


@dataclass(frozen=True)
class Lawson(Exponential):
    """A Runge-Kutta method for exp(-t L) x; see `transported`."""

    tableau: ButcherTableau = RK4

    def advance(self, operator: Any, nonlinear: Callable[[float, Tensor], Tensor], h: Time, state: Tensor) -> Tensor:
        """The Runge-Kutta step in the moving frame."""
        flows: dict[float, Any] = {}

        def flow(c: float, x: Tensor) -> Tensor:
            if c not in flows:
                flows[c] = operator.phis(c * h, 0, state)
            moved: Tensor = flows[c]((x,))
            return moved

        return transported(self.tableau, nonlinear, flow, over_state(h), state)


@dataclass(frozen=True)
class Strang(Exponential):
    """Half the flow of L, a midpoint step of N, half the flow of L.

    Source: Strang, SIAM J. Numer. Anal. 5 (1968).
    """

    def advance(self, operator: Any, nonlinear: Callable[[float, Tensor], Tensor], h: Time, state: Tensor) -> Tensor:
        """Flow, step, flow."""
        half = operator.phis(h / 2, 0, state)
        end: Tensor = half((stepped(MIDPOINT, nonlinear, over_state(h), half((state,))),))
        return end


# Cox & Matthews, J. Comput. Phys. 176 (2002), eq. 4 and 20-22.
ETD1 = ExponentialTableau((), ((1.0,),), (0.0,), order=1)
ETD2RK = ExponentialTableau((((1.0,),),), ((1.0, 0.0), (-1.0, 1.0)), (0.0, 1.0), order=2)
# Krogstad, J. Comput. Phys. 203 (2005), eq. 51: the intermediate stages of ETD4RK improved.
KROGSTAD = ExponentialTableau(
    (
        ((1 / 2,),),
        ((1 / 2, 0.0), (-1.0, 1.0)),
        ((1.0, 0.0, 0.0), (-2.0, 0.0, 2.0)),
    ),
    ((1.0, 0.0, 0.0, 0.0), (-3.0, 2.0, 2.0, -1.0), (4.0, -4.0, -4.0, 4.0)),
    (0.0, 1 / 2, 1 / 2, 1.0),
    order=4,
)

_NEEDS = ("semilinear",)
register(ExponentialEuler("exponential_euler", 1, 1, needs=("quasilinear",), tableau=ETD1), "etd1")
register(ExponentialRungeKutta("etd2rk", 2, 2, needs=_NEEDS, tableau=ETD2RK))
register(ExponentialRungeKutta("etd4rk", 4, 4, needs=_NEEDS, tableau=KROGSTAD))
register(Lawson("lawson4", 4, 4, needs=_NEEDS))
register(Strang("strang", 2, 2, needs=_NEEDS))
