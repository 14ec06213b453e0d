"""A read-out fitted anew: what it gives back where only its fit was lost, and what it cannot give."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.controls import controls
from solvers.errors import InputError
from tests.neuralosc.analysis.linear import F64, Linear, model, rotation, sign_of


@pytest.fixture(autouse=True)
def _plain():
    """Each network here runs once or twice, which compiling does not pay for."""
    with solvers.backend("plain"):
        yield


def samples(seed, count=300):
    return torch.randn(count, 8, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def forgetful(dt, answers=2):
    """Makes a network whose states under Euler's step, and nearly so under others, know the last sample alone."""
    return lambda seed: model(Linear([[-1 / dt, 0.0], [0.0, -1 / dt]]), "euler", answers, dt=dt)


def test_what_only_the_read_out_lost_comes_back():
    net, train, test = model(Linear(rotation(2.0)), "euler", 2, dt=0.9), samples(0), samples(1)
    y, z = sign_of(net, train), sign_of(net, test)
    found = controls(net, (train, y), (test, z), ("rk4",), untrained=forgetful(0.9), seeds=2)
    own, exact, rk4 = found.lines
    assert own.kept == 1.0 and own.refitted > 0.95 and exact.kept < 0.9
    assert exact.refitted > exact.kept and rk4.solver == "rk4"
    assert exact.untrained < 0.75 and found.verdict.answer == "share"
    share = (exact.refitted - exact.untrained) / (own.refitted - own.untrained)
    assert found.verdict.numbers["share kept"] == pytest.approx(share)
    assert f"carries {share:.0%}" in str(found.verdict)


def test_where_its_own_step_is_exact_nothing_changes():
    net, train, test = model(Linear(rotation()), "rk4", 2, dt=0.05), samples(0), samples(1)
    y, z = sign_of(net, train), sign_of(net, test)
    found = controls(net, (train, y), (test, z), untrained=forgetful(0.05), seeds=1)
    own, exact = found.lines
    assert exact.kept == own.kept and exact.refitted == pytest.approx(own.refitted, abs=0.01)
    assert found.verdict.numbers["share kept"] == pytest.approx(1.0, abs=0.05)


def test_numbers_are_fitted_by_least_squares():
    net, train, test = model(Linear(rotation()), "rk4", 1, dt=0.2), samples(0), samples(1)
    with torch.no_grad():
        y, z = (3 * net.rnn(x)[0][:, -1, :1] - 2 for x in (train, test))
    found = controls(net, (train, y), (test, z), untrained=forgetful(0.2, 1), seeds=1)
    assert found.score == "mse" and found.lines[0].refitted < 1e-6 and found.lines[1].refitted < 1e-6


def test_untrained_weights_are_no_better_than_untrained_weights():
    torch.manual_seed(0)
    net = neuralosc.SequenceModel(neuralosc.CoRNN(2, 6), neuralosc.Readout(6, 2))
    generator = torch.Generator().manual_seed(2)
    y, z = (torch.randint(2, (300,), generator=generator) for _ in range(2))
    before = torch.get_rng_state()
    found = controls(net, (samples(0), y), (samples(1), z), seeds=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not found.verdict.claim and "no better than untrained" in str(found.verdict)
    assert found.lines[0].spread >= 0 and len(found.png()) > 10_000


def test_few_sequences_and_baselines_give_no_claim():
    net, x = model(Linear(rotation()), "rk4", 2, dt=0.05), samples(0, 40)
    y = sign_of(net, x)
    assert "40 test sequences are too few" in str(
        controls(net, (x, y), (x, y), untrained=forgetful(0.05), seeds=1).verdict
    )
    baseline = neuralosc.SequenceModel(neuralosc.TorchGRU(2, 4), neuralosc.Readout(4, 2))
    assert "has no solver" in str(controls(baseline, (x, y), (x, y)).verdict)


def test_bad_input():
    net, x = model(Linear(rotation()), "rk4", 2, dt=0.05), samples(0)
    with pytest.raises(InputError, match="give untrained="):
        controls(net, (x, sign_of(net, x)), (x, sign_of(net, x)))
    every = neuralosc.SequenceModel(neuralosc.CoRNN(2, 4), neuralosc.Readout(4, 2, "every"))
    with pytest.raises(InputError, match="one answer for each sequence"):
        controls(every, (x, x), (x, x))
