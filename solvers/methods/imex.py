"""Implicit-explicit methods: a linear part of the field is solved for, the rest is explicit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from solvers.base.solver import Solver, register
from solvers.base.state import axpy, increment, over_state
from solvers.errors import InputError
from solvers.methods.explicit import combine
from solvers.numerics.linear import linear_part, split_at
from solvers.numerics.tableau import ImexTableau
from solvers.protocol import ControlPath, Time

#: Which linear terms of an oscillator each choice of `implicit_terms` solves for.
IMPLICIT_TERMS = {
    "damping": frozenset({"damping"}),
    "stiffness": frozenset({"stiffness"}),
    "both": frozenset({"damping", "stiffness"}),
}


@dataclass(frozen=True)
class Imex(Solver):
    """What implicit-explicit methods share: the choice of linear terms.

    For an oscillator L holds q' = p and the terms chosen by `implicit_terms`. A field with one linear term has that
    one solved for, whatever is chosen.
    """

    implicit_terms: str = field(default="damping", metadata={"option": True})

    family: ClassVar[str] = "imex"
    implicit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.implicit_terms not in IMPLICIT_TERMS:
            raise InputError(
                f"implicit_terms is {self.implicit_terms!r}, expected one of {', '.join(IMPLICIT_TERMS)}: choose one"
            )

    @property
    def terms(self) -> frozenset[str]:
        """The linear terms that are solved for."""
        return IMPLICIT_TERMS[self.implicit_terms]


@dataclass(frozen=True)
class ImexEuler(Imex):
    """IMEX Euler: x+ = (1 - dt L)^-1 (x + dt N(t, x, u)), where f = L x + N.

    L may depend on t, x and u; it is then taken at the start of the step (linearly implicit Euler), as N is.

    For an oscillator the step is closed form:

        p+ = (p + dt (force without the implicit terms)) / (1 + dt damping [+ dt^2 stiffness]),  q+ = q + dt p+

    with `implicit_terms="damping"` the IMEX step of the coRNN paper (Rusch & Mishra, ICLR 2021, eq. 3). On a linear
    oscillator "both", "damping" and "stiffness" are the discretizations IM, IMEX and IMEX3 of the linear oscillatory
    state-space models; IMEX2 is `semi_implicit_euler`, EX is `euler`.
    """

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step; see `Solver.step`."""
        h = increment(field, dt)
        operator, rest = split_at(field, t, state, control(t), self.terms)
        return operator.solve(h, axpy(state, over_state(h), rest))


