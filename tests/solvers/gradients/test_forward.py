"""Real-time recurrent learning: equal to backprop, with memory that does not grow with time."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc.field import LinearDrive
from solvers.run.audit import PeakMemory

F64 = torch.float64
FAMILIES = [
    ("oscillator", "semi_implicit_euler"),
    ("oscillator_uncoupled", "stormer_verlet"),
    ("oscillator_learned", "imex_midpoint"),
    ("oscillator", "etd2rk"),
    ("oscillator", "rk4"),
    ("lipschitz", "implicit_midpoint"),
    ("lipschitz", "dopri5"),
    ("antisymmetric", "native_bosh3"),
    ("leaky", "reversible"),
    ("hamiltonian_energy", "euler"),
    ("jump_gru", "euler"),
    ("noisy_lipschitz", "euler_maruyama"),
    ("gated_relaxation", "relaxation_euler"),
    ("closed_form", "closed_form"),
]


def gradients(rnn, gradient, x, state, spans, solver=None):
    """Of a weighted sum of all that is returned."""
    begin = state.clone().requires_grad_()
    output, end = rnn.with_solver(solver or rnn.solver, gradient=gradient)(x, begin, spans)
    weights = torch.linspace(-1, 2, output.numel(), dtype=F64).view_as(output)
    wanted = [begin, *(p for p in rnn.parameters() if p.requires_grad)]
    return torch.autograd.grad((output * weights).sum() + end.sin().sum(), wanted, allow_unused=True)


def compare(computed, expected, bound=1e-10):
    for a, b in zip(computed, expected, strict=True):
        a, b = (torch.zeros(1, dtype=F64) if g is None else g for g in (a, b))
        assert float((a - b).abs().max()) <= bound * float(b.abs().max())


def trained(u, parameters):
    """What a current has its values from."""
    return torch.autograd.grad(u.sum(), parameters, allow_unused=True) if u.requires_grad else [None] * len(parameters)


@pytest.mark.parametrize(("name", "solver"), FAMILIES)
def test_every_family_is_backprop(name, solver, make_field):
    """Parameters, input map, start state; clocks of their own, more than one step an interval."""
    torch.manual_seed(0)
    field = make_field(name, 2, 2)
    options = {"name": solver, "noise_seed": 3} if solvers.get(solver).stochastic else solver
    # A map of the input that is not linear in it is not to be trained.
    linear = type(field).drive is LinearDrive.drive
    x, parameters = torch.randn(2, 4, 2, dtype=F64), list(field.parameters())
    for parameter, grad in zip(parameters, trained(field.drive(x), parameters), strict=True):
        parameter.requires_grad_(linear or grad is None)
    substeps = 1 if solver in ("closed_form", "dopri5", "native_bosh3") else 2
    rnn = neuralosc.ContinuousRNN(field, options, dt=0.2, substeps=substeps, max_dt=None)
    state = torch.randn(2, rnn.components, 2, dtype=F64)
    spans = torch.rand(2, 4, dtype=F64) + 0.1
    found = gradients(rnn, "forward", x, state, spans, options)
    compare(found, gradients(rnn, "backprop", x, state, spans, options))
    assert sum(g is not None and bool(g.any()) for g in found) > 1


def test_chunks_frozen_parameters_and_closures():
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(2, 3, dt=0.3).double()
    x, state, spans = torch.randn(2, 6, 2, dtype=F64), torch.randn(2, 2, 3, dtype=F64), 3 * torch.rand(2, 6, dtype=F64)
    rnn.field.V.bias.requires_grad_(False)
    expected = gradients(rnn, "backprop", x, state, spans)
    for chunk in (1, 5, 1000):
        compare(gradients(rnn, {"name": "forward", "chunk": chunk}, x, state, spans), expected)
    weight = torch.randn(3, 3, dtype=F64, requires_grad=True)
    found = []
    for gradient in ("forward", "backprop"):
        times, method = torch.linspace(0, 1, 5, dtype=F64), solvers.get("rk4")
        states = solvers.integrate(lambda t, x, u: torch.tanh(x @ weight), state, times, None, method, gradient).states
        found.append(torch.autograd.grad(states.square().sum(), [weight]))
    compare(*found)


def test_a_second_derivative_is_that_of_backprop():
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(2, 3, dt=0.3).double()
    x, found = torch.randn(2, 5, 2, dtype=F64), []
    for gradient in ("forward", "backprop"):
        layer = rnn.with_solver(rnn.solver, gradient=gradient)
        first = torch.autograd.grad(layer(x)[0].square().sum(), list(rnn.parameters()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(rnn.parameters()))
        found.append([g.detach() for g in (*first, *second)])
    compare(*found)


def peak(gradient, time):
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(1, 2, dt=0.1, solver="rk4", substeps=4, gradient=gradient)
    x = torch.randn(4, time, 1)
    with solvers.backend("plain"), PeakMemory() as memory:
        rnn(x)[1].square().sum().backward()
    return memory.peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    grown = {gradient: peak(gradient, 13) - peak(gradient, 3) for gradient in ("forward", "backprop")}
    # States are returned, and have a gradient each, all of 4 x 2 x 2 numbers of four bytes.
    assert grown["forward"] <= 10 * 4 * 2 * 2 * 4 * 4 < 0.5 * grown["backprop"]


@pytest.mark.parametrize(
    ("options", "learned", "what"),
    [
        ({}, "x", "input current"),
        ({}, "spans", "clock"),
        ({"control": "linear"}, "", "input current"),
        ({"num_layers": 2}, "", "input current"),
    ],
)
def test_what_has_its_gradient_from_the_future_is_refused(options, learned, what, one_line):
    rnn = neuralosc.CoRNN(2, 3, dt=0.3, gradient="forward", **options).double()
    x, spans = torch.randn(2, 5, 2, dtype=F64), torch.rand(2, 5, dtype=F64) + 0.1
    with pytest.raises(solvers.PairingError) as error:
        rnn(x.requires_grad_(learned == "x"), timespans=spans.requires_grad_(learned == "spans"))
    one_line(error, what, "'hold'", "'checkpoint'")
    with torch.no_grad():
        assert torch.isfinite(rnn(x, timespans=spans)[0]).all()


@pytest.mark.parametrize("chunk", [0, True, 1.5])
def test_a_chunk_that_is_none_is_refused(chunk, one_line):
    with pytest.raises(solvers.InputError) as error:
        solvers.get_gradient({"name": "forward", "chunk": chunk})
    one_line(error, "chunk of gradient 'forward'")
