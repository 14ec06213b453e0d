"""Newton's method for every sample of a batch on its own, and the gradient of what it finds.

The gradient is that of the implicit-function theorem: of the root alone, whatever path the iteration took to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from solvers.base.counted import Counted
from solvers.base.hidden import Watch
from solvers.base.kept import Snapshot, Versions
from solvers.base.values import differentiated, exporting
from solvers.errors import ConvergenceError, InputError, NonFiniteStateError, PairingError
from solvers.numerics.jacobian import DenseSystem, KrylovSystem, StageEquations, System

#: How the linear systems of Newton's method can be solved.
LINEAR_SOLVERS = {
    "auto": "simplified for up to DENSE_LIMIT unknowns a sample; krylov beyond, and dense factors where that fails",
    "newton": "dense LU factors of the Jacobian, anew in every iteration",
    "simplified": "dense LU factors, kept over iterations and stages for as long as they contract well",
    "krylov": "GMRES on Jacobian-vector products, no matrix",
}
#: Unknowns of a sample (coupled stages x components x hidden) up to which "auto" takes dense factors: where the two
#: take the same time on a CPU for a batch of 16 dense fields.
DENSE_LIMIT = 128

#: Contraction per iteration beyond which kept factors are made anew.
SLOW = 0.1
#: Accuracy of GMRES, as a power of eps: for a direction of the iteration, which corrects what is missing, and for a
#: gradient.
DIRECTION_POWER, GRADIENT_POWER = 1 / 3, 2 / 3
#: Damping below which a sample takes one whole step, whatever it leads to: small steps lead into the points where the
#: Jacobian is singular, and only a long one leads out.
LEAST_DAMPING = 0.1


@dataclass(frozen=True)
class Newton:
    """Newton's method with one Jacobian, one damping and one stopping test per sample.

    A step is taken if the next correction, found with the same factors, is smaller, else it is halved; this test, of
    natural monotonicity, does not see how the equations are scaled, as a residual would that stiffness multiplies. A
    sample has converged when that next correction is below `tol` relative to its state; it is left alone then.

    Args:
        name: the solver, for messages.
        tol: relative tolerance, largest entry against largest entry of a sample; None means eps^(3/4) of the dtype
            of the field (1.8e-12 in float64, 6.4e-6 in float32), and nothing below 16 eps is asked of any; of half
            precision 1/64.
        max_iterations: trial steps before a sample is given up.
        linear_solver: one of `LINEAR_SOLVERS`.

    Source: Deuflhard, Newton Methods for Nonlinear Problems, Springer 2004, sections 2.1 and 3.3 (NLEQ-ERR).
    """

    name: str
    tol: float | None = None
    max_iterations: int = 50
    linear_solver: str = "auto"

    def __post_init__(self) -> None:
        if self.tol is not None and not (_is_number(self.tol) and 0 < self.tol < 1):
            raise InputError(f"tol of solver {self.name!r} is {self.tol!r}, expected a number between 0 and 1, or None")
        if not isinstance(self.max_iterations, int) or isinstance(self.max_iterations, bool) or self.max_iterations < 1:
            raise InputError(
                f"max_iterations of solver {self.name!r} is {self.max_iterations!r}, expected a positive integer"
            )
        if self.linear_solver not in LINEAR_SOLVERS:
            raise InputError(
                f"linear_solver of solver {self.name!r} is {self.linear_solver!r}: "
                f"choose among {', '.join(LINEAR_SOLVERS)}"
            )

    def linear_solver_for(self, unknowns: int) -> str:
        """What "auto" stands for with so many unknowns a sample; any other choice is returned as it is."""
        if self.linear_solver != "auto":
            return self.linear_solver
        return "simplified" if unknowns <= DENSE_LIMIT else "krylov"

    def root(
        self, equations: StageEquations, start: Tensor, system: System | None = None
    ) -> tuple[Tensor, System | None]:
        """The root k of the equations near `start`, `(samples, unknowns)`, differentiable once and twice.

        It carries gradients to every tensor the residual is made of; a third derivative would not be that of the
        root. `system` may hold factors of similar equations, for the simplified method to start with; those in use at
        the end are returned.

        Raises:
            ConvergenceError: a sample did not converge; in the backward pass, its linear system could not be solved.
            NonFiniteStateError: the equations were not finite at `start`.
        """
        if exporting():
            raise PairingError(
                f"solver {self.name!r} iterates until the values have converged, and an exported program does the "
                "same for all values: use a solver without an iteration, such as 'rk4' or 'imex_euler'"
            )
        if torch.compiler.is_compiling():
            found: tuple[Tensor, System | None] = _uncompiled(self, equations, start, system)
            return found
        return self._root(equations, start, system)

    def _root(self, equations: StageEquations, start: Tensor, system: System | None) -> tuple[Tensor, System | None]:
        with torch.no_grad():
            k = start
            if start.numel():
                k, system = self._search(equations, start, system)
        if not torch.is_grad_enabled():
            return k, system
        # Each recorded correction k - J^-1 G(k), with J fixed at the root and a value of zero, makes one more
        # derivative of k right: the first has that of the implicit-function theorem, -J^-1 dG.
        snapshot, residual = _snapshot(equations, k)
        inverse = _Inverse(self, equations, k, snapshot)
        for keep in (False, True):
            residual = equations.residual(k) if keep else residual
            if not residual.requires_grad:
                break
            k = _Corrected.apply(k, residual, inverse, keep)  # type: ignore[no-untyped-call]
        return k, system

    def _search(self, equations: StageEquations, start: Tensor, system: System | None) -> tuple[Tensor, System]:
        """The iteration, unrecorded."""
        if differentiated(start):
            raise PairingError(
                f"solver {self.name!r} solves for its stages, and torch.func cannot differentiate or map that: use "
                "torch.autograd, or a method that is not implicit"
            )
        if self.linear_solver_for(start.shape[-1]) != "simplified":
            system = None
        search = _Search(self, equations, start, system)
        for _ in range(self.max_iterations):
            search.advance()
            if bool((search.done | search.lost).all()):
                # What is lost would stand still through the iterations that are left.
                break
        if bool(search.done.all()):
            return search.k, search.system
        raise self._failure(search)

    def system(self, equations: StageEquations, k: Tensor, tolerance: float) -> System:
        """The linear system of the chosen kind at `k`; `tolerance` is that of GMRES."""
        if self.linear_solver_for(k.shape[-1]) == "krylov":
            return KrylovSystem(equations, k, tolerance, fallback=self.linear_solver == "auto")
        return DenseSystem(equations, k)

    def converged(self, size: Tensor, before: Tensor, scale: Tensor, eps: float) -> Tensor:
        """Whether a correction is below the tolerance, or no longer shrinks and is rounding of numbers of size one.

        The second is for a state near zero under a field whose terms cancel there: its slope is never smaller than
        their rounding, and relative to the state that is large.
        """
        # A field in half precision has no 16 eps to give away.
        rounding = min(16 * eps, 2**-6)
        tol = min(eps**0.75, 2**-6) if self.tol is None else max(self.tol, rounding)
        return (size <= tol * scale.unsqueeze(-1)) | ((size <= rounding) & (size > before / 2))

    def _failure(self, search: _Search) -> ConvergenceError | NonFiniteStateError:
        samples = _indices(~search.done[:, 0])
        left = search.residual[samples[0]].abs().max().item()
        if not math.isfinite(left):
            return NonFiniteStateError(f"the slope at a stage of solver {self.name!r} is not finite", sample=samples[0])
        # Forward and reverse products differ where a condition hides an infinity: in one of them it does, in the other
        # not.
        ones, products = torch.ones_like(search.k), (search.equations.product(search.k, way) for way in (False, True))
        if not all(bool(product(ones)[samples[0]].isfinite().all()) for product in products):
            error = NonFiniteStateError(
                f"the derivative of the field at a stage of solver {self.name!r} is not finite, though its value is "
                "(as that of a torch.where around a singularity)",
                sample=samples[0],
            )
            error.advice = (
                "keep what is not selected regular, as in sqrt(where(x > 0, x, 1)), or use an explicit solver"
            )
            return error
        return ConvergenceError(
            f"Newton's method of solver {self.name!r} did not converge: residual {left:.3g} after "
            f"{self.max_iterations} iterations",
            samples=samples,
            residual=left,
            iterations=self.max_iterations,
        )


class _Search:
    """The iteration of all samples side by side; what belongs to one sample is a row.

    Attributes:
        k: the iterate.
        residual: G(k).
        direction: J^-1 G(k).
        damping: the part of it to try next.
        leaping: whether that step will be taken whatever it leads to.
        stale: whether the factors are those of an earlier k.
        done: whether the sample has converged.
    """

    def __init__(self, newton: Newton, equations: StageEquations, start: Tensor, system: System | None) -> None:
        self.newton, self.equations, self.k = newton, equations, start
        keeps = newton.linear_solver_for(start.shape[-1]) == "simplified"
        #: Contraction below which factors are kept.
        self.slow = SLOW if keeps else 0.0
        self.done = torch.zeros_like(start[:, :1], dtype=torch.bool)
        self.leaping, self.stale = self.done, torch.full_like(self.done, system is not None)
        self.damping = torch.ones_like(start[:, :1])
        self.system = system or newton.system(equations, start, torch.finfo(start.dtype).eps ** DIRECTION_POWER)
        self.system.equations = equations
        self.residual = equations.residual(start)
        self.direction = self.system.solve(self.residual)

    @property
    def lost(self) -> Tensor:
        """Whether there is no direction although the factors are those of k: every part of it leads to NaN."""
        return ~self.stale & ~self.direction.isfinite().all(-1, keepdim=True)

    def advance(self) -> None:
        """Try a step, and decide for each sample what becomes of it."""
        trial = torch.where(self.done, self.k, self.k - self.damping * self.direction)
        if self.system.moves_freely:
            self.system.move(trial, ~self.done[:, 0])
        residual = self.equations.residual(trial)
        ahead = self.system.solve(residual)
        size, before = _size(ahead), _size(self.direction)
        closed = ~self.done & self.newton.converged(size, before, self.equations.scale(trial), self.equations.digits)
        taken = ~self.done & ~closed & ((size <= (1 - self.damping / 4) * before) | (self.leaping & size.isfinite()))
        self.done = self.done | closed
        self.k = torch.where(closed, trial - ahead, torch.where(taken, trial, self.k))
        self.residual = torch.where(taken, residual, self.residual)
        self.direction = torch.where(taken, ahead, self.direction)
        self._damp(taken)
        if not self.system.moves_freely:
            self._renew(taken, size > self.slow * before)

    def _damp(self, taken: Tensor) -> None:
        """The damping of the next step: longer after one that was taken, half of one that was not."""
        self.damping = torch.where(taken, (4 * self.damping).clamp(max=1), self.damping / 2)
        leap = ~taken & ~self.leaping & (self.damping < LEAST_DAMPING)
        self.damping = torch.where(leap, 1.0, self.damping)
        self.leaping = leap | (self.leaping & ~taken)

    def _renew(self, taken: Tensor, slow: Tensor) -> None:
        """Factorise anew where the factors contract slowly, or where stale ones gave a step that was not taken."""
        renewed = ~self.done & torch.where(taken, slow, self.stale)
        self.stale = (self.stale | taken) & ~renewed
        self.damping = torch.where(renewed & ~taken, 1.0, self.damping)
        if bool(renewed.any()):
            self.system.move(self.k, renewed[:, 0])
            self.direction = torch.where(renewed, self.system.solve(self.residual), self.direction)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[:, 0])


def _size(rows: Tensor) -> Tensor:
    """The largest entry of each row, `(samples, 1)`."""
    return rows.abs().amax(-1, keepdim=True)


#: The root outside of what `torch.compile` compiles: it iterates on values, and its backward pass is its own.
_uncompiled: Any = _disable_dynamo(Newton._root)


def _snapshot(equations: StageEquations, k: Tensor) -> tuple[Snapshot, Tensor]:
    """The field for the backward pass, kept once a solve; and the residual at k, recorded."""
    field = equations.field
    while isinstance(field, Counted) and isinstance(field.field, Counted):
        field = field.field
    if isinstance(field, Counted) and field.snapshot is not None:
        return field.snapshot, equations.residual(k)
    watch, before = Watch(), Versions.of_buffers(field)
    with watch:
        residual = equations.residual(k)
    snapshot = Snapshot(field, watch, [k, *equations.tensors], before)
    if isinstance(field, Counted):
        field.snapshot = snapshot
    return snapshot, residual


class _Inverse:
    """The inverse Jacobian at the root, made when a backward pass first asks for it.

    Keeping the factors of every step of a long sequence until then would take far more memory than its states.
    """

    def __init__(self, newton: Newton, equations: StageEquations, k: Tensor, snapshot: Snapshot) -> None:
        self.newton, self.k, self.snapshot = newton, k, snapshot
        self.equations = dataclasses.replace(equations, field=snapshot.field)
        self.versions = Versions([("an input", tensor) for tensor in equations.tensors])
        self.system: System | None = None

    def solve(self, rhs: Tensor, transposed: bool) -> Tensor:
        """J^-1 rhs, or with the transposed Jacobian.

        Raises:
            ConvergenceError: GMRES could not.
            ChangedTensorError, PairingError: the Jacobian would be that of another field.
        """
        if not rhs.numel():
            return rhs
        self.snapshot.check()
        self.versions.check(self.snapshot.field)
        with self.snapshot.counting():
            solved = self._solved(rhs, transposed)
        failed = rhs.isfinite().all(-1) & ~solved.isfinite().all(-1)
        if bool(failed.any()):
            raise ConvergenceError(
                f"the linear system for the gradient of solver {self.newton.name!r} could not be solved",
                samples=_indices(failed),
            )
        return solved

    def _solved(self, rhs: Tensor, transposed: bool) -> Tensor:
        watch = Watch()
        # A function may close over other tensors by now; that a module does not is not worth watching every solve.
        with watch if self.snapshot.hidden else contextlib.nullcontext():
            if self.system is None:
                precision = torch.finfo(rhs.dtype).eps ** GRADIENT_POWER
                self.system = self.newton.system(self.equations, self.k, precision)
            solved = self.system.solve(rhs, transposed)
        self.snapshot.compare(watch, [rhs, self.k, *self.equations.tensors])
        return solved

    def release(self) -> None:
        """Forget the factors."""
        self.system = None


class _Corrected(torch.autograd.Function):
    """k - J^-1 G with the value of k, for G = 0."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, residual: Tensor, inverse: _Inverse, keep: bool) -> Tensor:
        """The value."""
        ctx.inverse, ctx.keep = inverse, keep
        return k.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient with respect to k and to G."""
        solved = _Solved.apply(grad, ctx.inverse, True)  # type: ignore[no-untyped-call]
        if not ctx.keep:
            ctx.inverse.release()
        return grad, -solved, None, None


class _Solved(torch.autograd.Function):
    """J^-1 rhs with J fixed, or with its transpose; linear, so that it is its own derivative."""

    @staticmethod
    def forward(ctx: Any, rhs: Tensor, inverse: _Inverse, transposed: bool) -> Tensor:
        """The solution."""
        ctx.inverse, ctx.transposed = inverse, transposed
        return inverse.solve(rhs, transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The solution with the other of the two matrices."""
        return _Solved.apply(grad, ctx.inverse, not ctx.transposed), None, None  # type: ignore[no-untyped-call]
