"""The continuous adjoint: gradients by integrating the adjoint equation backwards."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.shared import Adaptive, integrate_unit, unit_slope, worst_sample
from solvers.base import solver as solver_module
from solvers.base.gradient import GRADIENTS, Gradient
from solvers.base.kept import Kept, Versions
from solvers.base.leaves import Key, Leaves, linked_gradients
from solvers.base.loop import Loop
from solvers.base.solver import Solver
from solvers.base.values import transformed
from solvers.errors import InputError, NumericalError, PairingError
from solvers.gradients import stochastic
from solvers.methods.impulsive import Impulsive
from solvers.methods.stochastic import Stochastic
from solvers.protocol import describe, structure


@dataclass(frozen=True)
class Adjoint(Gradient):
    """The continuous adjoint: memory of one state per interval, gradients to the accuracy of its solver.

    With a(s) the gradient of the loss with respect to the state, each interval is integrated backwards,

        da/ds = -a df/dx,    dL/dtheta = integral of a df/dtheta ds

    by torchdiffeq, restarted from the stored states. The result differs from backprop by the errors of the two solves:
    use it with small steps or an adaptive solver. Where a gradient of the gradient is asked for (`create_graph=True`),
    and inside function transforms, it is backprop, in the memory of that.

    Under a stochastic solver it is the stochastic adjoint by torchsde, along the same Brownian paths, in as many steps
    as the forward solve took, or to its tolerances; `method`, `seminorm` and `quadrature` are for equations without
    noise.

    Attributes:
        method, rtol, atol: the solver of the backward integration; those of the forward solver where it is driven by
            torchdiffeq, else dopri5 and its standard tolerances.
        seminorm: leave the integral of the parameters out of the error control (Kidger, Chen, Lyons, ICML 2021).
        quadrature: nodes of a Gauss-Legendre rule for that integral on each interval, evaluated on the dense output
            of the backward solve instead of being part of it; 0 integrates it along.

    Source: Chen et al., Neural Ordinary Differential Equations, NeurIPS 2018, appendix B.
    """

    method: str | None = None
    rtol: float | None = None
    atol: float | None = None
    seminorm: bool = False
    quadrature: int = 0

    def check(self, field: Any, solver: Solver) -> None:
        """Refuse a field without a right-hand side, and settings that the stochastic adjoint does not know."""
        if "differential" not in structure(field):
            raise PairingError(
                f"gradient 'adjoint' solves the adjoint of a differential equation, and {describe(field)} is a closed "
                "form alone: use gradient 'backprop' or 'checkpoint'"
            )
        wrong = [name for name in ("method", "seminorm", "quadrature") if getattr(self, name)]
        if isinstance(solver, Stochastic) and wrong:
            raise PairingError(
                f"gradient 'adjoint' was given {' and '.join(wrong)}, which it cannot use under the stochastic solver "
                f"{solver.name!r}: leave it out"
            )

    def backward_solver(self, solver: Solver) -> Adaptive | Stochastic:
        """The method that integrates the adjoint equation: an adaptive one, or the stochastic solver's own."""
        options = {"rtol": self.rtol, "atol": self.atol}
        if isinstance(solver, Stochastic):
            own_adjoint = solver.with_options(**{name: value for name, value in options.items() if value is not None})
            assert isinstance(own_adjoint, Stochastic)
            return own_adjoint
        default = solver.name if isinstance(solver, Adaptive) else "dopri5"
        base = solver_module.get(self.method or default)
        if not isinstance(base, Adaptive):
            raise InputError(f"adjoint method {base.name!r} is not adaptive through torchdiffeq: use 'dopri5', say")
        if isinstance(solver, Adaptive) and solver.name == base.name:
            base = solver
        changed = base.with_options(**{name: value for name, value in options.items() if value is not None})
        assert isinstance(changed, Adaptive)
        return changed

    def run(self, loop: Loop, state: Tensor) -> list[Any]:
        """The loop with each interval wrapped so that its gradient is the adjoint's; that of a jump is its own."""
        jumping = loop.solver if isinstance(loop.solver, Impulsive) else None
        flow = loop if jumping is None else jumping.between(loop)
        backward = self.backward_solver(flow.solver)

        if not torch.is_grad_enabled() or transformed():
            return loop.advance(loop.solver.open(state), 0, len(loop))
        kept = Kept(flow)

        def advance(i: int, x: Tensor) -> Tensor:
            with torch.no_grad():
                reached = flow.solver.close(kept.interval(flow, i, flow.solver.open(x.detach())))
            leaves = kept.leaves(i, i + 1)
            spec = _Spec(self, backward, kept, leaves, Versions.of(leaves))
            end: Tensor = _Interval.apply(spec, reached, x, *leaves.tensors.values())  # type: ignore[no-untyped-call]
            if jumping is None:
                return end
            return jumping.landed(loop.field, loop.clock.starts[i], loop.clock.spans[i], x, end, loop.paths[i])

        return loop.advance(state, 0, len(loop), advance)


@dataclass(frozen=True)
class _Spec:
    """What the backward pass of an interval needs to know, besides tensors."""

    gradient: Adjoint
    backward: Adaptive | Stochastic
    kept: Kept
    leaves: Leaves
    versions: Versions


