"""Native adaptive methods for stiff fields: diagonally implicit pairs under the per-sample driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.batch import Array, Attempt, Rows
from solvers.adaptive.embedded import KENCARP4, ImplicitPair
from solvers.adaptive.native import Native, weighted
from solvers.base.solver import register
from solvers.errors import ConvergenceError, NonFiniteStateError
from solvers.methods.explicit import combine
from solvers.numerics.jacobian import StageEquations, System
from solvers.numerics.newton import Newton
from solvers.numerics.tableau import Weights


@dataclass(frozen=True)
class NativeImplicit(Native):
    """A diagonally implicit pair under the per-sample driver, for stiff fields.

    Stages are solved for by Newton's method, each sample on its own, to a fraction of the tolerance; where that
    fails the step is shortened. The gradient is that of the implicit-function theorem. The error estimate is not
    smoothed by (1 - a_ii h J)^-1, as stiff solvers often do: that hides the error of the stages, of which the dense
    output is made.

    Attributes:
        tol: relative tolerance of Newton's method; None is 0.01 rtol.
        max_iterations: trial steps of Newton's method before a step is shortened.
        linear_solver: see `solvers.numerics.newton.LINEAR_SOLVERS`.
    """

    tol: float | None = field(default=None, metadata={"option": True})
    max_iterations: int = field(default=12, metadata={"option": True})
    linear_solver: str = field(default="auto", metadata={"option": True})

    implicit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.newton

    @property
    def newton(self) -> Newton:
        """Newton's method with the options, which it checks."""
        tol = min(0.01 * self.rtol, 0.01) if self.tol is None else self.tol
        return Newton(self.name, tol, self.max_iterations, self.linear_solver)

    def attempt(self, rows: Rows, x: Tensor, slope: Tensor, s: Array, ds: Array) -> Attempt:
        """One step; rows whose stages could not be solved for stay where they are."""
        unsolved, infinite = np.zeros((2, len(ds)), dtype=bool)
        before = rows.field.evaluations
        while True:
            still = unsolved | infinite
            try:
                attempt = self._stages(rows, x, slope, s, np.where(still, 0.0, ds))
                break
            except ConvergenceError as error:
                if still[list(error.samples)].all():
                    raise
                unsolved[list(error.samples)] = True
            except NonFiniteStateError as error:
                if error.sample is None or still[error.sample]:
                    raise error.adaptively() from None
                infinite[error.sample] = True
        attempt.error[torch.from_numpy(still).to(x.device)] = torch.nan
        return attempt._replace(unsolved=unsolved, evaluations=rows.field.evaluations - before)

    def _stages(self, rows: Rows, x: Tensor, slope: Tensor, s: Array, ds: Array) -> Attempt:
        pair = self.pair
        assert isinstance(pair, ImplicitPair)
        h = rows.h * torch.from_numpy(ds).to(x)[:, None, None]
        weights = x.new_full((1, 1), pair.diagonal)
        increments, end = [h * slope], x
        system: System | None = None
        for a, time in zip(pair.a[1:], rows.times(s + np.multiply.outer(pair.c[1:], ds)), strict=True):
            base = combine(x, 1.0, a[:-1], increments)
            equations = StageEquations(rows.field, [time], [rows.input(time)], h, base.unsqueeze(-3), weights)
            start = equations.rows(_extrapolated(pair.c, increments).detach().unsqueeze(-3))
            k, system = self.newton.root(equations, start, system)
            increments.append(k.reshape(x.shape))
            end = base + pair.diagonal * increments[-1]
        with torch.no_grad():
            error = weighted(pair.error, increments)
        # As a difference quotient the slope does not multiply the tolerance of Newton's method by the stiffness.
        still = h == 0
        last = torch.where(still, slope, increments[-1] / torch.where(still, 1.0, h))
        return Attempt(end, last, error, torch.ones_like(h), increments, 0)


def _extrapolated(nodes: Weights, increments: list[Tensor]) -> Tensor:
    """The next increment on the line through the last two."""
    n = len(increments)
    if n == 1:
        return increments[0]
    return torch.lerp(increments[-2], increments[-1], (nodes[n] - nodes[n - 2]) / (nodes[n - 1] - nodes[n - 2]))


register(NativeImplicit("native_kencarp4", KENCARP4.order, len(KENCARP4.a) - 1, pair=KENCARP4))
