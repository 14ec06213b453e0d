"""Embedded Runge-Kutta pairs: a method, the error estimate that a second method inside it gives, and dense output.

Every pair here takes its last stage at the end of the step, so that this slope is the first one of the next step
(first same as last), and interpolates inside the step from the slopes it already has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from solvers.errors import InputError
from solvers.methods import explicit, imex
from solvers.numerics.tableau import ButcherTableau, ImplicitTableau, Rows, Weights


@dataclass(frozen=True)
class EmbeddedPair(ButcherTableau):
    """A tableau with error weights and dense output, each checked when made.

    The state at the fraction theta of a step is x + h sum_i b_i(theta) k_i with b_i(theta) = sum_j dense_ij theta^j,
    j = 1, 2, ...

    Args:
        a, b, order: as in `ButcherTableau`; the last row of `a` equals `b`.
        error: b minus the weights of the embedded method: h sum_i error_i k_i estimates the error of a step.
        embedded_order: order of the embedded method.
        dense: coefficients of b_i(theta), one row per stage.
        dense_order: order of the dense output.

    Raises:
        InputError: the shapes do not fit, or an order condition fails, of any of the three methods.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, sections II.4 to II.6.
    """

    error: Weights
    embedded_order: int
    dense: Rows
    dense_order: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.error) == len(self.dense) == self.stages:
            raise InputError(
                f"an embedded pair of {self.stages} stages needs as many error weights and rows of dense output, "
                f"got {len(self.error)} and {len(self.dense)}"
            )
        if (*self.a[-1], 0.0) != self.b:
            raise InputError("the last row of an embedded pair must equal its weights: append the stage at the end")
        ButcherTableau(self.a, tuple(b - e for b, e in zip(self.b, self.error, strict=True)), self.embedded_order)
        if not np.allclose(np.sum(self.dense, 1), self.b, rtol=0, atol=1e-12):
            raise InputError("the dense output of an embedded pair must end at its weights: correct its coefficients")
        for rows, weights in _shortened(self.a, self.dense):
            ButcherTableau(rows, weights, self.dense_order)


def _shortened(a: Rows, dense: Rows) -> Iterator[tuple[Rows, Weights]]:
    """Up to theta dense output is a method with the matrix a / theta, and has order conditions of its own."""
    for theta in (0.5, 0.75):
        rows = tuple(tuple(x / theta for x in row) for row in a)
        yield rows, tuple(Polynomial((0, *row))(theta) / theta for row in dense)


@dataclass(frozen=True)
class ImplicitPair:
    """An embedded pair of diagonally implicit methods: explicit first stage, then one diagonal entry, last row = b.

    Args:
        a: rows a_i1 .. a_ii.
        order, error, embedded_order, dense, dense_order: as in `EmbeddedPair`.

    Raises:
        InputError: the tableau is not of that form, or an order condition fails, of any of the three methods.
    """

    a: Rows
    order: int
    error: Weights
    embedded_order: int
    dense: Rows
    dense_order: int

    def __post_init__(self) -> None:
        if self.a[0] != (0.0,) or len({row[-1] for row in self.a[1:]}) != 1:
            raise InputError("an implicit pair needs an explicit first stage and one diagonal entry in all others")
        square = tuple((*row, *(0.0,) * (len(self.b) - len(row))) for row in self.a)
        ImplicitTableau(square, self.b, self.order)
        ImplicitTableau(square, tuple(b - e for b, e in zip(self.b, self.error, strict=True)), self.embedded_order)
        for rows, weights in _shortened(square, self.dense):
            ImplicitTableau(rows, weights, self.dense_order)

    @property
    def b(self) -> Weights:
        """The weights: the last stage is the end of the step."""
        return self.a[-1]

    @property
    def c(self) -> Weights:
        """Nodes: row sums."""
        return tuple(float(sum(row)) for row in self.a)

    @property
    def diagonal(self) -> float:
        """The diagonal entry of all stages but the first."""
        return self.a[-1][-1]


def dense_weights(dense: Rows, theta: Tensor) -> Tensor:
    """b_i(theta) of fractions `(points,)` from the coefficients of theta, theta^2, ...; `(stages, points)`."""
    coefficients = torch.tensor(dense, dtype=theta.dtype, device=theta.device)
    exponents = torch.arange(1, coefficients.shape[1] + 1, device=theta.device)
    return coefficients @ theta.pow(exponents.unsqueeze(-1))


def hermite(b: Weights) -> Rows:
    """Dense output by the cubic through the states and slopes at both ends, for weights `b` of a pair.

    x(theta) = x0 + (3 theta^2 - 2 theta^3) (x1 - x0) + h (theta (1 - theta)^2 k_first - theta^2 (1 - theta) k_last)
    """
    rows = [[0.0, 3 * w, -2 * w] for w in b]
    rows[0] = [x + y for x, y in zip(rows[0], (1.0, -2.0, 1.0), strict=True)]
    rows[-1] = [x + y for x, y in zip(rows[-1], (0.0, -1.0, 1.0), strict=True)]
    return tuple(tuple(row) for row in rows)


def quartic(a: Rows) -> Rows:
    """Dense output of order 4 by quartics that join values and slopes at both ends, for an `ImplicitPair`.

    For a method of order 4 whose stages are of order 2, the conditions on b(theta) are those of sum b, b.c, b.c^2,
    b.c^3 and b.A c^2. Of what they leave open, the least coefficients are taken.
    """
    stages, powers = len(a), np.arange(1, 5)
    matrix, b = np.zeros((stages, stages)), np.array(a[-1])
    for i, row in enumerate(a):
        matrix[i, : len(row)] = row
    c = matrix.sum(1)
    conditions = np.stack([c**0, c, c**2, c**3, matrix @ c**2])
    values = np.diag(1 / powers)[[0, 1, 2, 3, 3]] * np.array([1, 1, 1, 1, 1 / 3])[:, None]
    ends = np.stack([powers == 1, powers**0, powers])
    joined = np.stack([np.eye(stages)[0], b, np.eye(stages)[-1]])
    # Unknowns are the coefficients row by row, one stage after the other.
    left = np.concatenate([np.kron(conditions, np.eye(4)), np.kron(np.eye(stages), ends)])
    right = np.concatenate([values.ravel(), joined.T.ravel()])
    coefficients = np.linalg.lstsq(left, right, rcond=None)[0].reshape(stages, 4)
    return tuple(tuple(float(x) for x in row) for row in coefficients)


def _floats(*values: str | int) -> Weights:
    """Exact fractions as the nearest numbers."""
    return tuple(float(Fraction(value)) for value in values)


def _appended(tableau: ButcherTableau) -> tuple[Rows, Weights]:
    """Rows and weights of a tableau with one more stage at the end of the step."""
    return (*tableau.a, tableau.b), (*tableau.b, 0.0)


_A, _B = _appended(explicit.BOSH3)
BOSH3 = EmbeddedPair(
    a=_A,
    b=_B,
    order=3,
    error=_floats("-5/72", "1/12", "1/9", "-1/8"),
    embedded_order=2,
    dense=hermite(_B),
    dense_order=3,
)

# The weights d of dense output of order 4 in Hairer, Norsett, Wanner, section II.6, program DOPRI5:
# x(theta) = x0 + theta (D + (1 - theta) (B + theta (D - h k7 - B + (1 - theta) h sum d_i k_i))), D = x1 - x0 and
# B = h k1 - D; that is the cubic of `hermite` and theta^2 (1 - theta)^2 h sum d_i k_i.
_DOPRI5_D = _floats(
    "-12715105075/11282082432",
    0,
    "87487479700/32700410799",
    "-10690763975/1880347072",
    "701980252875/199316789632",
    "-1453857185/822651844",
    "69997945/29380423",
)


_A, _B = _appended(explicit.DOPRI5)
DOPRI5 = EmbeddedPair(
    a=_A,
    b=_B,
    order=5,
    error=_floats("71/57600", 0, "-71/16695", "71/1920", "-17253/339200", "22/525", "-1/40"),
    embedded_order=4,
    dense=tuple((p, q + d, r - 2 * d, d) for (p, q, r), d in zip(hermite(_B), _DOPRI5_D, strict=True)),
    dense_order=4,
)

# Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, Comput. Math.
# Appl. 62 (2011).
TSIT5_A = (
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
)
TSIT5_ERROR = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    1 / 66,
)


def _tsit5_polynomials() -> list[Polynomial]:
    """b_i(theta) of Tsit5 (section 3 of the paper), multiplied out."""
    x = Polynomial((0.0, 1.0))
    return [
        -1.0530884977290216 * x * (x - 1.3299890189751412) * (x**2 - 1.4364028541716351 * x + 0.7139816917074209),
        0.1017 * x**2 * (x**2 - 2.1966568338249754 * x + 1.2949852507374631),
        2.490627285651252793 * x**2 * (x**2 - 2.38535645472061657 * x + 1.57803468208092486),
        -16.54810288924490272 * (x - 1.21712927295533244) * (x - 0.61620406037800089) * x**2,
        47.37952196281928122 * (x - 1.203071208372362603) * (x - 0.658047292653547382) * x**2,
        -34.87065786149660974 * (x - 1.2) * (x - 0.666666666666666667) * x**2,
        2.5 * (x - 1) * (x - 0.6) * x**2,
    ]


def tsit5_dense(theta: float) -> list[float]:
    """Weights of the stages of Tsit5 for the state at the fraction theta of a step."""
    return [float(p(theta)) for p in _tsit5_polynomials()]


TSIT5 = EmbeddedPair(
    a=((), *TSIT5_A),
    b=(*TSIT5_A[-1], 0.0),
    order=5,
    error=TSIT5_ERROR,
    embedded_order=4,
    dense=tuple(tuple(float(c) for c in p.coef[1:]) for p in _tsit5_polynomials()),
    dense_order=4,
)

# The implicit method of the pair ARK4(3)6L[2]SA of Kennedy, Carpenter, Appl. Numer. Math. 44 (2003), appendix C:
# L-stable, stages of order 2.
KENCARP4 = ImplicitPair(
    a=imex.KENCARP4.implicit,
    order=4,
    error=tuple(
        b - e
        for b, e in zip(
            imex.KENCARP4.implicit_weights,
            _floats(
                "4586570599/29645900160",
                0,
                "178811875/945068544",
                "814220225/1159782912",
                "-3700637/11593932",
                "61727/225920",
            ),
            strict=True,
        )
    ),
    embedded_order=3,
    dense=quartic(imex.KENCARP4.implicit),
    dense_order=4,
)
