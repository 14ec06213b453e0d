"""The compiled loop against the plain one: outputs and every gradient, for every field and solver that compiles."""

import pytest
import torch

import solvers
from neuralosc import ContinuousRNN
from tests.measures import assert_agree
from tests.solvers.compiled.paths import COMPILED, compiles, inputs


def gradients(rnn, backend, x, state, spans, weights):
    """Output, last state and all gradients of one backend, which must be the one that was taken."""
    leaves = [t for t in (x, state, spans) if t is not None and t.requires_grad] + list(rnn.parameters())
    with solvers.backend(backend):
        solution = rnn.solve(x, state, timespans=spans)
        assert solution.trajectories[0].record.path == backend
        loss = sum(
            (w * t).sum() for w, t in zip(weights, (solution.states, solution.output, solution.state), strict=True)
        )
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    evaluations = solution.evaluations
    return [solution.output, solution.state, *grads], evaluations


def agree(rnn, x, state, spans, bound=1e-9):
    batch, time = x.shape[:2]
    shape = (batch, time, rnn.components, rnn.hidden_size)
    weights = [torch.randn(s, dtype=x.dtype) for s in (shape, (*shape[:2], shape[3]), (batch, *shape[2:]))]
    plain, calls = gradients(rnn, "plain", x, state, spans, weights)
    fast, same = gradients(rnn, "compiled", x, state, spans, weights)
    assert calls == same
    assert_agree(fast, plain, bound)


QUICK = [
    ("oscillator", "semi_implicit_euler"),
    ("oscillator_per_channel", "stormer_verlet"),
    ("oscillator_learned", "imex_euler"),
    ("hamiltonian_oscillator", "semi_implicit_euler"),
    ("hamiltonian_energy", "euler"),
    ("lipschitz_gated", "midpoint"),
    ("leaky", "rk4"),
    ("leaky", "reversible"),
]


@pytest.mark.parametrize(("name", "solver"), QUICK)
def test_all_gradients_are_those_of_the_plain_path(name, solver, make_field):
    rnn = ContinuousRNN(make_field(name), solver, 0.1)
    x, state, spans = inputs(rnn)
    agree(rnn, x, state, spans)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_every_pairing(name, make_field):
    solver_names = [solver for solver in solvers.compatible(make_field(name)) if compiles(make_field(name), solver)]
    assert len(solver_names) >= 10 or solver_names == ["closed_form"]
    for solver in solver_names:
        rnn = ContinuousRNN(make_field(name), solver, 0.1)
        x, state, spans = inputs(rnn)
        agree(rnn, x, state, spans)
        agree(rnn, x, state, None)


@pytest.mark.parametrize("control", ["hold", "linear"])
@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("clock", ["uniform", "numbers", "shared", "sample"])
def test_clocks_controls_and_substeps(clock, substeps, control, make_field):
    rnn = ContinuousRNN(make_field("oscillator_uncoupled"), "stormer_verlet", 0.1, substeps=substeps, control=control)
    x, state, spans = inputs(rnn)
    chosen = {"uniform": None, "numbers": spans.detach()[0], "shared": spans[0].detach().requires_grad_()}
    agree(rnn, x, state, chosen.get(clock, spans))


@pytest.mark.parametrize(("batch", "time", "hidden"), [(1, 1, 1), (1, 7, 5), (3, 1, 17), (2, 3, 33), (5, 40, 8)])
def test_shapes(batch, time, hidden, make_field):
    for name, solver in (("oscillator", "semi_implicit_euler"), ("lipschitz_gated", "heun")):
        rnn = ContinuousRNN(make_field(name, 2, hidden), solver, 0.1)
        x, state, spans = inputs(rnn, batch, time)
        agree(rnn, x, state, spans)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_a_batch(threads, make_field):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rnn = ContinuousRNN(make_field("oscillator", 2, 16), "semi_implicit_euler", 0.1)
        x, state, spans = inputs(rnn, batch=41, time=50)
        agree(rnn, x, state, spans)
    finally:
        torch.set_num_threads(before)


