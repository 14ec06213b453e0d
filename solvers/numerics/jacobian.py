"""The equations of implicit stages, and linear systems with their Jacobian: dense factors, or products only.

Unknowns are rows, `(samples, unknowns)`; the Jacobian is one matrix per row, and no row ever sees another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.base.counted import Converted
from solvers.base.unhooked import unhooked
from solvers.base.values import asked
from solvers.protocol import Time, check_slope

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StageEquations:
    """The equations G(k) = 0 of coupled stages, G_i = k_i - h f(t_i, base_i + sum_j a_ij k_j, u_i).

    The unknowns are the increments k_i = h f_i and not the slopes f_i: they have the size of the state however stiff
    the field is, and are zero where h is. They come as rows, one per sample.

    Attributes:
        field: the right-hand side f.
        times, inputs: t_i and u_i of each stage.
        h: what multiplies slopes, broadcasting against the state.
        base: the known part of the state of each stage, `(*batch, stages, components, hidden)`.
        weights: a_ij, `(stages, stages)`.
    """

    field: Any
    times: Sequence[Time]
    inputs: Sequence[Any]
    h: Time
    base: Tensor
    weights: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among these values."""
        return [value for value in (*self.times, *self.inputs, self.h, self.base) if isinstance(value, Tensor)]

    @property
    def digits(self) -> float:
        """The eps of the type that the field computes in, which may have fewer digits than the equations."""
        seen = self.field.dtype if isinstance(self.field, Converted) else self.base.dtype
        return max(torch.finfo(seen).eps, torch.finfo(asked(self.base)).eps)

    @property
    def still(self) -> Tensor:
        """Which samples have a step of zero, `(samples, 1)`: dG/dk of them is the unit matrix.

        Whatever the derivative of the field, which need not be finite where a sample was stopped.
        """
        still = torch.as_tensor(self.h == 0, device=self.base.device)
        return still.expand(self.base[..., 0, :, :].shape).flatten(-2).all(-1).reshape(-1, 1)

    def rows(self, stages: Tensor) -> Tensor:
        """A tensor shaped like `base` with one row per sample."""
        return stages.reshape(math.prod(stages.shape[:-3]), math.prod(stages.shape[-3:]))

    def mix(self, rows: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """sum_j weights_ij k_j for each i, shaped like a state."""
        mixed = weights @ rows.reshape(len(rows), len(self.times), rows.shape[-1] // len(self.times))
        return mixed.reshape(self.base.shape).unbind(-3)

    def states(self, k: Tensor) -> list[Tensor]:
        """The state of each stage, base + sum_j a_ij k_j."""
        return [x + dx for x, dx in zip(self.base.unbind(-3), self.mix(k, self.weights), strict=True)]

    def increment(self, i: int, state: Tensor) -> Tensor:
        """h f of stage i at its state."""
        return self.h * check_slope(self.field, state, self.field(self.times[i], state, self.inputs[i]))

    def residual(self, k: Tensor) -> Tensor:
        """G(k)."""
        return k - self.rows(torch.stack([self.increment(i, x) for i, x in enumerate(self.states(k))], dim=-3))

    def scale(self, k: Tensor) -> Tensor:
        """The largest entry of a sample, in the state or its increments."""
        return torch.maximum(self.rows(self.base).abs(), k.abs()).amax(-1)

    def matrix(self, k: Tensor) -> Tensor:
        """dG/dk: blocks [i = j] - a_ij h df_i/dx."""
        size = k.shape[-1] // len(self.times)
        blocks = []
        for i, x in enumerate(self.states(k)):
            # One cotangent per entry of a sample, the same for all samples: row r of every Jacobian at once.
            eye = torch.eye(size, dtype=k.dtype, device=k.device)
            unit = eye.reshape(size, *[1] * (x.dim() - 2), *x.shape[-2:]).expand(size, *x.shape)
            slopes = pullback(partial(self.increment, i), x, batched=True)(unit)
            blocks.append(slopes.reshape(size, len(k), size).transpose(0, 1))
        coupled = torch.einsum("ij,ibrc->birjc", self.weights, torch.stack(blocks)).reshape(*k.shape, k.shape[-1])
        coupled = torch.where(self.still.unsqueeze(-1), 0.0, coupled)
        return torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - coupled

    def product(self, k: Tensor, transposed: bool = False) -> Map:
        """The map v -> dG/dk v, or with the transposed matrix."""
        differential, still = pullback if transposed else pushforward, self.still
        maps = [differential(partial(self.increment, i), x) for i, x in enumerate(self.states(k))]

        def forward(v: Tensor) -> Tensor:
            moved = [push(x) for push, x in zip(maps, self.mix(v, self.weights), strict=True)]
            return v - torch.where(still, 0.0, self.rows(torch.stack(moved, dim=-3)))

        def backward(w: Tensor) -> Tensor:
            moved = [pull(x) for pull, x in zip(maps, w.reshape(self.base.shape).unbind(-3), strict=True)]
            mixed = self.mix(self.rows(torch.stack(moved, dim=-3)), self.weights.T)
            return w - torch.where(still, 0.0, self.rows(torch.stack(mixed, dim=-3)))

        return backward if transposed else forward


def pullback(function: Map, x: Tensor, batched: bool = False) -> Map:
    """The map w -> (df/dx)^T w at x; `batched` takes a stack of cotangents."""
    if torch.is_inference_mode_enabled():
        # Autograd records nothing in inference mode; functional transforms do, at some cost for small states.
        back = torch.func.vjp(function, x)[1]
        return torch.func.vmap(lambda w: back(w)[0]) if batched else lambda w: back(w)[0]
    leaf, value = _recorded(function, x)
    return lambda w: _gradient(value, leaf, w, batched=batched)


def pushforward(function: Map, x: Tensor) -> Map:
    """The map v -> df/dx v at x."""
    if torch.is_inference_mode_enabled():
        return lambda v: torch.func.jvp(function, (x,), (v,))[1]
    leaf, value = _recorded(function, x)
    # The pullback is linear in its cotangent: its own pullback is the product wanted, for one backward pass.
    cotangent = torch.zeros_like(value, requires_grad=True)
    with unhooked():
        pulled = _gradient(value, leaf, cotangent, create_graph=True)
    return lambda v: _gradient(pulled, cotangent, v)


def _recorded(function: Map, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad(), unhooked():
        leaf = x.detach().requires_grad_(True)
        return leaf, function(leaf)


def _gradient(value: Tensor, leaf: Tensor, w: Tensor, batched: bool = False, create_graph: bool = False) -> Tensor:
    """The gradient of value.w with respect to `leaf`; zero where `value` does not see it."""
    gradient: Tensor | None = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(
            value, leaf, w, retain_graph=True, create_graph=create_graph, allow_unused=True, is_grads_batched=batched
        )
    return leaf.new_zeros(w.shape[: w.dim() - value.dim()] + leaf.shape) if gradient is None else gradient


class DenseSystem:
    """dG/dk by dense LU factors, one per sample."""

    #: Whether a move to another k costs nothing worth saving.
    moves_freely: ClassVar[bool] = False

    def __init__(self, equations: StageEquations, k: Tensor) -> None:
        self.equations = equations
        self.factors, self.pivots, _ = torch.linalg.lu_factor_ex(equations.matrix(k))

    def move(self, k: Tensor, rows: Tensor) -> None:
        """Factorise anew at `k` for the chosen `rows` (a mask); the others keep their factors."""
        matrix = self.equations.matrix(k)
        factors, pivots, _ = torch.linalg.lu_factor_ex(matrix[rows])
        self.factors[rows], self.pivots[rows] = factors, pivots

    def solve(self, rhs: Tensor, transposed: bool = False) -> Tensor:
        """(dG/dk)^-1 rhs, or with the transposed matrix."""
        solved: Tensor = torch.linalg.lu_solve(self.factors, self.pivots, rhs.unsqueeze(-1), adjoint=transposed)
        return solved.squeeze(-1)


class KrylovSystem:
    """dG/dk by GMRES on products with it: no matrix, and memory for some dozens of vectors."""

    moves_freely: ClassVar[bool] = True

    def __init__(self, equations: StageEquations, k: Tensor, tolerance: float, fallback: bool = False) -> None:
        self.equations, self.k, self.tolerance, self.fallback = equations, k, tolerance, fallback

    def move(self, k: Tensor, rows: Tensor) -> None:
        """Take the Jacobian at `k` from now on."""
        self.k = k

    def solve(self, rhs: Tensor, transposed: bool = False) -> Tensor:
        """(dG/dk)^-1 rhs, or with the transposed matrix.

        A sample for which GMRES does not converge gets dense factors with `fallback`, NaN without.
        """
        solution, converged = gmres(self.equations.product(self.k, transposed), rhs, self.tolerance)
        lost = ~converged & rhs.isfinite().all(-1)
        if self.fallback and bool(lost.any()):
            dense = DenseSystem(self.equations, self.k).solve(rhs, transposed)
            return torch.where(lost.unsqueeze(-1), dense, solution)
        return torch.where(converged.unsqueeze(-1), solution, torch.nan)


System = DenseSystem | KrylovSystem


def gmres(product: Map, rhs: Tensor, tolerance: float, restart: int = 100, cycles: int = 4) -> tuple[Tensor, Tensor]:
    """Solve A x = rhs, each row with its own matrix, by restarted GMRES.

    Args:
        product: v -> A v on all rows.
        rhs: `(samples, unknowns)`.
        tolerance: a row has converged when |rhs - A x| <= tolerance |rhs|; it stops there, whatever the others do.
        restart: products between restarts; each keeps a vector.
        cycles: restarts before a row is given up.

    Returns:
        x, and which rows converged.

    Source: Saad & Schultz, GMRES: a generalized minimal residual algorithm, SIAM J. Sci. Stat. Comput. 7 (1986).
    """
    x, residual = torch.zeros_like(rhs), rhs
    target = tolerance * rhs.norm(dim=-1)
    for _ in range(cycles):
        size = residual.norm(dim=-1)
        if not bool((size > target).any()):
            break
        x = x + _correction(product, residual, size, target, min(restart, rhs.shape[-1]))
        residual = rhs - product(x)
    return x, residual.norm(dim=-1) <= target


def _correction(product: Map, residual: Tensor, size: Tensor, target: Tensor, steps: int) -> Tensor:
    """What minimises the residual over a Krylov space of up to `steps` vectors; zero for rows below their target."""
    active = size > target
    basis = residual.new_zeros(len(residual), steps + 1, residual.shape[-1])
    basis[:, 0] = _unit(residual, size)
    # The product of the Givens rotations that make the Hessenberg matrix triangular. Its first column times `size` is
    # the rotated right-hand side, and the entry below those used is the residual that is left.
    eye = torch.eye(steps + 1, dtype=residual.dtype, device=residual.device)
    turn, triangle = eye.repeat(len(residual), 1, 1), eye[:-1, :-1].repeat(len(residual), 1, 1)
    used = torch.zeros_like(triangle[..., 0], dtype=torch.bool)
    for j in range(steps):
        known, w, column = basis[:, : j + 1], product(basis[:, j]), residual.new_zeros(len(residual), j + 1)
        for _ in range(2):  # Gram-Schmidt, twice for orthogonality to rounding
            part = (known @ w.unsqueeze(-1)).squeeze(-1)
            w, column = w - (part.unsqueeze(-2) @ known).squeeze(-2), column + part
        below = w.norm(dim=-1)
        basis[:, j + 1] = _unit(w, below)
        column = (turn[:, : j + 1, : j + 1] @ column.unsqueeze(-1)).squeeze(-1)
        column[:, j] = _rotate(turn, j, column[:, j], below)
        triangle[:, : j + 1, j] = torch.where(active.unsqueeze(-1), column, triangle[:, : j + 1, j])
        used[:, j] = active
        active = active & (size * turn[:, j + 1, 0].abs() > target)
        if not bool(active.any()):
            break
    rotated = torch.where(used, size.unsqueeze(-1) * turn[:, :-1, 0], 0.0)
    weights: Tensor = torch.linalg.solve_triangular(triangle, rotated.unsqueeze(-1), upper=True)
    return (weights.transpose(-1, -2) @ basis[:, :-1]).squeeze(-2)


def _unit(v: Tensor, size: Tensor) -> Tensor:
    """V / |v|, zero where v is."""
    return v / torch.where(size > 0, size, 1.0).unsqueeze(-1)


def _rotate(turn: Tensor, j: int, diagonal: Tensor, below: Tensor) -> Tensor:
    """Append the rotation of rows j and j + 1 that turns (diagonal, below) into (length, 0); return the length."""
    length = torch.hypot(diagonal, below)
    safe = torch.where(length > 0, length, 1.0)
    cosine, sine = (diagonal / safe).unsqueeze(-1), (below / safe).unsqueeze(-1)
    upper, lower = turn[:, j].clone(), turn[:, j + 1].clone()
    turn[:, j], turn[:, j + 1] = cosine * upper + sine * lower, cosine * lower - sine * upper
    return length