@dataclass(frozen=True)
class ImexRungeKutta(Imex):
    """An implicit-explicit Runge-Kutta method; see `ImexTableau` for its formula."""

    tableau: ImexTableau | None = None

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step, a linear solve for each implicit stage; see `Solver.step`."""
        assert self.tableau is not None
        tableau, operator, h = self.tableau, linear_part(field, self.terms), increment(field, dt)
        wide, stage = over_state(h), state
        # N, and h L X, by stage; a stage stands in for what nothing uses.
        explicit: list[Tensor] = []
        implicit: list[Tensor] = []
        for i, (a, (*d, diagonal), c) in enumerate(zip(tableau.explicit, tableau.implicit, tableau.c, strict=True)):
            known = combine(combine(state, wide, a, explicit), 1.0, d, implicit)
            stage = operator.solve(diagonal * h, known) if diagonal else known
            if not tableau.implicit_used[i]:
                implicit.append(stage)
            else:
                # As a difference h L X does not suffer from the size of L.
                implicit.append((stage - known) / diagonal if diagonal else wide * operator.apply(stage))
            at = t + c * dt if c else t
            used = tableau.explicit_used[i]
            explicit.append(field.nonlinear(at, stage, control(at), self.terms) if used else stage)
        if tableau.ends_in_last_stage:
            return stage
        return combine(combine(state, wide, tableau.weights, explicit), 1.0, tableau.implicit_weights, implicit)


# Ascher, Ruuth, Spiteri, Implicit-explicit Runge-Kutta methods for time-dependent partial differential equations,
# Appl. Numer. Math. 25 (1997): (1, 2, 2) of section 2.3, (2, 2, 2) of 2.6, (3, 4, 3) of 2.7.
IMEX_MIDPOINT = ImexTableau(((), (1 / 2,)), ((0.0,), (0.0, 1 / 2)), (0.0, 1.0), (0.0, 1.0), order=2)


def _ars222() -> ImexTableau:
    gamma = 1 - 1 / math.sqrt(2)
    delta = 1 - 1 / (2 * gamma)
    weights, implicit = (delta, 1 - delta, 0.0), (0.0, 1 - gamma, gamma)
    return ImexTableau(((), (gamma,), weights[:2]), ((0.0,), (0.0, gamma), implicit), weights, implicit, order=2)


def _ars343() -> ImexTableau:
    # The middle root of 6 x^3 - 18 x^2 + 9 x - 1, and a_42 = a_43 that make the stability region the widest.
    gamma = 0.4358665215084590
    free = 0.5529291480359398
    weights = (0.0, -3 / 2 * gamma**2 + 4 * gamma - 1 / 4, 3 / 2 * gamma**2 - 5 * gamma + 5 / 4, gamma)
    a31 = free * (15 / 4 - 15 * gamma + 21 / 4 * gamma**2) - 7 / 2 + 13 * gamma - 9 / 2 * gamma**2
    explicit = ((), (gamma,), (a31, (1 + gamma) / 2 - a31), (1 - 2 * free, free, free))
    implicit = ((0.0,), (0.0, gamma), (0.0, (1 - gamma) / 2, gamma), weights)
    return ImexTableau(explicit, implicit, weights, weights, order=3)


ARS222, ARS343 = _ars222(), _ars343()

# Kennedy & Carpenter, Additive Runge-Kutta schemes for convection-diffusion-reaction equations, Appl. Numer. Math. 44
# (2003), appendix C: ARK3(2)4L[2]SA and ARK4(3)6L[2]SA.
_GAMMA = 1767732205903 / 4055673282236
_WEIGHTS3 = (1471266399579 / 7840856788654, -4482444167858 / 7529755066697, 11266239266428 / 11593286722821, _GAMMA)
KENCARP3 = ImexTableau(
    (
        (),
        (1767732205903 / 2027836641118,),
        (5535828885825 / 10492691773637, 788022342437 / 10882634858940),
        (6485989280629 / 16251701735622, -4246266847089 / 9704473918619, 10755448449292 / 10357097424841),
    ),
    (
        (0.0,),
        (_GAMMA, _GAMMA),
        (2746238789719 / 10658868560708, -640167445237 / 6845629431997, _GAMMA),
        _WEIGHTS3,
    ),
    _WEIGHTS3,
    _WEIGHTS3,
    order=3,
)
_WEIGHTS4 = (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211, 1 / 4)
KENCARP4 = ImexTableau(
    (
        (),
        (1 / 2,),
        (13861 / 62500, 6889 / 62500),
        (-116923316275 / 2393684061468, -2731218467317 / 15368042101831, 9408046702089 / 11113171139209),
        (
            -451086348788 / 2902428689909,
            -2682348792572 / 7519795681897,
            12662868775082 / 11960479115383,
            3355817975965 / 11060851509271,
        ),
        (
            647845179188 / 3216320057751,
            73281519250 / 8382639484533,
            552539513391 / 3454668386233,
            3354512671639 / 8306763924573,
            4040 / 17871,
        ),
    ),
    (
        (0.0,),
        (1 / 4, 1 / 4),
        (8611 / 62500, -1743 / 31250, 1 / 4),
        (5012029 / 34652500, -654441 / 2922500, 174375 / 388108, 1 / 4),
        (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768, 2285395 / 8070912, 1 / 4),
        _WEIGHTS4,
    ),
    _WEIGHTS4,
    _WEIGHTS4,
    order=4,
)

register(ImexEuler("imex_euler", 1, 1, needs=("quasilinear",)))
for _name, _tableau in (
    ("imex_midpoint", IMEX_MIDPOINT),
    ("ars222", ARS222),
    ("ars343", ARS343),
    ("kencarp3", KENCARP3),
    ("kencarp4", KENCARP4),
):
    _stages = sum(_tableau.explicit_used)
    register(ImexRungeKutta(_name, _tableau.order, _stages, needs=("semilinear",), tableau=_tableau))
