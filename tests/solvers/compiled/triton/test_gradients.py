"""Gradients that save memory, with the GPU kernels: the numbers of the plain path."""

import pytest

import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.triton import kernel
from solvers.gradients import reversible
from tests.solvers.compiled.triton.kernels import agree


@pytest.fixture(params=["persistent", pytest.param("staged", marks=pytest.mark.slow)])
def kernels(request, monkeypatch):
    """Each of the two ways in which kernels take steps."""
    if request.param == "staged":
        monkeypatch.setattr(kernel, "CACHED", -1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("field", "solver", "options"),
    [
        ("oscillator", "semi_implicit_euler", {}),
        ("oscillator_uncoupled", "stormer_verlet", {"substeps": 3, "control": "linear"}),
        ("leaky", "reversible", {"substeps": 2}),
    ],
)
def test_checkpoint(field, solver, options, make_field):
    gradient = solvers.Checkpoint("checkpoint", segments=2)
    rnn = ContinuousRNN(make_field(field), solver, 0.1, gradient=gradient, **options)
    agree(rnn, time=5, spans="sample", bound=1e-11)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("longest", [1, 256])
@pytest.mark.parametrize(
    ("field", "solver", "options"),
    [
        ("oscillator_uncoupled", "stormer_verlet", {"substeps": 3, "control": "linear"}),
        ("leaky", "reversible", {}),
    ],
)
def test_reversible(field, solver, options, longest, make_field, monkeypatch):
    """Intervals of more steps than a segment has are cut."""
    monkeypatch.setattr(reversible, "LONGEST", longest)
    gradient = solvers.Reversible("reversible", snapshots=1, chunk=2)
    rnn = ContinuousRNN(make_field(field), solver, 0.1, gradient=gradient, **options)
    agree(rnn, time=5, spans="sample", bound=1e-9)
