"""Fields that write over what they are given are refused; what they will write over is copied."""

import numpy as np
import pytest
import torch
from torch import nn

import solvers

F64 = torch.float64


class Buffered(nn.Module):
    """dx = -x into memory of its own."""

    def __init__(self):
        super().__init__()
        self.buffer, self.array = torch.zeros(2, 1, 1, dtype=F64), np.zeros((2, 1, 1))


class ByOut(Buffered):
    def forward(self, t, x, u):
        return torch.mul(x, -1, out=self.buffer)


class ByView(Buffered):
    def forward(self, t, x, u):
        self.buffer[:] = -x
        return self.buffer[:]


class ByNumpy(Buffered):
    def forward(self, t, x, u):
        np.multiply(x.numpy(), -1, out=self.array)
        return torch.from_numpy(self.array)


class ForceByView(Buffered):
    """q'' = -q, its force into memory of its own."""

    structure = frozenset({"partitioned", "separable", "newtonian"})

    def forward(self, t, x, u):
        q, p = x.unbind(-2)
        return torch.stack((p, self.force(t, q, p, u).clone()), -2)

    def velocity(self, t, q, p, u):
        return p

    def force(self, t, q, p, u):
        self.buffer[:, 0] = -q
        return self.buffer[:, 0]


@pytest.mark.parametrize("method", ["rk4", "dopri5", "native_dopri5", "reversible"])
@pytest.mark.parametrize("field", [ByOut, ByView, ByNumpy])
def test_a_slope_in_a_buffer(field, method):
    start = torch.tensor([[[1.0]], [[2.0]]], dtype=F64)
    times = torch.linspace(0, 1, 6, dtype=F64)
    computed = solvers.integrate(field(), start, times, method=method).states
    expected = solvers.integrate(lambda t, x, u: -x, start, times, method=method).states
    torch.testing.assert_close(computed, expected, rtol=1e-14, atol=0)


class Scaled(Buffered):
    """dx = -a x; the product is written into memory of its own, and so differentiated."""

    def __init__(self, buffered):
        super().__init__()
        self.a, self.buffered = nn.Parameter(torch.tensor(0.7, dtype=F64)), buffered

    def forward(self, t, x, u):
        if not self.buffered or (torch.is_grad_enabled() and x.requires_grad):
            return -self.a * x
        self.buffer[:] = -self.a * x
        return self.buffer[:]


@pytest.mark.parametrize(("method", "gradient"), [("rk4", "adjoint"), ("reversible", "reversible")])
def test_a_slope_in_a_buffer_in_the_backward_pass(method, gradient):
    values = []
    for buffered in (True, False):
        field, start = Scaled(buffered), torch.ones(2, 1, 1, dtype=F64)
        end = solvers.integrate(field, start, [0.0, 0.3, 0.6], method=method, gradient=gradient).states[:, -1].sum()
        values.append(torch.autograd.grad(end, field.a)[0])
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["stormer_verlet", "pefrl"])
def test_a_force_in_a_buffer(method):
    start, times = torch.ones(2, 2, 1, dtype=F64), torch.linspace(0, 1, 11, dtype=F64)
    end = solvers.integrate(ForceByView(), start, times, method=method).states[0, -1, 0, 0]
    assert float(end) == pytest.approx(np.cos(1.0) + np.sin(1.0), abs=3e-3)


def over_the_state(t, x, u):
    return x.mul_(-1)


def over_a_part_of_the_state(t, x, u):
    x.unbind(-2)[0].mul_(2)
    return -x


def over_the_input(t, x, u):
    return u.mul_(0.5).unsqueeze(-2) - x


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "native_dopri5", "reversible"])
@pytest.mark.parametrize("field", [over_the_state, over_a_part_of_the_state, over_the_input])
def test_a_field_that_writes_over_what_it_is_given(field, method, one_line):
    start, u = torch.ones(2, 1, 1, dtype=F64), torch.ones(2, 1, dtype=F64)
    with pytest.raises(solvers.InputError) as refused:
        solvers.integrate(field, start, [0.0, 1.0], u, method)
    one_line(refused, field.__name__, "in place")
