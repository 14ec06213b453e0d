"""Linear operators L of semilinear fields: product L x, solve (1 - h L)^-1 x, flow exp(h L) x and phi-functions.

Each acts on a state `(*batch, components, hidden)`; h is a number, or a tensor that broadcasts against
`(*batch, hidden)`, so every sample and channel may have its own step size.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from solvers.base.precision import widened
from solvers.base.state import over_state
from solvers.base.values import exporting
from solvers.numerics.phi import TwoByTwo, matrix_phis, oscillator_phis, phi_action, phis
from solvers.protocol import Time, structure

T = TypeVar("T")
Number = float | Tensor

#: From states x_0, x_1, .. to the sum over k of phi_k(h L) x_k.
Combination = Callable[[Sequence[Tensor]], Tensor]


class LinearOperator(Protocol):
    """What a semilinear field hands to a solver as its linear part."""

    def apply(self, state: Tensor) -> Tensor:
        """L x."""
        ...

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """(1 - h L)^-1 x."""
        ...

    def flow(self, h: Time, state: Tensor) -> Tensor:
        """exp(h L) x."""
        ...

    def phis(self, h: Time, order: int, like: Tensor) -> Combination:
        """The map from x_0, x_1, .. to phi_0(h L) x_0 + phi_1(h L) x_1 + .., up to phi_order (`solvers.numerics.phi`).

        What does not depend on the states (of the kind of `like`) is computed here, for any number of uses.
        """
        ...


def _operator(semilinear: Any, terms: frozenset[str] | None) -> LinearOperator:
    """What the field makes; while exporting a copy, so that what stands for values stays in no user's operator."""
    operator: LinearOperator = semilinear.operator(terms)
    if exporting() and isinstance(getattr(operator, "memo", None), Memo):
        operator = copy.copy(operator)
        object.__setattr__(operator, "memo", Memo())
    return operator


def linear_part(semilinear: Any, terms: frozenset[str] | None = None) -> LinearOperator:
    """The operator of a field; a bound field keeps it, and so whatever the operator computed once."""
    kept: dict[Any, LinearOperator] | None = getattr(semilinear, "operators", None)
    if kept is None:
        return _operator(semilinear, terms)
    # What a field computes for its operator while nothing is recorded has no gradient to give.
    key = (terms, torch.is_grad_enabled())
    if key not in kept:
        kept[key] = _operator(semilinear, terms)
    return kept[key]


def split_at(
    field: Any, t: Time, state: Tensor, u: Any, terms: frozenset[str] | None = None
) -> tuple[LinearOperator, Tensor]:
    """L and N of a quasilinear field f = L x + N, as they are at a state: what a first-order method goes by in a step.

    L of a semilinear field is the same at every state.
    """
    if "semilinear" in structure(field):
        return linear_part(field, terms), field.nonlinear(t, state, u, terms)
    split: tuple[LinearOperator, Tensor] = field.frozen(t, state, u)
    return split