def test_single_precision_over_a_thousand_steps(make_field):
    for name, solver in (("oscillator", "semi_implicit_euler"), ("leaky", "rk4")):
        rnn = ContinuousRNN(make_field(name, 2, 24).float(), solver, 0.05)
        x, state, _ = inputs(rnn, batch=3, time=1000, dtype=torch.float32)
        agree(rnn, x, state, None, bound=2e-5)


def test_lengths_and_layers(make_field, relative_error):
    fields = [make_field("oscillator", 2, 5), make_field("oscillator", 5, 5)]
    rnn = ContinuousRNN(fields, "semi_implicit_euler", 0.1)
    x = torch.randn(3, 9, 2, dtype=torch.float64)
    by_backend = []
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            output, state = rnn(x, lengths=[9, 2, 5])
            by_backend.append(
                [output, state, *torch.autograd.grad(output.sum() + state.square().sum(), rnn.parameters())]
            )
    for plain, fast in zip(*by_backend, strict=True):
        assert relative_error(fast, plain) < 1e-12


@pytest.mark.parametrize("part", ["output", "state"])
def test_only_what_is_used_flows_back(part, make_field, relative_error):
    rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 0.1)
    x = torch.randn(3, 9, 2, dtype=torch.float64)
    by_backend = []
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            output, state = rnn(x)
            loss = output[:, -1].square().sum() if part == "output" else state.square().sum()
            by_backend.append(torch.autograd.grad(loss, rnn.parameters()))
    assert all(relative_error(fast, plain) < 1e-12 for plain, fast in zip(*by_backend, strict=True))


def test_a_gradient_of_the_gradient(make_field, relative_error):
    rnn = ContinuousRNN(make_field("oscillator_learned"), "imex_euler", 0.1, substeps=2)
    x, state, spans = inputs(rnn)
    leaves, by_backend = [x, state, spans, *rnn.parameters()], []
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            output, end = rnn(x, state, timespans=spans)
            first = torch.autograd.grad(output.square().sum() + end.sum(), leaves, create_graph=True)
            by_backend.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    assert all(relative_error(fast, plain) < 1e-11 for plain, fast in zip(*by_backend, strict=True))


def test_a_second_backward_pass_gives_the_same(make_field):
    rnn = ContinuousRNN(make_field("lipschitz"), "euler", 0.1)
    with solvers.backend("compiled"):
        output, _ = rnn(torch.randn(3, 9, 2, dtype=torch.float64))
        loss = output.square().sum()
        first = torch.autograd.grad(loss, rnn.parameters(), retain_graph=True)
        again = torch.autograd.grad(loss, rnn.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_frozen_parameters_get_no_gradient(make_field):
    rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 0.1)
    rnn.field.W.requires_grad_(False)
    with solvers.backend("compiled"):
        rnn(torch.randn(2, 5, 2, dtype=torch.float64))[0].sum().backward()
    assert rnn.field.W.grad is None and rnn.field.R.grad.any()


def test_without_gradients_nothing_but_the_states_is_kept(make_field, relative_error):
    rnn = ContinuousRNN(make_field("leaky", 2, 8), "rk4", 0.1)
    x = torch.randn(3, 9, 2, dtype=torch.float64)
    with solvers.backend("compiled"):
        trained = rnn.solve(x)
        with torch.no_grad():
            inferred = rnn.solve(x)
    assert not inferred.output.requires_grad
    # Other code, whose products and sums a compiler may contract in another way: equal beside the largest value.
    assert relative_error(inferred.output, trained.output) < 1e-13
    assert inferred.trajectories[0].record.saved == 10 * 3 * 8 * 8
    assert trained.trajectories[0].record.saved == (10 + 9 * 4) * 3 * 8 * 8


def test_states_one_by_one_are_those_of_the_whole(make_field):
    rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 0.1)
    with solvers.backend("compiled"):
        trajectory = rnn.solve(torch.randn(2, 5, 2, dtype=torch.float64)).trajectories[0]
    whole = trajectory.states()
    assert len(trajectory.steps) == 5 and whole.shape == (2, 5, 2, 3)
    for i, carried in enumerate(trajectory.steps):
        assert torch.equal(trajectory.solver.close(carried), whole[:, i])
    assert torch.equal(trajectory.end(), whole[:, -1])
    assert torch.equal(trajectory.positions(), whole[:, :, 0])