class _Interval(torch.autograd.Function):
    """Forward: what the solver's own steps have led to. Backward: the adjoint equation from s = 1 to 0."""

    @staticmethod
    def forward(ctx: Any, spec: _Spec, end: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
        """The state at the end of the interval."""
        # Of an empty interval it is the state at the start, and not to be an input.
        end = end.detach()
        ctx.spec = spec
        ctx.save_for_backward(x, end)
        return end

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the start state and the tensors."""
        spec: _Spec = ctx.spec
        start, end = ctx.saved_tensors
        spec.kept.check(spec.versions)
        with spec.kept.snapshot.counting():
            if torch.is_grad_enabled():
                return None, None, *_recorded(spec.leaves, start, grad)
            return None, None, *_integrated(spec, end, grad)


def _integrated(spec: _Spec, end: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by the adjoint equation."""
    gradient, backward, leaves = spec.gradient, spec.backward, spec.leaves
    values = leaves.cut()
    with torch.enable_grad():
        slope = _Slope(leaves, values, leaves.rebuilt(values))
    try:
        with leaves.reading(values):
            if isinstance(backward, Stochastic):
                check = functools.partial(leaves.check, values)
                grad_x, grads = stochastic.adjoint(backward, slope.loop, end, grad, slope.wanted, check)
            else:
                solve = _by_quadrature if gradient.quadrature else _along
                grad_x, grads = solve(gradient, backward, slope, end, grad)
    except NumericalError as error:
        time = leaves.loop.clock.time_at(leaves.first, error.sample)
        raise error.at(step=leaves.first, time=time) from None
    remaining = iter(grads)
    return grad_x, *(next(remaining) if value.requires_grad else None for value in values.values())


def _recorded(leaves: Leaves, start: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by backpropagation through the solver's own steps, for a gradient of them."""
    values, x = leaves.linked(), start.view_as(start)
    loop = leaves.rebuilt(values)
    with leaves.reading(values):
        end = loop.solver.close(loop.interval(0, loop.solver.open(x)))
    return linked_gradients([end], [x, *values.values()], [grad])


@dataclass(frozen=True)
class _Slope:
    """dx/ds on one interval, for s in [0, 1], made of these values of its leaves."""

    leaves: Leaves
    values: dict[Key, Tensor]
    loop: Loop

    @property
    def wanted(self) -> list[Tensor]:
        """The values that have a gradient."""
        return [value for value in self.values.values() if value.requires_grad]

    def __call__(self, s: Tensor, x: Tensor) -> Tensor:
        """The slope."""
        loop = self.loop
        return unit_slope(loop.field, loop.clock.starts[0], loop.clock.spans[0], loop.paths[0])(s, x)

    def products(self, s: Tensor, x: Tensor, a: Tensor, wanted: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The slope at (s, x), and the products of a with its derivatives with respect to x and to what is wanted."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            dx = self(s, x)
            self.leaves.check(self.values, [x], [dx], lambda: [self(s, x)])
            inputs = (x, *wanted)
            # A slope may depend on none of its inputs, and then has no graph.
            grads = torch.autograd.grad(dx, inputs, a, allow_unused=True) if dx.requires_grad else [None] * len(inputs)
        pairs = zip(inputs, grads, strict=True)
        return dx.detach(), [torch.zeros_like(w) if g is None else g for w, g in pairs]


def _along(
    gradient: Adjoint, backward: Adaptive, slope: _Slope, end: Tensor, grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """State, adjoint and parameter integrals as one system."""

    def augmented(s: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dx, products = slope.products(s, parts[0], -parts[1], slope.wanted)
        return (dx, *products)

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        controlled = parts[:2] if gradient.seminorm else parts
        return torch.stack([worst_sample(part) for part in controlled if part.numel()]).max()

    start = (end, grad, *(torch.zeros_like(w) for w in slope.wanted))
    _, grad_x, *grads = integrate_unit(augmented, start, backward, reverse=True, norm=norm)
    return grad_x, grads


def _by_quadrature(
    gradient: Adjoint, backward: Adaptive, slope: _Slope, end: Tensor, grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """State and adjoint as one system; the parameter integrals by Gauss-Legendre on its dense output."""
    nodes, weights = np.polynomial.legendre.leggauss(gradient.quadrature)

    def augmented(s: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dx, products = slope.products(s, parts[0], -parts[1], [])
        return dx, products[0]

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([worst_sample(part) for part in parts]).max()

    at = [float(node) / 2 + 0.5 for node in reversed(nodes)]
    path = integrate_unit(augmented, (end, grad), backward, reverse=True, norm=norm, between=at)
    grads = [torch.zeros_like(w) for w in slope.wanted]
    for s, weight, x, a in zip(at, reversed(weights), path[0][:-1], path[1][:-1], strict=True):
        _, products = slope.products(end.new_tensor(s), x, a, slope.wanted)
        for total, product in zip(grads, products[1:], strict=True):
            total += float(weight) / 2 * product
    return path[1][-1], grads


GRADIENTS.add("adjoint", Adjoint("adjoint"))