class Memo:
    """What an operator computed for the step sizes it met last, so that equal steps share one matrix function."""

    size = 16

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def __call__(self, h: Time, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made once for each number h and `key`."""
        if isinstance(h, Tensor) or torch.compiler.is_dynamo_compiling():
            return make()
        # What was made while nothing was recorded has no gradient to give.
        key = (h, key, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        if key not in self._kept:
            with contextlib.ExitStack() as stack:
                # Checkpointing counts what each recomputed stretch saves: this, made once, must not be counted.
                # torch.func knows no such hooks, and needs none.
                with contextlib.suppress(RuntimeError):
                    stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is))
                value = make()
            while len(self._kept) >= self.size:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = value
        kept: T = self._kept[key]
        return kept


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _sum(products: Iterable[Tensor]) -> Tensor:
    total, *rest = products
    for product in rest:
        total = total + product
    return total


@dataclass(frozen=True)
class OscillatorOperator:
    """One 2x2 block per channel, L = [[0, 1], [-stiffness, -damping]] on (q, p).

    Attributes:
        stiffness: A, a number or `(hidden,)`.
        damping: G, a number or `(hidden,)`.
    """

    stiffness: Number
    damping: Number
    memo: Memo = field(default_factory=Memo, init=False, compare=False, repr=False)

    def apply(self, state: Tensor) -> Tensor:
        """(p, -A q - G p)."""
        q, p = state.unbind(-2)
        return torch.stack((p, -self.stiffness * q - self.damping * p), dim=-2)

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """Closed form: p+ = (p - h A q) / (1 + h G + h^2 A), q+ = q + h p+."""
        q, p = state.unbind(-2)
        p = (p - h * self.stiffness * q) / (1 + h * self.damping + h * h * self.stiffness)
        return torch.stack((q + h * p, p), dim=-2)

    def flow(self, h: Time, state: Tensor) -> Tensor:
        """The damped oscillator in closed form, smooth across critical damping."""
        return self.phis(h, 0, state)((state,))

    def phis(self, h: Time, order: int, like: Tensor) -> Combination:
        """The sum of 2x2 blocks times states."""
        blocks = self.memo(h, (order, like.dtype, like.device), lambda: self._blocks(h, order, like))

        def combination(states: Sequence[Tensor]) -> Tensor:
            parts = [(*block, *x.unbind(-2)) for block, x in zip(blocks, states, strict=False)]
            q = _sum(a * q + b * p for a, b, _, _, q, p in parts)
            p = _sum(c * q + d * p for _, _, c, d, q, p in parts)
            return torch.stack((q, p), dim=-2)

        return combination

    def _blocks(self, h: Time, order: int, like: Tensor) -> list[TwoByTwo]:
        values = (h, self.stiffness, self.damping)
        # Of numbers alone, numbers in double precision.
        numbers = not any(isinstance(value, Tensor) for value in values)
        dtype, device = (torch.float64, "cpu") if numbers else (widened(like).dtype, like.device)
        step, stiffness, damping = (torch.as_tensor(value, dtype=dtype, device=device) for value in values)
        blocks = oscillator_phis(step, stiffness, damping, order)
        if not numbers or exporting():
            return [tuple(entry.to(like.dtype) for entry in block) for block in blocks]  # type: ignore[misc]
        return [tuple(map(float, block)) for block in blocks]  # type: ignore[misc]


@dataclass(frozen=True)
class DiagonalOperator:
    """L x = values * x, the same on every component.

    Attributes:
        values: a number or `(hidden,)`, real or complex, or what broadcasts against the state.
    """

    values: Number
    memo: Memo = field(default_factory=Memo, init=False, compare=False, repr=False)

    def apply(self, state: Tensor) -> Tensor:
        """The product, entry by entry."""
        return self.values * state

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """X / (1 - h values)."""
        return state / (1 - over_state(h) * self.values)

    def flow(self, h: Time, state: Tensor) -> Tensor:
        """X exp(h values)."""
        return self.phis(h, 0, state)((state,))

    def phis(self, h: Time, order: int, like: Tensor) -> Combination:
        """The sum of phi-functions times states, entry by entry."""

        def functions() -> list[Tensor]:
            kind = widened(like).dtype
            values = phis(torch.as_tensor(over_state(h) * self.values, dtype=kind, device=like.device), order)
            return [value.to(like.dtype) for value in values]

        factors = self.memo(h, (order, like.dtype, like.device), functions)
        return lambda states: _sum(x * f for x, f in zip(states, factors, strict=False))


@dataclass(frozen=True)
class DenseOperator:
    """A matrix that acts from the right on every component, L x = x M.

    Matrix functions and factorisations for a step size that is one number are made once. With a step size per sample
    no matrix is made where its action on the state costs less; a step size per channel scales what each channel
    receives, the columns of M.

    Attributes:
        matrix: M, `(hidden, hidden)`.
    """

    matrix: Tensor
    memo: Memo = field(default_factory=Memo, init=False, compare=False, repr=False)

    def apply(self, state: Tensor) -> Tensor:
        """X M."""
        return state @ self.matrix

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """X (1 - h M)^-1."""
        right = state.to(self._precision)
        if isinstance(h, Tensor):
            solved: Tensor = torch.linalg.solve(self._system(h), right, left=False)
            return solved.to(state.dtype)
        if exporting():
            # A product, which every runtime has.
            return state @ self._inverse(h)
        factors = self.memo(h, "solve", lambda: torch.linalg.lu_factor(self._system(h)))
        rows: Tensor = torch.linalg.lu_solve(*factors, right.reshape(-1, state.shape[-1]), left=False)
        return rows.reshape(state.shape).to(state.dtype)

    def _inverse(self, h: Time) -> Tensor:
        """(1 - h M)^-1."""
        inverse: Tensor = self.memo(h, "inverse", lambda: torch.linalg.inv(self._system(h)).to(self.matrix.dtype))
        return inverse

    @property
    def _precision(self) -> torch.dtype:
        """Single at least: torch solves in no other."""
        return torch.promote_types(self.matrix.dtype, torch.float32)

    def _system(self, h: Time) -> Tensor:
        system = torch.diag(torch.ones_like(self.matrix[0])) - self.matrix * over_state(h)
        return system.to(self._precision)

    def flow(self, h: Time, state: Tensor) -> Tensor:
        """X exp(h M)."""
        return self.phis(h, 0, state)((state,))

    def phis(self, h: Time, order: int, like: Tensor) -> Combination:
        """The sum of states times matrices, or their action."""
        if isinstance(h, Tensor) and h.dim() > 0:
            step = h.unsqueeze(-2)
            return lambda states: phi_action(self.matrix, step, states)
        # torch.linalg.matrix_exp would do for order 0, but is off by 1e-13 for small arguments in double precision.
        matrices = self.memo(h, ("phis", order), lambda: matrix_phis(self.matrix * h, max(order, 1)))
        return lambda states: _sum(x @ f for x, f in zip(states, matrices, strict=False))


@dataclass(frozen=True)
class SkewOperator(DenseOperator):
    """A skew matrix, M = -M^T, that acts from the right: its flow is a rotation, and so is what midpoint makes of it.

    (1 - h M)^-1 has norm 1 at most, so that multiplying by it is as accurate as solving; equal steps share it.
    """

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """X (1 - h M)^-1; for inference with a step per sample (1 + h M) (1 - h^2 M^2)^-1, where M^2 is symmetric."""
        if not (isinstance(h, Tensor) and h.dim() > 0):
            return state @ self._inverse(h)
        if not exporting() or torch.is_grad_enabled():
            return super().solve(h, state)
        # Products and quotients, which every runtime has. Its eigenvalues come in pairs, so it has no derivative.
        squares, basis = torch.linalg.eigh(self.matrix @ self.matrix)
        quotient = (state @ basis / (1 - over_state(h) ** 2 * squares)) @ basis.t()
        solved: Tensor = quotient + over_state(h) * (quotient @ self.matrix)
        return solved
