"""The user's field under compiled diffrax, for the benchmark, where JAX and diffrax are installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from experiments.bench import loops

#: Whether there is anything to time; neither is a dependency of this package.
FOUND = all(importlib.util.find_spec(name) is not None for name in ("jax", "diffrax"))


def leaky_rk4(leaky: loops.Leaky, x: Tensor, dt: float) -> tuple[Callable[[], float], Callable[[], float]]:
    """dh = tanh(W h + V x + b) - h, a classical Runge-Kutta step for each sample, in a compiled scan.

    diffrax's own loop of adaptive steps would cost more: its stepper is called with steps that are known.

    Returns:
        a training step, which gives the loss, and the norm of the gradients of the last one.
    """
    import diffrax
    import jax
    import jax.numpy as jnp

    class RK4(diffrax.AbstractERK):  # type: ignore[misc,name-defined]
        # diffrax asks for an embedded error; nobody looks at this one.
        tableau = diffrax.ButcherTableau(
            c=np.array([0.5, 0.5, 1.0]),
            b_sol=np.array([1, 2, 2, 1]) / 6,
            b_error=np.array([-5, 2, 2, 1]) / 6,
            a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
        )
        interpolation_cls = diffrax.LocalLinearInterpolation

        def order(self, terms: Any) -> int:
            return 4

    solver, term = RK4(), diffrax.ODETerm(lambda t, h, args: jnp.tanh(h @ args[0] + args[1]) - h)

    def loss(parameters: Any, samples: Any) -> Any:
        W, V, b = parameters

        def advanced(h: Any, u: Any) -> Any:
            args = (W.T, u)
            carried = solver.init(term, 0.0, dt, h, args)
            return solver.step(term, 0.0, dt, h, args, carried, made_jump=True)[0], None

        start = jnp.zeros((samples.shape[1], len(W)), samples.dtype)
        end, _ = jax.lax.scan(advanced, start, samples @ V.T + b, unroll=4)
        return (end**2).mean()

    held = dict(leaky.named_parameters())
    parameters = tuple(jnp.asarray(held[name].detach().numpy()) for name in ("W.weight", "V.weight", "V.bias"))
    samples, both = jnp.asarray(x.transpose(0, 1).contiguous().numpy()), jax.jit(jax.value_and_grad(loss))
    gradients: list[Any] = []

    def step() -> float:
        value, gradients[:] = both(parameters, samples)
        jax.block_until_ready(gradients)
        return float(value)

    def norm() -> float:
        return math.sqrt(sum(float((np.asarray(g) ** 2).sum()) for g in gradients))

    return step, norm
