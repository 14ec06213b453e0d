"""Coefficients of one-step methods, which check their own order conditions when made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from solvers.errors import InputError

Rows = tuple[tuple[float, ...], ...]
Weights = tuple[float, ...]

#: How far a condition may be from holding: the rounding of published coefficients of 13 digits and more.
TOLERANCE = 1e-12


class _Method:
    """One Runge-Kutta method as arrays: matrix a, weights b, nodes c = a 1."""

    def __init__(self, a: Rows, b: Weights) -> None:
        self.a, self.b = np.zeros((len(b), len(b))), np.array(b, dtype=float)
        for i, row in enumerate(a):
            self.a[i, : len(row)] = row
        self.c = self.a.sum(1)


#: The rooted trees up to order 4: name of the condition, its right-hand side, and its left-hand side with one method
#: for each node, root first. Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, II.2; one
#: method per node: Kennedy & Carpenter, Appl. Numer. Math. 44 (2003), section 2.
_TREES: tuple[tuple[int, str, float, Callable[..., Any]], ...] = (
    (1, "sum b = 1", 1, lambda r: r.b.sum()),
    (2, "b.c = 1/2", 1 / 2, lambda r, x: r.b @ x.c),
    (3, "b.c^2 = 1/3", 1 / 3, lambda r, x, y: r.b @ (x.c * y.c)),
    (3, "b.Ac = 1/6", 1 / 6, lambda r, x, y: r.b @ x.a @ y.c),
    (4, "b.c^3 = 1/4", 1 / 4, lambda r, x, y, z: r.b @ (x.c * y.c * z.c)),
    (4, "b.(c Ac) = 1/8", 1 / 8, lambda r, x, y, z: r.b @ (x.c * (y.a @ z.c))),
    (4, "b.Ac^2 = 1/12", 1 / 12, lambda r, x, y, z: r.b @ x.a @ (y.c * z.c)),
    (4, "b.AAc = 1/24", 1 / 24, lambda r, x, y, z: r.b @ x.a @ y.a @ z.c),
)


def _order_residuals(order: int, **methods: _Method) -> dict[str, float]:
    """How far each condition up to min(order, 4) is from holding, for every way to give each node a method."""
    residuals = {}
    for nodes, name, value, left in _TREES:
        if nodes > order:
            continue
        for labels in itertools.product(methods, repeat=nodes):
            which = f" for {', '.join(labels)}" if len(methods) > 1 else ""
            residuals[name + which] = float(left(*(methods[label] for label in labels))) - value
    return residuals


def _refuse(what: str, order: int, residuals: dict[str, float]) -> None:
    """Raise for the first condition that does not hold."""
    for condition, residual in residuals.items():
        if not abs(residual) <= TOLERANCE:
            raise InputError(
                f"{what} declared of order {order} misses the condition {condition} by {residual:.3g}: "
                "correct its coefficients or lower its order"
            )


def _check_shape(rows: Rows, weights: Weights, kind: str, diagonal: int) -> None:
    shape, expected = [len(row) for row in rows], [i + diagonal for i in range(len(weights))]
    if shape != expected:
        hint = "" if diagonal else "the diagonal and "
        raise InputError(
            f"rows of an {kind} tableau with {len(weights)} stages must have lengths {expected}, got {shape}: "
            f"leave out {hint}what is above the diagonal"
        )


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

    a: Rows
    b: Weights
    order: int
    c: Weights = field(init=False)

    def __post_init__(self) -> None:
        _check_shape(self.a, self.b, "explicit", 0)
        object.__setattr__(self, "c", tuple(float(sum(row)) for row in self.a))
        _refuse("a tableau", self.order, self.residuals())

    @property
    def stages(self) -> int:
        """Number of right-hand-side evaluations a step."""
        return len(self.b)

    def residuals(self) -> dict[str, float]:
        """How far each order condition up to min(order, 4) is from holding."""
        return _order_residuals(self.order, explicit=_Method(self.a, self.b))


@dataclass(frozen=True)
class ImexTableau:
    """An explicit and a diagonally implicit Runge-Kutta method with the same stages, for x' = N(t, x) + L x.

        X_i = x + h sum_{j<i} a_ij N(t + c_i h, X_j) + h sum_{j<=i} d_ij L X_j
        x+  = x + h sum_i b_i N(t + c_i h, X_i) + h sum_i e_i L X_i

    Args:
        explicit: rows a_i1 .. a_i,i-1.
        implicit: rows d_i1 .. d_ii.
        weights: b.
        implicit_weights: e.
        order: the declared order; the conditions of both methods and all that couple them are checked up to order 4.

    Raises:
        InputError: the shape is not that of such a pair, or an order condition fails.
    """

    explicit: Rows
    implicit: Rows
    weights: Weights
    implicit_weights: Weights
    order: int

    def __post_init__(self) -> None:
        _check_shape(self.explicit, self.weights, "explicit", 0)
        _check_shape(self.implicit, self.implicit_weights, "implicit", 1)
        if len(self.weights) != len(self.implicit_weights):
            raise InputError(
                f"the explicit method has {len(self.weights)} stages and the implicit one "
                f"{len(self.implicit_weights)}: an IMEX pair shares its stages"
            )
        _refuse("a pair of tableaux", self.order, self.residuals())

    def residuals(self) -> dict[str, float]:
        """How far each order and coupling condition up to min(order, 4) is from holding."""
        methods = {
            "explicit": _Method(self.explicit, self.weights),
            "implicit": _Method(self.implicit, self.implicit_weights),
        }
        return _order_residuals(self.order, **methods)

    @property
    def c(self) -> Weights:
        """Nodes of the explicit method, which alone sees the time."""
        return tuple(float(sum(row)) for row in self.explicit)

    @property
    def ends_in_last_stage(self) -> bool:
        """The last stage is the new state already (both methods are stiffly accurate)."""
        return (*self.explicit[-1], 0.0) == self.weights and self.implicit[-1] == self.implicit_weights

    def _used(self, rows: Rows, weights: Weights) -> tuple[bool, ...]:
        """Stages whose slope any later stage or the new state uses."""
        final = [bool(w) and not self.ends_in_last_stage for w in weights]
        return tuple(used or any(row[j] for row in rows[j + 1 :]) for j, used in enumerate(final))

    @property
    def explicit_used(self) -> tuple[bool, ...]:
        """Stages at which N is needed."""
        return self._used(self.explicit, self.weights)

    @property
    def implicit_used(self) -> tuple[bool, ...]:
        """Stages at which L X is needed."""
        return self._used(self.implicit, self.implicit_weights)


@dataclass(frozen=True)
class ExponentialTableau:
    """An exponential Runge-Kutta method for x' = L x + N(t, x).

        X_i = phi_0(c_i h L) x + h sum_k phi_k(c_i h L) sum_{j<i} a_ikj N(t + c_j h, X_j),    k = 1, 2, ..

    and the new state likewise from `b` with c = 1.

    Args:
        a: for each stage after the first the rows a_i1, a_i2, .. of phi_1, phi_2, .., each over the stages before.
        b: the rows of the new state, each over all stages.
        c: nodes, one per stage, c_1 = 0.
        order: the declared order. Checked: the conditions of the Runge-Kutta method for L = 0 up to order 4, and
            that constant N is integrated exactly for any L.

    Raises:
        InputError: a condition fails.

    Source: Hochbruck & Ostermann, Exponential integrators, Acta Numerica 19 (2010), section 2.3.
    """

    a: tuple[Rows, ...]
    b: Rows
    c: Weights
    order: int

    def __post_init__(self) -> None:
        stages = [((), self.c[0]), *zip(self.a, self.c[1:], strict=True), (self.b, 1.0)]
        for i, (rows, node) in enumerate(stages):
            for k, row in enumerate(rows):
                expected = node if k == 0 else 0.0
                if len(row) != i or abs(sum(row) - expected) > TOLERANCE:
                    raise InputError(
                        f"weights {row} of phi_{k + 1} in stage {i + 1} must be {i} numbers that sum to {expected:g}: "
                        "a constant N would not be integrated exactly"
                    )
        self.at_zero()

    @property
    def orders(self) -> dict[float, int]:
        """The highest phi-function at each node but the first, and at the end."""
        highest: dict[float, int] = {}
        for rows, node in (*zip(self.a, self.c[1:], strict=True), (self.b, 1.0)):
            highest[node] = max(highest.get(node, 0), len(rows))
        return highest

    def at_zero(self) -> ButcherTableau:
        """The Runge-Kutta method that this is for L = 0, where phi_k = 1 / k!."""
        rows = tuple(self._at_zero(rows, i + 1) for i, rows in enumerate(self.a))
        return ButcherTableau(((), *rows), self._at_zero(self.b, len(self.c)), self.order)

    @staticmethod
    def _at_zero(rows: Rows, length: int) -> Weights:
        return tuple(sum(row[j] / math.factorial(k + 1) for k, row in enumerate(rows)) for j in range(length))


@dataclass(frozen=True)
class Splitting:
    """A composition of drifts (the flow of q' = velocity) and kicks (the flow of p' = force), in turn.

    Args:
        drifts, kicks: the fraction of the step that each one takes, in the order of application.
        order: the declared order; its conditions are checked up to order 4.
        kick_first: start with a kick.
        symmetric: the sequence reads the same backwards (checked), so that a step of -h undoes one of h.
        newtonian: of this order only where [kick, [kick, [kick, drift]]] = 0, as for q'' = force(q).

    Raises:
        InputError: drifts and kicks do not alternate, or a condition fails.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration, III.5 and V.3.
    """

    drifts: Weights
    kicks: Weights
    order: int
    kick_first: bool = False
    symmetric: bool = False
    newtonian: bool = False
    #: Kind and fraction of each move, and the fractions of the step that the drifts before it and with it have taken.
    moves: tuple[tuple[str, float, float, float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        first, second = (self.kicks, self.drifts) if self.kick_first else (self.drifts, self.kicks)
        if len(first) - len(second) not in (0, 1):
            raise InputError(
                f"{len(self.drifts)} drifts and {len(self.kicks)} kicks cannot alternate from a "
                f"{'kick' if self.kick_first else 'drift'}: give as many of the first kind, or one more"
            )
        kinds = ("kick", "drift") if self.kick_first else ("drift", "kick")
        moves, drifts = [], [0.0]
        for i in range(len(first) + len(second)):
            kind, fraction = kinds[i % 2], (first, second)[i % 2][i // 2]
            before = math.fsum(drifts)
            drifts.append(fraction if kind == "drift" else 0.0)
            moves.append((kind, fraction, before, math.fsum(drifts)))
        object.__setattr__(self, "moves", tuple(moves))
        sequence = [move[:2] for move in moves]
        if self.symmetric and sequence != sequence[::-1]:
            raise InputError("a splitting declared symmetric does not read the same backwards: correct its fractions")
        _refuse("a splitting", self.order, self.residuals())

    def words(self, length: int) -> dict[str, float]:
        """The product of the exponentials of all moves: the coefficient of each word of D and K up to a length."""
        product = {"": 1.0}
        for kind, fraction, *_ in self.moves:
            longer: dict[str, float] = {}
            for word, factor in product.items():
                for n in range(length - len(word) + 1):
                    key = word + kind[0].upper() * n
                    longer[key] = longer.get(key, 0.0) + factor * fraction**n / math.factorial(n)
            product = longer
        return product

    def residuals(self, limit: int = 4) -> dict[str, float]:
        """How far each condition up to min(order, limit) is from holding.

        With D and K the Lie derivatives of drift and kick, the product of the exponentials of all moves must agree
        with exp(D + K): every word of n letters has the coefficient 1 / n!.
        """
        order = min(self.order, limit)
        product = self.words(order)
        words = ["".join(letters) for n in range(1, order + 1) for letters in itertools.product("DK", repeat=n)]
        if self.newtonian:
            words = [word for word in words if (len(word), word.count("K")) != (4, 3)]
        return {f"[{word}] = 1/{len(word)}!": product.get(word, 0.0) - 1 / math.factorial(len(word)) for word in words}


@dataclass(frozen=True)
class StageGroup:
    """Stages that have to be solved for together, and their part of a tableau."""

    stages: range
    weights: list[list[float]]

    @cached_property
    def inverse(self) -> list[list[float]]:
        """The inverse of the weights (the pseudo-inverse, where there is none)."""
        inverse: list[list[float]] = np.linalg.pinv(np.array(self.weights)).tolist()
        return inverse

    @property
    def explicit(self) -> bool:
        """Whether this is one stage that does not see itself."""
        return self.weights == [[0.0]]


@dataclass(frozen=True)
class ImplicitTableau:
    """An implicit Runge-Kutta method: k_i = f(t + c_i h, x + h sum_j a_ij k_j), x+ = x + h sum_i b_i k_i.

    Args:
        a: square, row i holds a_i1 .. a_is.
        b: weights, one per stage.
        order: the declared order; its conditions are checked up to order 4.
        symmetric: the step of -h takes back the step of h; checked.

    Raises:
        InputError: the shape does not fit, or an order condition or the symmetry fails.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.2 and II.7.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        shape = [len(row) for row in self.a]
        if shape != [len(self.b)] * len(self.b):
            raise InputError(
                f"rows of an implicit tableau with {len(self.b)} stages must have that length each, got {shape}: "
                "write the zeros too"
            )
        what = "a tableau declared symmetric and" if self.symmetric else "a tableau"
        _refuse(what, self.order, self.residuals())

    @property
    def c(self) -> tuple[float, ...]:
        """Nodes: c_i = sum_j a_ij."""
        return tuple(float(sum(row)) for row in self.a)

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.b)

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the last stage is the new state."""
        return self.a[-1] == self.b

    @cached_property
    def blocks(self) -> tuple[StageGroup, ...]:
        """Groups of stages that see one another, in the order in which they can be solved."""
        a, n = np.array(self.a), self.stages
        cuts = [0, *(i for i in range(1, n) if not a[:i, i:].any()), n]
        return tuple(StageGroup(range(i, j), a[i:j, i:j].tolist()) for i, j in pairwise(cuts))

    def residuals(self) -> dict[str, float]:
        """How far each order condition up to min(order, 4), and the declared symmetry, is from holding."""
        residuals = _order_residuals(self.order, implicit=_Method(self.a, self.b))
        if self.symmetric:
            # Hairer, Lubich, Wanner, Geometric Numerical Integration, theorem V.2.3.
            a = np.array(self.a)
            residuals["a_ij + a_s+1-i,s+1-j = b_j"] = float(np.abs(a + a[::-1, ::-1] - np.array(self.b)).max())
        return residuals

    @property
    def symplectic(self) -> bool:
        """b_i a_ij + b_j a_ji = b_i b_j, to rounding: quadratic invariants and the symplectic form are conserved.

        Source: Sanz-Serna, Runge-Kutta schemes for Hamiltonian systems, BIT 28 (1988).
        """
        a, b = np.array(self.a), np.array(self.b)
        weighted = b[:, None] * a
        return bool(np.abs(weighted + weighted.T - np.outer(b, b)).max() < 1e-14)
