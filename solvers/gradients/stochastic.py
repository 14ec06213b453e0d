"""The stochastic adjoint: the adjoint equation of an SDE, integrated backwards along the same Brownian path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchsde._brownian import ReverseBrownian
from torchsde._core.adjoint_sde import AdjointSDE
from torchsde._core.base_sde import ForwardSDE
from torchsde._core.misc import flat_to_shape, flatten

from solvers.base.loop import Loop
from solvers.methods.brownian import Driven, rows_of
from solvers.methods.stochastic import Equation, Stochastic, Watched, motion, scheme, unit_span

#: Refuses outputs that depend on more than some inputs and what is wanted; the last argument makes them again.
Check = Callable[[Sequence[Tensor], Sequence[Tensor], Callable[[], Sequence[Tensor]]], None]


class Checked(Equation):
    """An equation that refuses to lose the gradient of a tensor which its field reads."""

    check: Check

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """The drift."""
        return self._seen(super().f, s, y)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """The diffusion."""
        return self._seen(super().g, s, y)

    def _seen(self, function: Callable[[Tensor, Tensor], Tensor], s: Tensor, y: Tensor) -> Tensor:
        value = function(s, y)
        self.check([y], [value], lambda: [function(s, y)])
        return value


def adjoint(
    solver: Stochastic, loop: Loop, end: Tensor, grad: Tensor, wanted: list[Tensor], check: Check
) -> tuple[Tensor, list[Tensor]]:
    """The stochastic adjoint of a loop of one interval.

    The adjoint equation is integrated backwards along the same path, in the same substeps or adaptively, by
    Milstein's method (Ito) or the midpoint rule (Stratonovich).

    Args:
        solver: integrates it.
        loop: the interval.
        end: its last state.
        grad: gradient of the loss with respect to that.
        wanted: tensors that the loop depends on.
        check: is shown each drift and diffusion.

    Returns:
        The gradients with respect to the first state, and to the tensors.
    """
    control, steps = loop.paths[0], loop.substeps
    assert isinstance(control, Driven)
    with torch.enable_grad():
        t, dt = loop.clock.starts[0], loop.clock.spans[0]
        equation = Checked(solver, loop.field, t, dt, end.shape, control, steps)
        equation.check = check
    parts = [rows_of(end), rows_of(grad), *(torch.zeros_like(w) for w in wanted)]
    shapes = [part.shape for part in parts]
    backwards = ReverseBrownian(motion(solver, control, parts[0], steps))
    sde = AdjointSDE(ForwardSDE(equation), wanted, shapes)
    method = scheme(solver, sde, backwards, "milstein" if solver.interpretation == "ito" else "midpoint", steps)
    start = flatten(parts).unsqueeze(0)
    if solver.adaptive:
        last = Watched(solver, method).run(start, steps, -1)
    else:
        last = method.integrate(start, torch.stack(unit_span(start, steps, -1)), ())[0][-1]
    _, a, *grads = flat_to_shape(last.squeeze(0), shapes)
    return a.reshape(end.shape), grads
