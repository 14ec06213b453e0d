"""Finer and coarser steps: known orders, a network that knows its step alone, and what cannot be said."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.convergence import convergence
from solvers.errors import InputError
from tests.neuralosc.analysis.linear import F64, Linear, model, rotation, sign_of


@pytest.fixture(autouse=True)
def _plain():
    """Each network here runs once or twice, which compiling does not pay for."""
    with solvers.backend("plain"):
        yield


def samples(count=200):
    return torch.randn(count, 8, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4), ("implicit_midpoint", 2)])
def test_the_observed_order_is_that_of_the_method(solver, order):
    net, x = model(Linear(rotation()), solver, 2, dt=0.4, substeps=2), samples()
    found = convergence(net, (x, sign_of(net, x)))
    assert [level.factor for level in found.levels] == [2.0, 1.0, 0.5, 0.25, 0.125, 0.0625]
    assert [level.substeps for level in found.levels] == [1, 2, 4, 8, 16, 32]
    # Of a high order rounding is soon all there is to see.
    orders = [level.order for level in found.levels[1:4] if level.order is not None]
    assert len(orders) >= 2 and orders == pytest.approx([order] * len(orders), rel=0.12)
    assert found.asymptotic in (2.0, 1.0) and found.declared == order and found.dt == pytest.approx(0.2)


def test_a_network_that_is_solved_well_passes():
    net, x = model(Linear(rotation()), "rk4", 2, dt=0.1), samples()
    found = convergence(net, (x, sign_of(net, x)))
    assert found.passes is True and found.verdict.answer == "equation" and found.exact_score == 1.0
    assert found.critical == 1.0 and "is passed" in str(found.verdict)


def test_a_network_that_was_fitted_to_its_step_is_best_there_and_worse_on_both_sides():
    net, x = model(Linear(rotation(2.0)), "euler", 2, dt=1.8, substeps=2), samples()
    found = convergence(net, (x, sign_of(net, x)))
    scores = {level.factor: level.score for level in found.levels}
    assert scores[1.0] == 1.0 and scores[2.0] < 0.95 and scores[0.5] < 0.95
    assert found.passes is False and found.verdict.answer == "step" and found.critical == 1.0
    assert "fails at 0.5 of its step" in str(found.verdict) and len(found.png()) > 10_000


def test_tolerances_of_a_method_that_chooses_its_steps():
    net, x = model(Linear(rotation()), "native_dopri5", 2, dt=1.0, rtol=1e-4, atol=1e-6), samples()
    found = convergence(net, (x, sign_of(net, x)), (10.0, 1.0, 0.1))
    errors = [level.error for level in found.levels]
    assert errors[0] > errors[1] > errors[2] and found.passes is True
    assert all(level.substeps is None for level in found.levels) and found.asymptotic is None


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (lambda: neuralosc.SequenceModel(neuralosc.TorchGRU(2, 4), neuralosc.Readout(4, 2)), "has no solver"),
        (lambda: neuralosc.SequenceModel(neuralosc.CfC(2, 4), neuralosc.Readout(4, 2)), "is exact on this field"),
        (lambda: neuralosc.SequenceModel(neuralosc.CoRNN(2, 4), neuralosc.Readout(4, 2)), "no better than the best"),
    ],
)
def test_no_claim(net, why):
    torch.manual_seed(0)
    y = torch.randint(2, (200,), generator=torch.Generator().manual_seed(5))
    found = convergence(net(), (samples(), y))
    assert found.passes is None and not found.verdict.claim and why in str(found.verdict)
    assert found.table() and found.to_dict()["passes"] is None


def test_bad_input():
    with pytest.raises(InputError, match=r"model is a ContinuousRNN, expected a neuralosc\.SequenceModel"):
        convergence(neuralosc.CoRNN(2, 4), (samples(), torch.zeros(200).long()))
