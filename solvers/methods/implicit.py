"""Implicit Runge-Kutta methods: one stepper, and each method a tableau."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.base.counted import Converted
from solvers.base.solver import Solver, register
from solvers.base.state import axpy, increment, over_state
from solvers.base.values import working
from solvers.methods.explicit import combine
from solvers.numerics.jacobian import StageEquations, System
from solvers.numerics.linear import linear_part
from solvers.numerics.newton import Newton
from solvers.numerics.tableau import ImplicitTableau, StageGroup
from solvers.protocol import ControlPath, Time, check_slope, structure


@dataclass(frozen=True)
class ImplicitRungeKutta(Solver):
    """Implicit Runge-Kutta: k_i = f(t + c_i dt, x + dt sum_j a_ij k_j), x+ = x + dt sum_i b_i k_i.

    Stages that see one another are solved for together, by Newton's method for each sample on its own; those of a
    diagonally implicit tableau one after the other. A field that declares itself linear has the latter solved in
    closed form. The gradient is that of the implicit-function theorem: exact for the states found, in memory that
    does not depend on the iterations. It can be differentiated once more, not twice.

    Attributes:
        tol: relative tolerance of each sample; None is eps^(3/4) of the dtype.
        max_iterations: trial steps of Newton's method before it gives up.
        linear_solver: "newton", "simplified", "krylov" or "auto"; see `solvers.numerics.newton.LINEAR_SOLVERS`.
    """

    tableau: ImplicitTableau = field(kw_only=True)
    tol: float | None = field(default=None, metadata={"option": True})
    max_iterations: int = field(default=50, metadata={"option": True})
    linear_solver: str = field(default="auto", metadata={"option": True})

    family: ClassVar[str] = "implicit"
    implicit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.newton

    @property
    def newton(self) -> Newton:
        """Newton's method with the options, which it checks."""
        return Newton(self.name, self.tol, self.max_iterations, self.linear_solver)

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step of the tableau; see `Solver.step`.

        Raises:
            ConvergenceError: Newton's method did not converge for a sample.
        """
        stages = _Stages(self.tableau, self.newton, field, t, dt, state, control)
        for block in self.tableau.blocks:
            stages.solve(block)
        return stages.last if self.tableau.stiffly_accurate else combine(state, 1.0, self.tableau.b, stages.increments)

    def unstep(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """The step of -dt from t + dt: of a symmetric method the inverse of `step`, to the tolerance of both."""
        if not self.tableau.symmetric:
            return super().unstep(field, t, dt, state, control)
        return self.step(field, t + dt, -dt, state, control)


@dataclass
class _Stages:
    """The stages of one step, solved block by block."""

    tableau: ImplicitTableau
    newton: Newton
    field: Any
    t: Time
    dt: Time
    state: Tensor
    control: ControlPath

    def __post_init__(self) -> None:
        self.h = increment(self.field, self.dt)
        #: h f of the stages so far, and the state of the last of them.
        self.increments: list[Tensor] = []
        self.last = self.state
        #: Weights and factors of the block before.
        self.kept: tuple[list[list[float]], System | None] | None = None

    def solve(self, block: StageGroup) -> None:
        """Append the increments of a block."""
        a, c = self.tableau.a, self.tableau.c
        base = [combine(self.state, 1.0, a[i][: block.stages[0]], self.increments) for i in block.stages]
        times = [self.t + c[i] * self.dt if c[i] else self.t for i in block.stages]
        inputs = [self.control(time) for time in times]
        if block.explicit:
            self.last = base[0]
            slope = check_slope(self.field, self.last, self.field(times[0], self.last, inputs[0]))
            self.increments.append(over_state(self.h) * slope)
        elif len(base) == 1 and "linear" in structure(self.field):
            self._closed_form(a[block.stages[0]][block.stages[0]], times[0], base[0], inputs[0])
        else:
            self._iterate(block, times, inputs, torch.stack(base, dim=-3))

    def _closed_form(self, weight: float, time: Time, base: Tensor, u: Any) -> None:
        """One stage of f = L x + N(t, u): (1 - a h L) y = base + a h N, and h f = (y - base) / a."""
        h = weight * self.h
        known = axpy(base, over_state(h), self.field.nonlinear(time, base, u))
        self.last = linear_part(self.field).solve(h, known)
        self.increments.append((self.last - base) / weight)

    def _iterate(self, block: StageGroup, times: list[Time], inputs: list[Any], base: Tensor) -> None:
        """Stages by Newton's method, from the state of the stage before: its first iterate is linearly implicit.

        Equations of states in half precision are solved in single.
        """
        field, given = self.field, base.dtype
        if working(given) != given:
            field, base = Converted(field, given), base.to(working(given))
        weights, inverse = (base.new_tensor(rows) for rows in (block.weights, block.inverse))
        equations = StageEquations(field, times, inputs, over_state(self.h), base, weights)
        with torch.no_grad():
            away = equations.rows(self.last.unsqueeze(-3) - base)
            start = equations.rows(torch.stack(equations.mix(away, inverse), dim=-3))
        k, system = self.newton.root(equations, start, self._kept(block))
        self.kept = (block.weights, system)
        self.increments += k.reshape(base.shape).to(given).unbind(-3)
        self.last = equations.states(k)[-1].to(given)

    def _kept(self, block: StageGroup) -> System | None:
        """The factors of the block before, if they fit this one."""
        return self.kept[1] if self.kept is not None and self.kept[0] == block.weights else None


def implicit_runge_kutta(name: str, tableau: ImplicitTableau) -> ImplicitRungeKutta:
    """An implicit method from its tableau; `solvers.register` makes it known by name."""
    return ImplicitRungeKutta(
        name,
        tableau.order,
        tableau.stages,
        symplectic=tableau.symplectic,
        reversible=tableau.symmetric,
        tableau=tableau,
    )


ROOT2, ROOT3 = math.sqrt(2), math.sqrt(3)
GAMMA = 1 - ROOT2 / 2

# L-stable, order 1.
register(implicit_runge_kutta("implicit_euler", ImplicitTableau(((1.0,),), (1.0,), order=1)), "backward_euler")
# Gauss collocation with one stage: A-stable, symplectic, conserves quadratic invariants.
register(implicit_runge_kutta("implicit_midpoint", ImplicitTableau(((1 / 2,),), (1.0,), order=2, symmetric=True)))
# Lobatto IIIA with two stages (Crank-Nicolson): A-stable, conjugate to the midpoint rule.
register(
    implicit_runge_kutta(
        "trapezoid", ImplicitTableau(((0.0, 0.0), (1 / 2, 1 / 2)), (1 / 2, 1 / 2), order=2, symmetric=True)
    )
)
# Alexander, Diagonally implicit Runge-Kutta methods for stiff O.D.E.s, SIAM J. Numer. Anal. 14 (1977): L-stable.
register(
    implicit_runge_kutta("sdirk2", ImplicitTableau(((GAMMA, 0.0), (1 - GAMMA, GAMMA)), (1 - GAMMA, GAMMA), order=2))
)
# Gauss collocation with two stages, nodes 1/2 -+ sqrt(3)/6 (Hairer, Norsett, Wanner, table II.7.3): A-stable,
# symplectic.
register(
    implicit_runge_kutta(
        "gauss_legendre4",
        ImplicitTableau(
            ((1 / 4, 1 / 4 - ROOT3 / 6), (1 / 4 + ROOT3 / 6, 1 / 4)), (1 / 2, 1 / 2), order=4, symmetric=True
        ),
    )
)
# Radau collocation with two stages, nodes 1/3 and 1 (Hairer, Wanner, Solving Ordinary Differential Equations II,
# table IV.5.5): L-stable, order 3.
register(
    implicit_runge_kutta("radau_iia3", ImplicitTableau(((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4), order=3))
)
