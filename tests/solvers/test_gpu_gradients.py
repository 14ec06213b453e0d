"""Gradients that save memory, with the GPU kernels: the numbers of the plain path."""

import pytest
from test_compiled_gpu import agree

import solvers
from neuralosc import ContinuousRNN


@pytest.mark.parametrize("segments", [2, 5])
@pytest.mark.parametrize(
    ("field", "solver", "options"),
    [
        ("oscillator", "semi_implicit_euler", {}),
        ("oscillator_uncoupled", "stormer_verlet", {"substeps": 3, "control": "linear"}),
        ("leaky", "reversible", {"substeps": 2}),
    ],
)
def test_checkpoint(field, solver, options, segments, make_field):
    gradient = solvers.Checkpoint("checkpoint", segments=segments)
    rnn = ContinuousRNN(make_field(field), solver, 0.1, gradient=gradient, **options)
    agree(rnn, time=5, spans="sample", bound=1e-11)
