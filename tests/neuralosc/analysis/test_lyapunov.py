"""Exponents that are known: of linear fields, of Lorenz' equations, of oscillators, of steps and of flows."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.lyapunov import lyapunov
from solvers.errors import InputError
from tests.neuralosc.analysis.linear import F64, Linear, rotation

X = torch.zeros(4, 40, 2, dtype=F64)


@pytest.fixture(autouse=True)
def _plain():
    """Each network here runs once or twice, which compiling does not pay for."""
    with solvers.backend("plain"):
        yield


class Lorenz:
    """Lorenz 1963, with his parameters."""

    structure = frozenset({"differential"})

    def __call__(self, t, state, u):
        x, y, z = state.unbind(-1)
        return torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), -1)


class HenonHeiles:
    """H = (p^2 + q^2) / 2 + q1^2 q2 - q2^3 / 3."""

    structure = frozenset({"differential"})

    def __call__(self, t, state, u):
        q, p = state.unbind(-2)
        x, y = q.unbind(-1)
        return torch.stack((p, torch.stack((-x - 2 * x * y, -y - x * x + y * y), -1)), -2)


def test_of_a_linear_network_those_of_its_step_and_of_its_flow():
    net = neuralosc.ContinuousRNN(Linear([[-2.0, 0.0], [0.5, -1.0]]), "euler", dt=0.1).double()
    of_map, of_flow = lyapunov(net, X, k=None, transient=0.5), lyapunov(net, X, k=None, transient=0.5, flow=True)
    step = [math.log(1 - 0.1) / 0.1, math.log(1 - 0.2) / 0.1]
    torch.testing.assert_close(of_map.exponents, torch.tensor(step, dtype=F64), rtol=0.03, atol=0)
    torch.testing.assert_close(of_flow.exponents, torch.tensor([-1.0, -2.0], dtype=F64), rtol=0.03, atol=0)
    # What they add up to needs no time to settle.
    assert float(of_map.exponents.sum()) == pytest.approx(sum(step), rel=1e-12)
    assert float(of_flow.exponents.sum()) == pytest.approx(-3.0, rel=1e-8)
    assert of_map.divergence == pytest.approx(sum(step), rel=1e-12)
    assert (of_map.of, of_flow.of) == ("map", "flow") and of_flow.refined < 1e-6
    assert of_map.verdict.answer == "meet" and of_map.dimension == 0.0


def test_of_an_oscillator_euler_makes_what_the_flow_has_not():
    net = neuralosc.ContinuousRNN(Linear(rotation()), "euler", dt=0.1).double()
    torch.testing.assert_close(
        lyapunov(net, X, k=2).exponents, torch.full((2,), math.log(1.01) / 0.2, dtype=F64), rtol=1e-10, atol=0
    )
    assert lyapunov(net, X, k=2).verdict.answer == "part"
    still = lyapunov(net, X, k=2, flow=True)
    assert float(still.exponents.abs().max()) < 1e-7


def test_lorenz():
    """0.9056, 0 and -14.5723 per unit of time (Sprott 2003); they add up to -(10 + 1 + 8/3) everywhere."""
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([1.0, 1.0, 25.0], dtype=F64) + torch.randn(64, 1, 3, generator=generator, dtype=F64)
    found = lyapunov(Lorenz(), start, None, dt=0.01, steps=1500, transient=0.3)
    assert float(found.exponents.sum()) == pytest.approx(-41 / 3, abs=2e-3)
    expected = torch.tensor([0.9056, 0.0, -14.5723], dtype=F64)
    assert bool(((found.exponents - expected).abs() < 4 * found.errors + 0.01).all())
    assert float(found.errors.max()) < 0.05
    assert found.verdict.answer == "part" and found.dimension == pytest.approx(2.062, abs=0.01)


def test_of_a_hamiltonian_they_come_in_pairs():
    """1/8 of energy, mostly chaotic: lambda, 0, 0 and -lambda, up to what a finite time leaves."""
    start = torch.tensor([[[0.0, 0.1], [0.0, 0.1]]], dtype=F64).repeat(16, 1, 1)
    start[:, 0, 1] = torch.linspace(-0.15, 0.25, 16, dtype=F64)
    q2 = start[:, 0, 1]
    start[:, 1, 0] = (2 * (0.125 - (q2**2 / 2 - q2**3 / 3)) - 0.01).sqrt()
    found = lyapunov(HenonHeiles(), start, None, dt=0.1, steps=800, transient=0.2)
    torch.testing.assert_close(found.exponents, -found.exponents.flip(0), rtol=0, atol=2e-3)
    assert abs(found.divergence) < 1e-6


def test_a_sign_that_cannot_be_told_is_no_claim():
    generator = torch.Generator().manual_seed(1)
    start = torch.tensor([1.0, 1.0, 25.0], dtype=F64) + torch.randn(1, 1, 3, generator=generator, dtype=F64)
    found = lyapunov(Lorenz(), start, 1, dt=0.01, steps=40, transient=0.0)
    assert not found.verdict.claim and "its sign cannot be told" in str(found.verdict)


def test_a_flow_that_is_not_resolved_is_no_claim():
    net = neuralosc.ContinuousRNN(Linear([[-300.0, 0.0], [0.0, -1.0]]), "euler", dt=0.1).double()
    found = lyapunov(net, X, k=2, flow=True)
    assert not found.verdict.claim and "it is not the flow's" in str(found.verdict)


def test_bad_input():
    net = neuralosc.ContinuousRNN(Linear(rotation()), "euler", dt=0.1).double()
    with pytest.raises(InputError, match="transient is 1, expected a share"):
        lyapunov(net, X, transient=1)
    with pytest.raises(InputError, match="k is 0, expected a positive number of exponents"):
        lyapunov(net, X, 0)
    with pytest.raises(InputError, match="the shortest sequence has 3 samples, expected 4"):
        lyapunov(net, X[:, :3])
    with pytest.raises(InputError, match=r"data is \(4, 40\), expected states"):
        lyapunov(Lorenz(), X[:, :, 0])
    with pytest.raises(InputError, match="flow is asked of a field"):
        lyapunov(Lorenz(), X[:1, :1], flow=True)
