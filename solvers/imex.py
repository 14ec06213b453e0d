"""Implicit-explicit methods: a linear part of the field is solved for, the rest is explicit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from solvers.errors import InputError
from solvers.protocol import ControlPath, Time, axpy, increment, over_state
from solvers.solver import Solver, register

#: Which linear terms of an oscillator each choice of `implicit` solves for.
IMPLICIT_TERMS = {
    "damping": frozenset({"damping"}),
    "stiffness": frozenset({"stiffness"}),
    "both": frozenset({"damping", "stiffness"}),
}


@dataclass(frozen=True)
class ImexEuler(Solver):
    """IMEX Euler: x+ = (1 - dt L)^-1 (x + dt N(t, x, u)), where f = L x + N.

    For an oscillator L holds q' = p and the terms chosen by `implicit`, so that the step is closed form:

        p+ = (p + dt (force without the implicit terms)) / (1 + dt damping [+ dt^2 stiffness]),  q+ = q + dt p+

    with `implicit="damping"` the IMEX step of the coRNN paper (Rusch & Mishra, ICLR 2021, eq. 3). A field with one
    linear term has that one solved for, whatever `implicit` says.
    """

    implicit_terms: str = field(default="damping", metadata={"option": True})

    family: ClassVar[str] = "imex"
    implicit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.implicit_terms not in IMPLICIT_TERMS:
            raise InputError(
                f"implicit_terms is {self.implicit_terms!r}, expected one of {', '.join(IMPLICIT_TERMS)}: choose one"
            )

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step; see `Solver.step`."""
        h, terms = increment(field, dt), IMPLICIT_TERMS[self.implicit_terms]
        explicit = axpy(state, over_state(h), field.nonlinear(t, state, control(t), terms))
        solved: Tensor = field.solve(h, explicit, terms)
        return solved


register(ImexEuler("imex_euler", 1, 1, needs=("semilinear",)))
