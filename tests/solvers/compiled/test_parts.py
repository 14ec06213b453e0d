"""A component of the state that is put together from channels computed apart, and what is made for the prologue."""

import pytest
import torch
from torch import nn

import neuralosc
import solvers

F64 = torch.float64


class Parted(neuralosc.VectorField):
    """Some channels by one function, the rest by another; the middle ones shared by both."""

    def __init__(self, sizes):
        super().__init__(2, sum(sizes))
        self.sizes = sizes
        self.V, self.W = nn.Linear(2, sum(sizes)), nn.Parameter(torch.randn(sum(sizes), sum(sizes)) / 3)
        self.scale = nn.Parameter(torch.rand(sizes[-1]))

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        first, *middle, last = (h @ self.W + u).split(self.sizes, -1)
        ends = torch.tanh(first), torch.sin(last) * self.scale * first.sum(-1, keepdim=True)
        return torch.cat((ends[0], *(torch.sigmoid(part) for part in middle), ends[1]), -1).unsqueeze(-2)


class Gated(neuralosc.VectorField):
    """One channel, and a product with two values put beside each other."""

    def __init__(self):
        super().__init__(2, 1)
        self.V, self.W = nn.Linear(2, 1), nn.Parameter(torch.randn(2, 1))

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return torch.tanh(torch.cat((h, u * h), -1) @ self.W).unsqueeze(-2)


class Identity(neuralosc.Semilinear):
    """Its operator makes an identity matrix of its own."""

    def __init__(self):
        super().__init__(5, 5)
        self.M = nn.Parameter(0.3 * torch.randn(5, 5))

    def operator(self, terms=None):
        return solvers.SkewOperator(self.M - self.M.T)

    def forward(self, t, state, u):
        return self.linear(state) + self.nonlinear(t, state, u)

    def nonlinear(self, t, state, u, terms=None):
        return torch.sin(u).unsqueeze(-2)


@pytest.mark.parametrize("backend", ["compiled", "torch"])
@pytest.mark.parametrize(
    ("make", "solver"),
    [
        (lambda: Parted((4, 4)), "euler"),
        (lambda: Parted((1, 6)), "midpoint"),
        (lambda: Parted((5, 2, 1)), "euler"),
        (lambda: Parted((1, 1)), "euler"),
        (Gated, "midpoint"),
        (Identity, "imex_euler"),
    ],
    ids=["halves", "one and six", "three", "ones", "product of ones", "identity"],
)
def test_outputs_and_gradients_are_those_of_the_plain_path(make, solver, backend, relative_error):
    field = make().double()
    rnn = neuralosc.ContinuousRNN(field, solver, 0.2)
    x = torch.randn(5, 12, field.input_size, dtype=F64, requires_grad=True)
    weight = torch.randn(5, 12, field.hidden_size, dtype=F64)
    by_path = []
    for path in (backend, "plain"):
        with solvers.backend(path):
            solution = rnn.solve(x)
        assert solution.trajectories[0].record.path == path
        gradients = torch.autograd.grad((solution.output * weight).sum(), [x, *field.parameters()])
        by_path.append([solution.output, *gradients])
    for ours, plain in zip(*by_path, strict=True):
        assert relative_error(ours, plain) < 1e-12
