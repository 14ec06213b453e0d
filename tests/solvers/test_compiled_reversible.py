"""Gradient 'reversible' in the fast loops: the numbers of the plain path, in memory that does not grow with time."""

import conftest
import pytest
from test_compiled_checkpoint import gradients
from test_compiled_equality import compiles, inputs

import solvers
from neuralosc import ContinuousRNN
from solvers.compiled import segmented


@pytest.fixture(params=["compiled", "torch"])
def fast(request):
    """A fast path that runs everywhere."""
    return request.param


def agree(rnn, x, state, spans, fast="compiled", bound=1e-9, **options):
    """The fast path with gradient 'reversible', the plain one, and backprop."""
    gradient = solvers.Reversible("reversible", **options)
    reversed_ = rnn.with_solver(rnn.solver, gradient=gradient)
    (found, same), (plain, calls) = (gradients(reversed_, x, state, spans, b) for b in (fast, "plain"))
    assert calls == same
    conftest.assert_agree(found, plain, bound)
    expected, _ = gradients(rnn, x, state, spans, fast)
    conftest.assert_agree(found, expected, bound)


def undone(field):
    """The solvers whose steps on a field are taken back by a kernel."""
    return [s for s in solvers.compatible(field) if compiles(field, s) and solvers.get(s).undoes(field)]


QUICK = [
    ("oscillator_uncoupled", "semi_implicit_euler"),
    ("oscillator_learned", "stormer_verlet"),
    ("hamiltonian_oscillator", "symplectic_euler_dk"),
    ("linear_oscillator_damped", "forest_ruth"),
    ("lipschitz", "reversible"),
]


@pytest.mark.parametrize(("name", "solver"), QUICK)
def test_all_gradients_are_those_of_the_plain_path(name, solver, fast, make_field):
    assert solver in undone(make_field(name))
    rnn = ContinuousRNN(make_field(name), solver, 0.1)
    x, state, spans = inputs(rnn, time=11)
    for options in ({}, {"snapshots": 0, "chunk": 3}, {"snapshots": 2, "chunk": 2}):
        agree(rnn, x, state, spans, fast, **options)
    agree(rnn, x, state, None, fast)


@pytest.mark.slow
@pytest.mark.parametrize("name", conftest.FIELDS)
def test_every_pairing(name, make_field):
    taken = undone(make_field(name))
    assert "reversible" in taken
    for solver in taken:
        rnn = ContinuousRNN(make_field(name), solver, 0.1)
        agree(rnn, *inputs(rnn), snapshots=1, chunk=2)


@pytest.mark.parametrize("control", ["hold", "linear"])
@pytest.mark.parametrize(("substeps", "chunk"), [(1, 4), (3, 4), (7, 2), (6, 6)])
@pytest.mark.parametrize("clock", ["uniform", "shared", "sample"])
def test_clocks_controls_and_substeps(clock, substeps, chunk, control, fast, make_field, monkeypatch):
    """Intervals of more steps than a segment has are cut."""
    monkeypatch.setattr(segmented, "LONGEST", 1)
    rnn = ContinuousRNN(make_field("oscillator_uncoupled"), "stormer_verlet", 0.1, substeps=substeps, control=control)
    x, state, spans = inputs(rnn)
    chosen = {"uniform": None, "shared": spans[0].detach().requires_grad_()}
    agree(rnn, x, state, chosen.get(clock, spans), fast, snapshots=1, chunk=chunk)
