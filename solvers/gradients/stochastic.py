"""The stochastic adjoint: the adjoint equation of an SDE, integrated backwards along the same Brownian path."""

from __future__ import annotations

import torch
from torch import Tensor
from torchsde._brownian import ReverseBrownian
from torchsde._core.adjoint_sde import AdjointSDE
from torchsde._core.base_sde import ForwardSDE
from torchsde._core.misc import flat_to_shape, flatten

from solvers.base.loop import Loop
from solvers.methods.brownian import Driven, rows_of
from solvers.methods.stochastic import Equation, Stochastic, Watched, motion, scheme, unit_span


def adjoint(
    solver: Stochastic, loop: Loop, end: Tensor, grad: Tensor, wanted: list[Tensor]
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

    Returns:
        The gradients with respect to the first state, and to the tensors.
    """
    control, steps = loop.paths[0], loop.substeps
    assert isinstance(control, Driven)
    with torch.enable_grad():
        t, dt = loop.clock.starts[0], loop.clock.spans[0]
        equation = Equation(solver, loop.field, t, dt, end.shape, control, steps)
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
