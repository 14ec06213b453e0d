"""The loop in pure torch against the plain path, and when it is taken."""

import pytest
import torch

import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.cpp import compiler
from solvers.errors import InputError, PairingError
from tests.fields import FIELDS
from tests.measures import assert_agree
from tests.solvers.compiled.paths import compiles, inputs

QUICK = [
    ("oscillator", "semi_implicit_euler"),
    ("oscillator_per_channel", "stormer_verlet"),
    ("oscillator_learned", "imex_euler"),
    ("hamiltonian_oscillator", "symplectic_euler"),
    ("hamiltonian_energy", "euler"),
    ("lipschitz_gated", "midpoint"),
    ("multiscale", "semi_implicit_euler"),
    ("linear_oscillator_damped", "semi_implicit_euler"),
    ("leaky", "rk4"),
    ("leaky", "reversible"),
]


def gradients(rnn, backend, x, state, spans):
    leaves = [t for t in (x, state, spans) if t is not None and t.requires_grad] + list(rnn.parameters())
    with solvers.backend(backend):
        solution = rnn.solve(x, state, timespans=spans)
    torch.manual_seed(3)
    assert solution.trajectories[0].record.path == backend
    tensors = (solution.states, solution.output, solution.state)
    loss = sum((torch.randn(t.shape, dtype=t.dtype) * t).sum() for t in tensors)
    return [*tensors, *torch.autograd.grad(loss, leaves, allow_unused=True)], solution.evaluations


def agree(rnn, x, state, spans, bound=1e-9):
    plain, calls = gradients(rnn, "plain", x, state, spans)
    fast, same = gradients(rnn, "torch", x, state, spans)
    assert calls == same
    assert_agree(fast, plain, bound)


@pytest.mark.parametrize(("name", "solver"), QUICK)
def test_all_gradients_are_those_of_the_plain_path(name, solver, make_field):
    rnn = ContinuousRNN(make_field(name), solver, 0.1)
    x, state, spans = inputs(rnn)
    agree(rnn, x, state, spans)
    agree(rnn, x, state, None)


@pytest.mark.slow
def test_every_pairing(make_field):
    for name in FIELDS:
        for solver in solvers.compatible(make_field(name)):
            if compiles(make_field(name), solver):
                rnn = ContinuousRNN(make_field(name), solver, 0.1)
                agree(rnn, *inputs(rnn))


@pytest.mark.parametrize("control", ["hold", "linear"])
@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("clock", ["uniform", "numbers", "shared", "sample"])
def test_clocks_controls_and_substeps(clock, substeps, control, make_field):
    rnn = ContinuousRNN(make_field("oscillator_uncoupled"), "stormer_verlet", 0.1, substeps=substeps, control=control)
    x, state, spans = inputs(rnn)
    chosen = {"uniform": None, "numbers": spans.detach()[0], "shared": spans[0].detach().requires_grad_()}
    agree(rnn, x, state, chosen.get(clock, spans))


@pytest.mark.parametrize(("batch", "time", "hidden"), [(1, 1, 1), (1, 7, 5), (3, 1, 17), (5, 40, 8)])
def test_shapes(batch, time, hidden, make_field):
    for name, solver in (("oscillator", "semi_implicit_euler"), ("lipschitz_gated", "heun")):
        rnn = ContinuousRNN(make_field(name, 2, hidden), solver, 0.1)
        agree(rnn, *inputs(rnn, batch, time))


def test_single_precision(make_field):
    rnn = ContinuousRNN(make_field("oscillator").float(), "semi_implicit_euler", 0.1)
    agree(rnn, *inputs(rnn, 2, 1000, torch.float32), 2e-5)


def test_a_gradient_of_the_gradient(make_field):
    rnn = ContinuousRNN(make_field("leaky"), "rk4", 0.1)
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    by_backend = []
    for backend in ("plain", "torch"):
        with solvers.backend(backend):
            (slope,) = torch.autograd.grad(rnn(x)[0].square().sum(), x, create_graph=True)
            by_backend.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*by_backend, rtol=1e-10, atol=1e-13)


def test_taken_where_there_is_no_compiler(make_field, monkeypatch):
    monkeypatch.setenv(compiler.COMPILER, "no-such-compiler")
    rnn = ContinuousRNN(make_field("leaky"), "rk4", 0.1)
    x = torch.randn(2, 70, 2, dtype=torch.float64)
    record = rnn.solve(x).trajectories[0].record
    assert record.path == "torch" and "no-such-compiler" in record.reason
    assert "torch.tanh" in record.source and record.saved > 0 and record.products.forward
    assert rnn.solve(x[:, :10]).trajectories[0].record.path == "plain"
    monkeypatch.delenv(compiler.COMPILER)
    assert rnn.solve(x).trajectories[0].record.path == "compiled"


def test_what_it_cannot_take_is_refused(make_field, one_line):
    rnn = ContinuousRNN(make_field("leaky"), "native_dopri5", 0.1)
    with solvers.backend("torch"), pytest.raises(PairingError) as caught:
        rnn(torch.randn(2, 5, 2, dtype=torch.float64))
    one_line(caught, "backend 'torch'", "native_dopri5")
    with pytest.raises(InputError) as caught:
        solvers.set_backend("fast")
    one_line(caught, "fast", "torch")
