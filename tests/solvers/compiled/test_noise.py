"""Steps with noise in the compiled loop and in the loop of PyTorch calls, against the plain path on the same path."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from tests.measures import assert_agree
from tests.solvers.compiled.paths import gradients, inputs

METHODS = [info.name for info in solvers.available() if info.family == "stochastic"]
FIXED = {"substeps": 1, "control": "hold", "gradient": "backprop"}


def network(name, **choices):
    torch.manual_seed(0)
    field = neuralosc.Noisy(neuralosc.Lipschitz(2, 6), 0.2, 0.3)
    method = {"name": name, "noise_seed": 1}
    return ContinuousRNN(field, method, dt=0.1, **{**FIXED, **choices}).double()


def agree(rnn, spans=True, backends=("compiled", "torch")):
    x, state, clock = inputs(rnn)
    expected, calls = gradients(rnn, x, state, clock if spans else None, "plain")
    for backend in backends:
        computed, same = gradients(rnn, x, state, clock if spans else None, backend)
        assert_agree(computed, expected, 1e-9)
        # Plain steps that are taken again count again.
        assert same == calls or rnn.gradient.name != "backprop"


@pytest.mark.parametrize("spans", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_every_method(name, spans):
    agree(network(name), spans)


@pytest.mark.parametrize("name", ["milstein", "srk"])
@pytest.mark.parametrize("choices", [{"substeps": 3}, {"control": "linear"}, {"gradient": "checkpoint"}])
def test_substeps_controls_and_segments(name, choices):
    agree(network(name, **choices), backends=("compiled",))


def test_steps_taken_back():
    agree(network("reversible_heun", gradient="reversible", substeps=2), backends=("compiled",))


def test_a_field_with_two_components_and_without_a_map():
    torch.manual_seed(0)
    field = neuralosc.Noisy(neuralosc.Oscillator(2, 4, gamma=1.0, epsilon=1.0), 0.2, 0.3)
    agree(ContinuousRNN(field, {"name": "srk", "noise_seed": 1}, dt=0.1, substeps=2).double())


def test_the_same_path_in_single_precision():
    rnn = network("stochastic_heun", substeps=2)
    x = torch.randn(3, 70, 2, dtype=torch.float64)
    exact = rnn(x)[0]
    solution = rnn.float().solve(x.float())
    assert solution.trajectories[0].record.path == "compiled"
    torch.testing.assert_close(solution.output.double(), exact, rtol=0, atol=1e-4)


def test_each_solve_has_a_path_of_its_own_without_a_seed():
    rnn = ContinuousRNN(neuralosc.Noisy(neuralosc.Lipschitz(2, 6), 0.2), "euler_maruyama", dt=0.1)
    x = torch.randn(3, 70, 2)
    torch.manual_seed(1)
    first, second = rnn(x)[0], rnn(x)[0]
    torch.manual_seed(1)
    assert torch.equal(rnn(x)[0], first) and not torch.equal(first, second)
    torch.manual_seed(1)
    with solvers.backend("plain"):
        torch.testing.assert_close(rnn(x)[0], first, rtol=1e-4, atol=1e-5)


def test_adaptive_steps_stay_on_the_plain_path(one_line):
    rnn = ContinuousRNN(neuralosc.Noisy(neuralosc.Lipschitz(2, 6), 0.2), {"name": "srk", "adaptive": True}, dt=0.01)
    with pytest.raises(solvers.PairingError) as error, solvers.backend("compiled"):
        rnn(torch.randn(2, 3, 2))
    one_line(error, "'srk' chooses its steps")
