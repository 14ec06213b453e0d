"""What is compiled, inputs of a layer, and what one path makes of them."""

import torch

import neuralosc
import solvers
from solvers.numerics.linear import DenseOperator, linear_part
from solvers.protocol import structure
from tests.fields import FIELDS

#: Families whose steps hold an iteration, or that have noise, which differs from solve to solve (test_noise.py).
ITERATIVE = {"adaptive", "implicit", "native", "native_implicit", "stochastic"}

#: Fields that the fast path takes under some solver; in one every channel meets every other outside of a product.
COMPILED = [name for name in FIELDS if name != "synapses"]


def compiles(field, solver):
    """Whether the fast path takes the step, whatever the clock; not where a matrix function depends on it."""
    if isinstance(field, neuralosc.LiquidSynapses):
        return False
    info = solvers.get(solver)
    operator = linear_part(field, None) if "semilinear" in structure(field) else None
    dense = isinstance(operator, DenseOperator) and info.family in ("imex", "exponential")
    return not (info.adaptive or info.family in ITERATIVE or dense)


def inputs(rnn, batch=4, time=6, dtype=torch.float64):
    x = torch.randn(batch, time, rnn.input_size, dtype=dtype, requires_grad=True)
    state = torch.randn(batch, rnn.components, rnn.hidden_size, dtype=dtype, requires_grad=True)
    return x, state, torch.rand(batch, time, dtype=dtype).add(0.05).requires_grad_()


def gradients(rnn, x, state, spans, backend, whole=True):
    """Everything a pass returns, and the gradients of a weighted sum of it."""
    leaves = [t for t in (x, state, spans, *rnn.parameters()) if t is not None and t.requires_grad]
    with solvers.backend(backend):
        solution = rnn.solve(x, state, timespans=spans)
        assert solution.trajectories[0].record.path == backend
        outs = [solution.output, solution.states, solution.state] if whole else list(rnn(x, state, timespans=spans))
        weights = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in outs]
        grads = torch.autograd.grad(
            sum((w * t).sum() for w, t in zip(weights, outs, strict=True)), leaves, allow_unused=True
        )
    return [*outs, *(torch.zeros(()) if g is None else g for g in grads)], solution.evaluations
