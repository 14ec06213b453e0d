"""The continuous adjoint: gradients by integrating the adjoint equation backwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.shared import Adaptive, integrate_unit, worst_sample
from solvers.base import solver as solver_module
from solvers.base.gradient import GRADIENTS, Gradient
from solvers.base.leaves import Leaves
from solvers.base.loop import Loop
from solvers.base.solver import Solver
from solvers.base.state import increment, over_state
from solvers.errors import InputError, NumericalError, PairingError
from solvers.gradients import stochastic
from solvers.methods.impulsive import Impulsive
from solvers.methods.stochastic import Stochastic
from solvers.protocol import check_slope


@dataclass(frozen=True)
class Adjoint(Gradient):
    """The continuous adjoint: memory of one state per interval, gradients to the accuracy of its solver.

    With a(s) the gradient of the loss with respect to the state, each interval is integrated backwards,

        da/ds = -a df/dx,    dL/dtheta = integral of a df/dtheta ds

    by torchdiffeq, restarted from the stored states. The result differs from backprop by the errors of the two solves:
    use it with small steps or an adaptive solver. It can be differentiated once.

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
        """Refuse settings that the stochastic adjoint does not know."""
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

        def advance(i: int, x: Tensor) -> Tensor:
            leaves = Leaves(flow, i, i + 1)
            spec = (self, backward, leaves)
            end: Tensor = _Interval.apply(spec, x, *leaves.tensors.values())  # type: ignore[no-untyped-call]
            if jumping is None:
                return end
            return jumping.landed(loop.field, loop.clock.starts[i], loop.clock.spans[i], x, end, loop.paths[i])

        return loop.advance(state, 0, len(loop), advance)


class _Interval(torch.autograd.Function):
    """Forward: the solver's own steps, unrecorded. Backward: the adjoint equation from s = 1 to 0."""

    @staticmethod
    def forward(ctx: Any, spec: tuple[Adjoint, Adaptive | Stochastic, Leaves], x: Tensor, *tensors: Tensor) -> Tensor:
        """The state at the end of the interval."""
        leaves = spec[2]
        loop = leaves.loop
        end = loop.solver.close(loop.interval(leaves.first, loop.solver.open(x)))
        ctx.spec = spec
        ctx.save_for_backward(end)
        return end

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the start state and the tensors."""
        gradient, backward, leaves = ctx.spec
        (end,) = ctx.saved_tensors
        values = leaves.cut()
        wanted = [value for value in values.values() if value.requires_grad]
        with torch.enable_grad():
            loop = leaves.rebuilt(values)
        try:
            with leaves.in_place():
                if isinstance(backward, Stochastic):
                    grad_x, grads = stochastic.adjoint(backward, loop, end, grad, wanted)
                else:
                    solve = _by_quadrature if gradient.quadrature else _along
                    grad_x, grads = solve(gradient, backward, _slope(loop), wanted, end, grad)
        except NumericalError as error:
            time = leaves.loop.clock.time_at(leaves.first, error.sample)
            raise error.at(step=leaves.first, time=time) from None
        remaining = iter(grads)
        return None, grad_x, *(next(remaining) if value.requires_grad else None for value in values.values())


def _slope(loop: Loop) -> Any:
    """dx/ds on the one interval of a loop, for s in [0, 1]."""
    field, path, t, dt = loop.field, loop.paths[0], loop.clock.starts[0], loop.clock.spans[0]
    return lambda s, x: over_state(increment(field, dt)) * check_slope(field, x, field(t + s * dt, x, path(t + s * dt)))


def _products(slope: Any, s: Tensor, x: Tensor, a: Tensor, wanted: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The slope at (s, x), and the products of a with its derivatives with respect to x and to what is wanted."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        dx = slope(s, x)
        inputs = (x, *wanted)
        # A slope may depend on none of its inputs, and then has no graph.
        grads = torch.autograd.grad(dx, inputs, a, allow_unused=True) if dx.requires_grad else [None] * len(inputs)
    pairs = zip(inputs, grads, strict=True)
    return dx.detach(), [torch.zeros_like(w) if g is None else g for w, g in pairs]


def _along(
    gradient: Adjoint, backward: Adaptive, slope: Any, wanted: list[Tensor], end: Tensor, grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """State, adjoint and parameter integrals as one system."""

    def augmented(s: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dx, products = _products(slope, s, parts[0], -parts[1], wanted)
        return (dx, *products)

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        controlled = parts[:2] if gradient.seminorm else parts
        return torch.stack([worst_sample(part) for part in controlled if part.numel()]).max()

    start = (end, grad, *(torch.zeros_like(w) for w in wanted))
    _, grad_x, *grads = integrate_unit(augmented, start, backward, reverse=True, norm=norm)
    return grad_x, grads


def _by_quadrature(
    gradient: Adjoint, backward: Adaptive, slope: Any, wanted: list[Tensor], end: Tensor, grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """State and adjoint as one system; the parameter integrals by Gauss-Legendre on its dense output."""
    nodes, weights = np.polynomial.legendre.leggauss(gradient.quadrature)

    def augmented(s: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dx, products = _products(slope, s, parts[0], -parts[1], [])
        return dx, products[0]

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([worst_sample(part) for part in parts]).max()

    at = [float(node) / 2 + 0.5 for node in reversed(nodes)]
    path = integrate_unit(augmented, (end, grad), backward, reverse=True, norm=norm, between=at)
    grads = [torch.zeros_like(w) for w in wanted]
    for s, weight, x, a in zip(at, reversed(weights), path[0][:-1], path[1][:-1], strict=True):
        _, products = _products(slope, end.new_tensor(s), x, a, wanted)
        for total, product in zip(grads, products[1:], strict=True):
            total += float(weight) / 2 * product
    return path[1][-1], grads


GRADIENTS.add("adjoint", Adjoint("adjoint"))
