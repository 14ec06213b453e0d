"""Gradient 'checkpoint' in the fast loops: the numbers of the plain path, segment by segment."""

import pytest
import torch

import solvers
from neuralosc import ContinuousRNN
from tests.solvers.compiled.paths import gradients

SEGMENTS = [{}, {"segments": 1}, {"segments": 5}, {"segments": 100}, {"budget": 3_000}]


@pytest.fixture(params=["compiled", "torch"])
def fast(request):
    """A fast path that runs everywhere."""
    return request.param


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("options", SEGMENTS, ids=str)
def test_segments_are_those_of_the_plain_path(options, whole, fast, make_field, relative_error):
    gradient = solvers.Checkpoint("checkpoint", **options)
    rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 0.1, gradient=gradient)
    x = torch.randn(3, 11, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    spans = torch.rand(3, 11, dtype=torch.float64, requires_grad=True)
    (plain, calls), (computed, same) = (gradients(rnn, x, state, spans, b, whole) for b in ("plain", fast))
    assert calls == same
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(computed, plain, strict=True))


@pytest.mark.parametrize(
    ("field", "solver", "options"),
    [
        ("oscillator_uncoupled", "stormer_verlet", {"substeps": 3, "control": "linear"}),
        ("lipschitz_gated", "midpoint", {"substeps": 2}),
        ("leaky", "reversible", {}),
        ("hamiltonian_energy", "euler", {}),
    ],
)
@pytest.mark.parametrize("clock", ["uniform", "shared", "sample"])
def test_fields_solvers_and_clocks(field, solver, options, clock, fast, make_field, relative_error):
    rnn = ContinuousRNN(make_field(field), solver, 0.1, gradient="checkpoint", **options)
    x = torch.randn(3, 10, rnn.input_size, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, rnn.components, rnn.hidden_size, dtype=torch.float64, requires_grad=True)
    spans = {"uniform": None, "shared": torch.rand(10), "sample": torch.rand(3, 10)}[clock]
    spans = None if spans is None else spans.double().requires_grad_()
    (plain, _), (computed, _) = (gradients(rnn, x, state, spans, b) for b in ("plain", fast))
    for a, b in zip(computed, plain, strict=True):
        assert relative_error(a.expand_as(b), b) < 1e-9 or not (a.any() or b.any())


def test_a_gradient_of_the_gradient_and_a_second_backward_pass(fast, make_field, relative_error):
    rnn = ContinuousRNN(make_field("oscillator_learned"), "imex_euler", 0.1, gradient="checkpoint")
    x, by_backend = torch.randn(3, 9, 2, dtype=torch.float64, requires_grad=True), []
    for backend in ("plain", fast):
        with solvers.backend(backend):
            output, _ = rnn(x)
            (once,) = torch.autograd.grad(output.square().sum(), x, retain_graph=True)
            (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
            by_backend.append([once, first, *torch.autograd.grad(first.square().sum(), [x, *rnn.parameters()])])
    assert all(relative_error(one, plain) < 1e-11 for plain, one in zip(*by_backend, strict=True))


def test_without_gradients_there_are_no_segments(fast, make_field):
    rnn = ContinuousRNN(make_field("leaky"), "rk4", 0.1, gradient="checkpoint")
    with solvers.backend(fast), torch.no_grad():
        x = torch.randn(2, 9, rnn.input_size, dtype=torch.float64)
        torch.testing.assert_close(rnn(x)[0], rnn.with_solver("rk4", gradient="backprop")(x)[0], rtol=0, atol=1e-14)


def test_a_solve_for_positions_alone_has_no_other_states(fast, make_field, one_line, relative_error):
    field, samples = make_field("oscillator"), torch.randn(2, 9, 3, dtype=torch.float64)
    solver, start = solvers.get("semi_implicit_euler"), torch.zeros(2, 2, 3, dtype=torch.float64)
    clock, hold = solvers.Clock.uniform(9, 0.1), solvers.get_control("hold")
    parts = (field, solver, solvers.get_gradient("checkpoint"), hold, clock, samples.unbind(1), start)
    with solvers.backend(fast):
        short, whole = (solvers.solve(*parts, positions_only=only) for only in (True, False))
    assert relative_error(short.positions(), whole.positions()) < 1e-13
    assert relative_error(short.end(), whole.end()) < 1e-13
    for ask in (short.states, lambda: short.steps[2]):
        with pytest.raises(solvers.InputError) as error:
            ask()
        one_line(error, "positions_only", "leave")


def test_failures_read_the_same(fast, make_field, one_line):
    messages = []
    rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 50.0, gradient="checkpoint")
    for backend in ("plain", fast):
        with solvers.backend(backend), pytest.raises(solvers.NonFiniteStateError) as error:
            rnn(torch.ones(2, 400, 2, dtype=torch.float64))
        messages.append(one_line(error, "step", "time"))
    assert messages[0] == messages[1]
