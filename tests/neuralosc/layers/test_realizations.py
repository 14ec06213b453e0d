"""Paths under noise: their law at any times, together, and what they are where there is no noise."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN, InputError

F64 = torch.float64
G = 0.8


class OrnsteinUhlenbeck(neuralosc.VectorField):
    """dx = (u - x) dt + G dW."""

    structure = frozenset({"stochastic"})

    def forward(self, t, state, u):
        return u.unsqueeze(-2) - state

    def diffusion(self, t, state, u):
        return torch.full_like(state, G)


class Sum(neuralosc.VectorField):
    """dx = u dt, with noise of size 0: exact in any steps under a held input."""

    structure = frozenset({"stochastic"})

    def forward(self, t, state, u):
        return u.unsqueeze(-2)

    def diffusion(self, t, state, u):
        return torch.zeros_like(state)


def test_the_law_at_several_times_together():
    """Mean and covariance of the exact solution, before, between and after the samples, in any order."""
    torch.manual_seed(0)
    rnn = ContinuousRNN(OrnsteinUhlenbeck(1, 1), "euler_maruyama", max_dt=0.01)
    x, spans = torch.tensor([[[1.0], [-2.0]]], dtype=F64), torch.tensor([[0.5, 0.4]], dtype=F64)
    at = torch.tensor([1.5, 0.2, 0.7, 1.1], dtype=F64)
    paths = rnn.sample_paths(x, spans, at, count=4000)
    assert paths.shape == (4000, 1, 4, 1, 1)
    values = paths.reshape(4000, 4)

    def mean(t):
        first = 1 - math.exp(-min(t, 0.5))
        second = first if t < 0.5 else -2 + (first + 2) * math.exp(-(min(t, 0.9) - 0.5))
        return second * math.exp(-max(t - 0.9, 0.0))

    expected = torch.tensor([mean(float(t)) for t in at], dtype=F64)
    s, t = at.unsqueeze(0), at.unsqueeze(1)
    covariance = G**2 / 2 * (torch.exp(-(t - s).abs()) - torch.exp(-(t + s)))
    # Five standard errors of 4000 paths, and the bias of the steps.
    assert float((values.mean(0) - expected).abs().max()) < 5 * 0.57 / 4000**0.5 + 0.01
    assert float((values.T.cov() - covariance).abs().max()) < 5 * 0.32 * (2 / 4000) ** 0.5 + 0.01


@pytest.mark.parametrize(("solver", "control"), [("euler_maruyama", "hold"), ("stochastic_heun", "linear")])
@pytest.mark.parametrize("future", ["zero", "hold"])
def test_without_noise_it_is_the_trajectory(solver, control, future):
    rnn = ContinuousRNN([Sum(2, 2), Sum(2, 2)], solver, [0.5, 0.25], control=control)
    x, spans = torch.randn(3, 5, 2, dtype=F64), torch.empty(3, 5, dtype=F64).exponential_()
    spans[1, 2] = 0.0
    state, lengths = torch.randn(2, 3, 1, 2, dtype=F64), torch.tensor([5, 3, 1])
    at = torch.cat((8 * torch.rand(3, 6, dtype=F64), spans[:, :1], spans.sum(1, keepdim=True)), 1)
    plain = rnn.with_solver("heun", control=control)
    expected = plain.trajectory(x, spans, at, state, lengths, future=future)
    paths = rnn.sample_paths(x, spans, at, state, lengths, count=2, future=future)
    if control == "hold":
        torch.testing.assert_close(paths, expected.expand(2, *expected.shape), rtol=1e-11, atol=1e-12)
    else:
        # The first layer is stepped as it is in a run; the last one sees its output as samples.
        torch.testing.assert_close(paths[0], paths[1], rtol=0, atol=0)
        torch.testing.assert_close(paths[0], expected, rtol=1e-11, atol=1e-12)


def test_of_named_networks_with_gradients():
    rnn = neuralosc.NoisyRNN(2, 4).double()
    x = torch.randn(3, 5, 2, dtype=F64, requires_grad=True)
    paths = rnn.sample_paths(x, at=[0.5, 2.0, 9.0], count=7)
    assert paths.shape == (7, 3, 3, 1, 4) and float(paths.detach().std(0).min()) > 0
    paths.quantile(0.9, 0).sum().backward()
    # After its end a path remembers all samples.
    assert bool((x.grad != 0).all())


def test_a_series_without_samples_starts_from_zeros():
    """Not from what a field makes of a first sample that it has not."""
    field = neuralosc.Noisy(neuralosc.NeuralCDE(2, 3), additive=0.0, multiplicative=0.0)
    rnn = ContinuousRNN(field, "euler_maruyama").double()
    x = torch.randn(2, 4, 2, dtype=F64)
    paths = rnn.sample_paths(x, at=[0.0], lengths=[4, 0], count=3)
    assert bool((paths[:, 0] != 0).all()) and not bool(paths[:, 1].any())


def test_what_has_no_paths(one_line):
    x = torch.randn(2, 3, 2, dtype=F64)
    noisy = neuralosc.NoisyRNN(2, 4).double()
    cases = [
        (lambda: neuralosc.CoRNN(2, 4).double().sample_paths(x, at=[1.0]), ["draws no noise", "trajectory"]),
        (lambda: noisy.sample_paths(x, at=[1.0], count=0), ["count"]),
        (lambda: neuralosc.NoisyRNN(2, 4).double().eval().sample_paths(x, at=[1.0]), ["no noise", "rnn.train()"]),
        (lambda: noisy.sample_paths(x, at=[-1.0]), ["at holds -1"]),
        (lambda: noisy.sample_paths(x, at=[1.0], future="mean"), ["future is 'mean'"]),
        (
            lambda: neuralosc.NoisyRNN(2, 4, bidirectional=True).double().sample_paths(x, at=[1.0]),
            ["bidirectional=False"],
        ),
        (lambda: neuralosc.NoisyRNN(2, 4, dropout=0.5).double().sample_paths(x, at=[1.0]), ["dropout", "eval()"]),
    ]
    for act, words in cases:
        with pytest.raises((InputError, solvers.PairingError)) as error:
            act()
        one_line(error, *words)
