"""What one step makes of a linear equation, from the coefficients of a method alone."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from solvers.errors import InputError
from solvers.numerics.tableau import ButcherTableau, ImexTableau, ImplicitTableau, Splitting

#: Beyond any step of an oscillation that a composition can take.
FURTHEST = 8.0

#: Coefficients below this are what rounding leaves of zero: those of the published methods have some 16 digits.
NOTHING = 1e-12


class Stability(ABC):
    """The stability function of a method: a step of x' = lambda x multiplies x by R(h lambda)."""

    @abstractmethod
    def __call__(self, z: Any) -> np.ndarray:
        """R at z = h lambda, of the shape of z."""

    @abstractmethod
    def limit(self, angle: float = math.pi) -> float:
        """How far along a ray from 0 no step grows: the largest r for which abs(R(s exp(i angle))) <= 1 up to s = r.

        Args:
            angle: of the ray: pi for decay, the negative real axis; pi / 2 for oscillation, the imaginary axis.

        Returns:
            The end of the stable stretch, 0 where already the smallest step grows, and infinity where none does.
        """


@dataclass(frozen=True)
class RationalStability(Stability):
    """R(z) = P(z) / Q(z) of a Runge-Kutta method:

        R(z) = 1 + z b^T (I - z A)^-1 1 = det(I - z A + z 1 b^T) / det(I - z A)

    Attributes:
        numerator, denominator: P and Q.

    Source: Hairer & Wanner, Solving Ordinary Differential Equations II, IV.3, equations (3.2) and (3.3).
    """

    numerator: Any
    denominator: Any

    @classmethod
    def of(cls, tableau: ButcherTableau | ImplicitTableau | Any) -> RationalStability:
        """Of a tableau, explicit or implicit, with rows `a` and weights `b`."""
        a, b = _square(tableau.a), np.array(tableau.b, dtype=float)
        return cls(_determinant(a - np.outer(np.ones(len(b)), b)), _determinant(a))

    def __call__(self, z: Any) -> np.ndarray:
        """R at z = h lambda, complex, of the shape of z."""
        z = np.asarray(z, dtype=complex)
        values: np.ndarray = self.numerator(z) / self.denominator(z)
        return values

    def limit(self, angle: float = math.pi) -> float:
        """How far along a ray from 0 no step grows; see `Stability.limit`."""
        # Where the first root is not close to others it has the digits of the coefficients.
        return _first_positive(_squared(self.numerator, angle) - _squared(self.denominator, angle))


@dataclass(frozen=True)
class SplittingStability(Stability):
    """The matrix of a composition of drifts and kicks on the oscillator q' = w p, p' = -w q, at z = h w:

        drift of d: (1, d z; 0, 1),    kick of k: (1, 0; -k z, 1)

    Its determinant is 1, so that no step grows where its trace lies between -2 and 2.

    Attributes:
        splitting: the fractions.

    Source: Hairer, Lubich & Wanner, Geometric Numerical Integration, VI.3; Blanes, Casas & Murua, On the linear
    stability of splitting methods, Found. Comput. Math. 8 (2008).
    """

    splitting: Splitting

    def __call__(self, z: Any) -> np.ndarray:
        """The matrix `(*z, 2, 2)` that takes (q, p) over a step, at z = h w, real."""
        z = np.asarray(z, dtype=float)
        matrix = np.broadcast_to(np.eye(2), (*z.shape, 2, 2)).copy()
        for kind, fraction, *_ in self.splitting.moves:
            row, other, sign = (0, 1, 1.0) if kind == "drift" else (1, 0, -1.0)
            matrix[..., row, :] += sign * fraction * z[..., None] * matrix[..., other, :]
        return matrix

    def limit(self, angle: float = math.pi / 2) -> float:
        """The largest h w up to which no step grows: an oscillation, whose eigenvalues lie on the imaginary axis."""
        if not math.isclose(abs(angle), math.pi / 2):
            raise InputError(f"angle is {angle:g}, expected pi / 2: a composition is stable, or not, on oscillations")
        squares = np.linspace(0.0, FURTHEST, 4_001) ** 2
        (beyond,) = np.nonzero(np.abs(self._half_trace(squares)) > 1 + 1e-9)
        if not len(beyond):
            return math.inf
        # Before that there may be a shorter unstable stretch. Half the trace is a polynomial in z^2; on a domain where
        # it stays small, its roots are found well from its Chebyshev series.
        end = float(squares[beyond[0]])
        degree = (len(self.splitting.drifts) + len(self.splitting.kicks)) // 2
        trace: Any = Chebyshev.interpolate(self._half_trace, degree, domain=[0.0, end])
        roots = [root for edge in (-1.0, 1.0) for root in (trace - edge).roots()]
        real = sorted(r.real for r in roots if 1e-6 < r.real < end and abs(r.imag) < 1e-4 * abs(r))
        for here, there in itertools.pairwise([*real, end]):
            # A place that is touched and not crossed is no end.
            if abs(self._half_trace((here + there) / 2)) > 1:
                return self._end(here)
        return math.sqrt(end)

    def _half_trace(self, square: Any) -> Any:
        return np.trace(self(np.sqrt(square)), axis1=-2, axis2=-1) / 2

    def _end(self, square: float) -> float:
        """The place near here where the trace leaves the stable range, to the last digits."""
        low, high = square * (1 - 1e-6), square * (1 + 1e-6)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if abs(self._half_trace(middle)) > 1 else (middle, high)
        return math.sqrt(low)


