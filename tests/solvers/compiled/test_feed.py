"""Linear input currents: computed inside the steps, with the numbers and gradients of the plain path."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import neuralosc
import solvers


def passes(rnn, x, **options):
    leaves = [x, *rnn.parameters()]
    by_backend = []
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            output, state = rnn(x, **options)
            grads = torch.autograd.grad(output.sin().sum() + state.square().sum(), leaves, allow_unused=True)
        by_backend.append([output, state, *(torch.zeros(()) if g is None else g for g in grads)])
    return zip(*by_backend, strict=True)


@pytest.mark.parametrize(
    "name", ["oscillator", "hamiltonian_oscillator", "lipschitz", "multiscale", "noisy_oscillator"]
)
@pytest.mark.parametrize("options", [{}, {"substeps": 3}, {"gradient": "checkpoint"}, {"max_dt": 0.5}], ids=str)
def test_every_gradient_is_that_of_the_plain_path(name, options, make_field, relative_error):
    rnn = neuralosc.ContinuousRNN(make_field(name), "euler", 0.1, **options)
    x = torch.randn(3, 9, 2, dtype=torch.float64, requires_grad=True)
    spans = torch.rand(3, 9, dtype=torch.float64)
    for plain, fast in passes(rnn, x, timespans=spans, lengths=[9, 4, 1]):
        assert relative_error(fast, plain) < 1e-12 or not (fast.any() or plain.any())


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("features", [1, 2, 5, 8, 9])
def test_features_batch_and_channels_that_agree_are_not_confused(features, batch, relative_error):
    rnn = neuralosc.CoRNN(features, 5).double()
    x = torch.randn(batch, 4, features, dtype=torch.float64, requires_grad=True)
    for plain, fast in passes(rnn, x):
        assert relative_error(fast, plain) < 1e-12


def test_a_map_that_is_not_the_plain_one_is_called(relative_error):
    calls = []
    rnn = neuralosc.CoRNN(2, 4).double()
    rnn.field.V.register_forward_hook(lambda *_: calls.append(1))
    rnn(torch.randn(3, 9, 2, dtype=torch.float64))
    assert calls
    # A parametrised weight is computed from what is trained, and the gradient must reach that.
    rnn = neuralosc.CoRNN(2, 4).double()
    parametrizations.weight_norm(rnn.field.V)
    x = torch.randn(3, 9, 2, dtype=torch.float64, requires_grad=True)
    for plain, fast in passes(rnn, x):
        assert relative_error(fast, plain) < 1e-12


def test_a_drive_of_ones_own_is_called(relative_error):
    class Squared(neuralosc.Antisymmetric):
        def drive(self, x):
            return self.V(x).square()

    rnn = neuralosc.ContinuousRNN(Squared(2, 4).double(), "euler", 0.1)
    x = torch.randn(3, 9, 2, dtype=torch.float64, requires_grad=True)
    for plain, fast in passes(rnn, x):
        assert relative_error(fast, plain) < 1e-12


def test_a_map_without_bias_or_frozen_or_swapped(relative_error):
    rnn = neuralosc.CoRNN(2, 4).double()
    rnn.field.V = nn.Linear(2, 4, bias=False).double()
    x = torch.randn(3, 70, 2, dtype=torch.float64)
    with solvers.backend("plain"):
        expected = rnn(x)[0]
    assert relative_error(rnn(x)[0], expected) < 1e-12
    # Other weights under functional_call are the ones that are used.
    other = {"fields.0.V.weight": torch.randn(4, 2, dtype=torch.float64, requires_grad=True)}
    by_backend = {}
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            output = torch.func.functional_call(rnn, other, (x,))[0]
            by_backend[backend] = output, *torch.autograd.grad(output.sum(), list(other.values()))
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(by_backend["compiled"], by_backend["plain"], strict=True))
    rnn.field.V.weight.requires_grad_(False)
    grads = {}
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            grads[backend] = torch.autograd.grad(rnn(x)[0].sum(), [rnn.field.W])
    assert relative_error(grads["compiled"][0], grads["plain"][0]) < 1e-12


def test_a_gradient_of_the_gradient(relative_error):
    rnn = neuralosc.CoRNN(2, 3).double()
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    by_backend = {}
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            (slope,) = torch.autograd.grad(rnn(x)[0].sin().sum(), x, create_graph=True)
            by_backend[backend] = torch.autograd.grad(slope.square().sum(), [x, rnn.field.V.weight, rnn.field.W])
    assert all(relative_error(a, b) < 1e-11 for a, b in zip(by_backend["compiled"], by_backend["plain"], strict=True))
