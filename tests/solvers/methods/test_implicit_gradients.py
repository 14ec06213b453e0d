"""Gradients of implicit Runge-Kutta steps against finite differences, once and twice."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import solvers
from tests.solvers.methods.implicit_steps import F64, NAMES, randn


class Parametric:
    """A field that closes over its parameters, sees the time and couples everything."""

    structure = frozenset()

    def __init__(self, matrix, rate):
        self.matrix, self.rate = matrix, rate

    def __call__(self, t, x, u):
        q, p = x.unbind(-2)
        return torch.stack((p + 0.3 * torch.sin(q) * t, torch.tanh(q @ self.matrix + u * p) - self.rate * q**3), -2)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "simplified") for name in NAMES), ("trapezoid", "krylov"), ("radau_iia3", "krylov")]
)
def test_gradients_of_everything_once_and_twice(name, kind):
    """Parameters, input, start, step and time, each sample with a step of its own and one of zero."""
    solver = solvers.get(name, linear_solver=kind)
    values = (
        randn(2, 2, seed=1), torch.tensor([0.7, 1.2], dtype=F64), randn(2, 2, 2, seed=2), randn(2, 2, seed=3),
        torch.tensor([[0.5], [0.0]], dtype=F64), torch.tensor([[0.1], [0.3]], dtype=F64),
    )  # fmt: skip

    def step(matrix, rate, x, u, h, t):
        return solver.step(Parametric(matrix, rate), t, h, x, lambda at: u * (1 + at))

    inputs = tuple(value.requires_grad_() for value in values)
    # One random direction of inputs and outputs at a time, against finite differences: all of them would take minutes.
    assert gradcheck(step, inputs, fast_mode=True)
    assert gradgradcheck(step, inputs, fast_mode=True)


def test_gradients_entry_by_entry():
    inputs = tuple(
        value.requires_grad_()
        for value in (randn(1, 1), randn(1), randn(1, 2, 1), randn(1, 1), torch.full((1, 1), 0.5, dtype=F64))
    )

    def step(matrix, rate, x, u, h):
        return solvers.get("gauss_legendre4").step(Parametric(matrix, rate), 0.1, h, x, lambda at: u * (1 + at))

    assert gradcheck(step, inputs)
    assert gradgradcheck(step, inputs)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore:Dynamo does not know:UserWarning")
@pytest.mark.parametrize("method", ["implicit_midpoint", "sdirk2"])
def test_torch_compile_leaves_the_iteration_as_it_is(method):
    inner = torch.nn.Linear(2, 2).double()
    start = randn(3, 1, 2)

    def end(x):
        return solvers.integrate(lambda t, x, u: -torch.tanh(inner(x)), x, [0.0, 0.3], method=method).states[:, -1]

    values = []
    for function in (end, torch.compile(end, backend="eager")):
        value = function(start)
        values.append((value, *torch.autograd.grad(value.square().sum(), list(inner.parameters()))))
    torch._dynamo.reset()
    for value, expected in zip(*values, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