@dataclass(frozen=True)
class ImexStability:
    """R(z, v) of an implicit-explicit method on x' = n x + l x, n taken explicitly, at z = h n and v = h l:

        (I - z A - v D) X = 1,    R = 1 + z b^T X + v e^T X

    Attributes:
        tableau: the pair of methods.

    Source: Ascher, Ruuth & Spiteri, Appl. Numer. Math. 25 (1997), section 2.
    """

    tableau: ImexTableau

    def __call__(self, z: Any, v: Any = 0.0) -> np.ndarray:
        """R, complex, of the shape of z and v together."""
        z, v = np.broadcast_arrays(np.asarray(z, dtype=complex), np.asarray(v, dtype=complex))
        a, d = _square(self.tableau.explicit), _square(self.tableau.implicit)
        b, e = np.array(self.tableau.weights), np.array(self.tableau.implicit_weights)
        zs, vs = z[..., None, None], v[..., None, None]
        stages = np.linalg.solve(np.eye(len(b)) - zs * a - vs * d, np.ones((*z.shape, len(b), 1)))[..., 0]
        values: np.ndarray = 1 + z * (stages @ b) + v * (stages @ e)
        return values


def _square(rows: Sequence[Sequence[float]]) -> np.ndarray:
    full = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        full[i, : len(row)] = row
    return full


def _determinant(matrix: np.ndarray) -> Any:
    """det(I - z M) as a polynomial in z.

    By the sums of principal minors, Faddeev and Le Verrier: exact where M is strictly triangular, whose eigenvalues a
    search would find to half of the digits alone.
    """
    coefficients, power = [1.0], np.eye(len(matrix))
    for k in range(1, len(matrix) + 1):
        power = matrix @ power
        coefficients.append(-np.trace(power) / k)
        power = power + coefficients[-1] * np.eye(len(matrix))
    return Polynomial(_without_noise(np.array(coefficients)))


def _squared(polynomial: Any, angle: float) -> Any:
    """abs(P(r exp(i angle)))^2 as a polynomial in r."""
    turned = Polynomial(polynomial.coef * np.exp(1j * angle * np.arange(len(polynomial.coef))))
    return Polynomial((turned * Polynomial(turned.coef.conj())).coef.real)


def _first_positive(polynomial: Any) -> float:
    """Where a polynomial that is 0 at 0 becomes positive first; infinity where it never does."""
    coefficients = np.trim_zeros(_without_noise(polynomial.coef), "b")
    first = np.flatnonzero(coefficients)
    if not len(first):
        return math.inf
    if coefficients[first[0]] > 0:
        return 0.0
    rest: Any = Polynomial(coefficients[first[0] :])
    roots: Any = rest.roots()
    places: list[float] = sorted(r.real for r in roots if r.real > 0 and abs(r.imag) < 1e-6 * abs(r))
    for here, there in zip(places, [*places[1:], 2 * places[-1] + 1] if places else [], strict=True):
        # A root at which the sign stays is touched and not crossed.
        if rest((here + there) / 2) > 0:
            return float(here)
    return math.inf


def _without_noise(coefficients: np.ndarray) -> np.ndarray:
    return np.where(np.abs(coefficients) < NOTHING * np.abs(coefficients).max(initial=1.0), 0.0, coefficients)
