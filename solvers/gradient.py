"""Gradients: how a loss is differentiated through the steps. Each is a value that runs the loop its own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from solvers import solver as solver_module
from solvers.adaptive import Adaptive, integrate_unit
from solvers.control import path_tensors, with_path_tensors
from solvers.errors import InputError
from solvers.protocol import ControlPath, State, Time, increment, over_state
from solvers.registry import Registry
from solvers.solver import Solver

if TYPE_CHECKING:
    from solvers.loop import Loop


@dataclass(frozen=True)
class Gradient:
    """How the states of a loop are computed so that a loss on them can be differentiated."""

    name: str

    def run(self, loop: Loop, state: Tensor) -> list[State]:
        """The states after every interval of the loop, from `state`."""
        raise InputError(f"gradient {self.name!r} defines no run: subclass Gradient and implement it")


@dataclass(frozen=True)
class Backprop(Gradient):
    """The exact gradient of the discrete steps: every intermediate result is stored."""

    def run(self, loop: Loop, state: Tensor) -> list[State]:
        """The plain loop, recorded by autograd."""
        return loop.advance(state, 0, len(loop))


@dataclass(frozen=True)
class Adjoint(Gradient):
    """The continuous adjoint: memory of one state per interval, gradients to the accuracy of its solver.

    With a(s) the gradient of the loss with respect to the state, each interval is integrated backwards,

        da/ds = -a df/dx,    dL/dtheta = integral of a df/dtheta ds

    by torchdiffeq, restarted from the stored states. The result differs from backprop by the errors of the two solves:
    use it with small steps or an adaptive solver. It can be differentiated once.

    Attributes:
        method, rtol, atol: the solver of the backward integration; those of the forward solver where it is adaptive,
            else dopri5 and its standard tolerances.

    Source: Chen et al., Neural Ordinary Differential Equations, NeurIPS 2018, appendix B.
    """

    method: str | None = None
    rtol: float | None = None
    atol: float | None = None

    def backward_solver(self, solver: Solver) -> Adaptive:
        """The adaptive method that integrates the adjoint equation."""
        base = solver_module.get(self.method or (solver.name if solver.adaptive else "dopri5"))
        if not isinstance(base, Adaptive):
            raise InputError(f"adjoint method {base.name!r} is not adaptive: use one such as 'dopri5'")
        if isinstance(solver, Adaptive) and solver.name == base.name:
            base = solver
        given = {"rtol": self.rtol, "atol": self.atol}
        changed = base.with_options(**{name: value for name, value in given.items() if value is not None})
        assert isinstance(changed, Adaptive)
        return changed

    def run(self, loop: Loop, state: Tensor) -> list[State]:
        """The loop with each interval wrapped so that its gradient is the adjoint's."""
        backward = self.backward_solver(loop.solver)

        def advance(field: Any, t: Time, dt: Time, x: Tensor, control: ControlPath) -> Tensor:
            interval = _Interval(loop, backward, field, t, dt, control)
            end: Tensor = _AdjointInterval.apply(interval, x, *interval.tensors)  # type: ignore[no-untyped-call]
            return end

        return loop.advance(state, 0, len(loop), advance)


class _Interval:
    """One interval of the loop as a function of its start state and of every tensor that shapes its slope.

    The slope sees bound constants, the control and the clock as leaves of their own: they are functions of the
    parameters, and autograd would otherwise follow them there and count those gradients twice.
    """

    def __init__(self, loop: Loop, backward: Adaptive, field: Any, t: Time, dt: Time, control: ControlPath) -> None:
        self.loop, self.backward = loop, backward
        self.field, self.t, self.dt, self.control = field, t, dt, control
        inner = getattr(field, "field", field)
        self.parameters = tuple(inner.parameters()) if isinstance(inner, nn.Module) else ()
        self.derived: dict[tuple[str, str], Tensor] = {("path", k): v for k, v in path_tensors(control).items()}
        self.derived.update({("clock", k): v for k, v in (("t", t), ("dt", dt)) if isinstance(v, Tensor)})
        constants = getattr(inner, "constants", {})
        self.derived.update({("constant", k): v for k, v in constants.items() if isinstance(v, Tensor)})
        self.tensors = (*self.parameters, *self.derived.values())

    def forward(self, x: Tensor) -> Tensor:
        """The interval under the loop's own solver."""
        end: Tensor = self.loop.substeps_of(self.field, self.t, self.dt, x, self.control)
        return end

    def slope_of(self, leaves: dict[tuple[str, str], Tensor]) -> Any:
        """dx/ds on the interval, a function of (s, x), with the derived tensors replaced by `leaves`."""
        group = {kind: {k: v for (g, k), v in leaves.items() if g == kind} for kind in ("path", "clock", "constant")}
        field = getattr(self.field, "field", self.field)
        if group["constant"]:
            field = field.bind({**field.constants, **group["constant"]})
        control = with_path_tensors(self.control, group["path"])
        t, dt = group["clock"].get("t", self.t), group["clock"].get("dt", self.dt)
        return lambda s, x: over_state(increment(field, dt)) * field(t + s * dt, x, control(t + s * dt))


class _AdjointInterval(torch.autograd.Function):
    """Forward: the solver's own steps, unrecorded. Backward: the adjoint equation from s = 1 to 0."""

    @staticmethod
    def forward(ctx: Any, interval: _Interval, x: Tensor, *tensors: Tensor) -> Tensor:
        """The state at the end of the interval."""
        ctx.interval = interval
        end = interval.forward(x)
        ctx.save_for_backward(end)
        return end

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the start state, the parameters and the derived tensors."""
        interval: _Interval = ctx.interval
        (end,) = ctx.saved_tensors
        leaves = {key: value.detach().requires_grad_(value.requires_grad) for key, value in interval.derived.items()}
        slope = interval.slope_of(leaves)
        tensors = (*interval.parameters, *leaves.values())
        wanted = [tensor for tensor in tensors if tensor.requires_grad]

        def augmented(s: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                x = parts[0].detach().requires_grad_(True)
                dx = slope(s, x)
                grads = torch.autograd.grad(dx, (x, *wanted), -parts[1], allow_unused=True)
            found = (torch.zeros_like(w) if g is None else g for w, g in zip((x, *wanted), grads, strict=True))
            return (dx.detach(), *found)

        start = (end, grad, *(torch.zeros_like(w) for w in wanted))
        _, grad_x, *grads = integrate_unit(augmented, start, interval.backward, reverse=True)
        found = iter(grads)
        return None, grad_x, *(next(found) if tensor.requires_grad else None for tensor in tensors)


GRADIENTS: Registry[Gradient] = Registry("gradient")
GRADIENTS.add("backprop", Backprop("backprop"))
GRADIENTS.add("adjoint", Adjoint("adjoint"))


def get_gradient(gradient: str | Gradient) -> Gradient:
    """The gradient of a name; a Gradient value is returned as it is."""
    if isinstance(gradient, Gradient):
        return gradient
    if not isinstance(gradient, str):
        raise InputError(
            f"gradient is {gradient!r}, expected a name or a Gradient: choose among {', '.join(GRADIENTS)}"
        )
    return GRADIENTS[gradient]
