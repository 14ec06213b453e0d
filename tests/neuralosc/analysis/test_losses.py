"""The usual losses against those of torch, with gaps, padding and parts."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.losses import Loss, parted, trained
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import precise
from solvers import InputError
from tests.neuralosc.analysis.models import classifier


@pytest.fixture(autouse=True)
def plain():
    with solvers.backend("plain"):
        yield


def model(answers: int = 2, kind: str = "last", likelihood: str = "none"):
    torch.manual_seed(0)
    rnn = neuralosc.ContinuousRNN(neuralosc.DenseHamiltonian(2, 3), "stormer_verlet", 0.3)
    return neuralosc.SequenceModel(rnn, neuralosc.Readout(3, answers, kind, likelihood=likelihood)).double()


X = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0)).double()
LENGTHS = torch.tensor([5, 3, 1, 5, 2, 4])


def value(of, *data) -> float:
    samples = Samples.of(data).double()
    return Loss.of(None, of, samples).value(of, samples)


def test_classes():
    entropy = torch.nn.functional.cross_entropy
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    assert value(model(3), X, y) == pytest.approx(entropy(model(3)(X), y).item(), rel=1e-12)
    every, classes = model(3, "every"), torch.randint(0, 3, (6, 5), generator=torch.Generator().manual_seed(1))
    answers = every(X, lengths=LENGTHS)
    each = [entropy(a[:n], c[:n]) for a, c, n in zip(answers, classes, LENGTHS.tolist(), strict=True)]
    assert value(every, X, classes, None, LENGTHS) == pytest.approx(torch.stack(each).mean().item(), rel=1e-12)


def test_numbers_on_the_scale_of_training_and_missing_ones():
    y = 5 + 3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(2)).double()
    scaled = model().fit_scaling(X, targets=y)
    expected = (scaled(X) - scaled.scaled(y)).square()
    assert value(scaled, X, y) == pytest.approx(expected.mean().item(), rel=1e-12)
    y[0, 1], y[3] = math.nan, math.nan
    rows = [expected[0, :1].mean(), *expected[1:3].mean(1), torch.tensor(0.0), *expected[4:].mean(1)]
    assert value(scaled, X, y) == pytest.approx(torch.stack(rows).mean().item(), rel=1e-12)
    samples = Samples(X, y)
    parameters = list(trained(scaled).values())
    assert all(torch.isfinite(g).all() for g in Loss.of(None, scaled, samples).gradient(scaled, samples, parameters))


def test_a_gaussian_read_out():
    of = model(2, likelihood="gaussian")
    y = torch.randn(6, 2, generator=torch.Generator().manual_seed(3)).double()
    mean, log_std = of(X).chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    assert value(of, X, y) == pytest.approx(-normal.log_prob(y).mean().item(), rel=1e-12)


def test_a_network_alone():
    rnn = model().rnn
    output = rnn(X, lengths=LENGTHS)[0]
    rows = [row[:n].square().mean() for row, n in zip(output, LENGTHS.tolist(), strict=True)]
    assert value(rnn, X, None, None, LENGTHS) == pytest.approx(torch.stack(rows).mean().item(), rel=1e-12)
    assert value(rnn, X, output.detach(), None, LENGTHS) == 0


def test_parts_are_the_whole(monkeypatch):
    of, data = classifier()
    of, samples = precise(of), Samples.of(data).double()
    loss = Loss.of(None, of, samples)
    parameters = list(trained(of).values())
    whole = loss.value(of, samples), loss.gradient(of, samples, parameters)
    monkeypatch.setattr("neuralosc.analysis.losses.STATE_BYTES", 8 * 8 * 2 * 4 * 24 * 5)
    assert [len(part) for part, _ in parted(of, samples, True)] == [5, 5, 2]
    monkeypatch.setattr("neuralosc.analysis.losses.RECORDED", 1)
    monkeypatch.setattr("neuralosc.analysis.losses.STATE_BYTES", 8 * 8 * 2 * 4 * 5)
    assert loss.value(of, samples) == pytest.approx(whole[0], rel=1e-12)
    for one, other in zip(loss.gradient(of, samples, parameters), whole[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, torch.tensor([0, 1, 2, 0, 1, 7])), "classes go from 0 to 7, expected 0 to 1"),
        ((X, torch.zeros(6, 5, dtype=torch.long)), "classes are .6, 5."),
        ((X, torch.zeros(6, 3)), "targets are .6, 3., expected .batch, 2"),
    ],
)
def test_targets_that_do_not_fit(data, message):
    with pytest.raises(InputError, match=message):
        value(model(), *data)


def test_targets_of_a_network_alone_that_do_not_fit():
    with pytest.raises(InputError, match="as the network gives"):
        value(model().rnn, X, torch.zeros(6, 5, 7))
