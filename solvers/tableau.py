"""Butcher tableaux of explicit Runge-Kutta methods, which check their own order conditions when made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.errors import InputError


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit Runge-Kutta method: k_i = f(t + c_i h, x + h sum_j a_ij k_j), x+ = x + h sum_i b_i k_i.

    Args:
        a: row i holds a_i1 .. a_i,i-1 (row 0 is empty).
        b: weights, one per stage.
        order: the declared order; its conditions are checked up to order 4.

    Raises:
        InputError: the shape is not that of an explicit method, or an order condition fails.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.2.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        shape = [len(row) for row in self.a]
        if shape != list(range(len(self.b))):
            raise InputError(
                f"rows of an explicit tableau with {len(self.b)} stages must have lengths "
                f"{list(range(len(self.b)))}, got {shape}: leave out the diagonal and what is above it"
            )
        for condition, residual in self.residuals().items():
            if abs(residual) > 1e-12:
                raise InputError(
                    f"a tableau declared of order {self.order} misses the condition {condition} by {residual:.3g}: "
                    "correct its coefficients or lower its order"
                )

    @property
    def c(self) -> tuple[float, ...]:
        """Nodes: c_i = sum_j a_ij."""
        return tuple(float(sum(row)) for row in self.a)

    @property
    def stages(self) -> int:
        """Number of right-hand-side evaluations a step."""
        return len(self.b)

    def residuals(self) -> dict[str, float]:
        """How far each order condition up to min(order, 4) is from holding."""
        n = self.stages
        a, b, c = np.zeros((n, n)), np.array(self.b), np.array(self.c)
        for i, row in enumerate(self.a):
            a[i, :i] = row
        conditions = [
            (1, "sum b = 1", b.sum() - 1),
            (2, "b.c = 1/2", b @ c - 1 / 2),
            (3, "b.c^2 = 1/3", b @ c**2 - 1 / 3),
            (3, "b.Ac = 1/6", b @ a @ c - 1 / 6),
            (4, "b.c^3 = 1/4", b @ c**3 - 1 / 4),
            (4, "b.(c Ac) = 1/8", b @ (c * (a @ c)) - 1 / 8),
            (4, "b.Ac^2 = 1/12", b @ a @ c**2 - 1 / 12),
            (4, "b.AAc = 1/24", b @ a @ a @ c - 1 / 24),
        ]
        return {name: float(residual) for order, name, residual in conditions if order <= self.order}
