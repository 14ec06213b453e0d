"""Scores on disturbed samples against the margins of a linear classifier, and what each kind does to samples."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.losses import Loss
from neuralosc.analysis.perturbations import KINDS, Victim
from neuralosc.analysis.robustness import robustness
from neuralosc.analysis.samples import Samples
from solvers import InputError
from tests.neuralosc.analysis.models import classifier, readable, untouched


class Sum(neuralosc.VectorField):
    """x' = u: the state is the integral of the input."""

    def __init__(self, size: int = 2):
        super().__init__(size, size)

    def forward(self, t, state, u):
        return u.unsqueeze(-2).expand_as(state)


def linear(batch: int = 200, time: int = 3, seed: int = 0):
    """A classifier of two classes that is linear in x, data that it classifies without error, and its margins.

    Its logits differ by d = a . x + b with the same a at each sample; within |x' - x| <= r, d is moved by up to
    r |a|_1 times the number of samples.
    """
    torch.manual_seed(seed)
    model = neuralosc.SequenceModel(neuralosc.ContinuousRNN(Sum(), "euler"), neuralosc.Readout(2, 2)).double()
    x = torch.randn(batch, time, 2, dtype=torch.float64)
    a, b = model.readout.weight.detach().diff(dim=0).squeeze(0), model.readout.bias.detach().diff()
    d = (x.sum(1) @ a + b).detach()
    return model, x, (d > 0).long(), d.abs() / (time * float(a.abs().sum()))


@pytest.fixture(autouse=True)
def plain():
    with solvers.backend("plain"):
        yield


def victim(samples: Samples, model=None, strength: float = 1.0) -> Victim:
    model = linear()[0] if model is None else model
    samples = samples.double()
    scale = torch.full((samples.x.shape[-1],), strength, dtype=torch.float64)
    return Victim(model, samples, Loss.of(None, model, samples), scale, torch.Generator().manual_seed(3))


def test_the_radius_of_a_linear_classifier():
    model, x, y, radius = linear()
    strengths = sorted(radius.quantile(torch.tensor([0.0, 0.1, 0.5, 0.9]).double()).tolist())
    strengths = [strengths[0] * 0.999, *strengths[1:]]
    with untouched(model):
        found = robustness(model, (x, y), {"fgsm": strengths, "pgd": strengths}, scale=1.0)
    points = {(p.kind, p.strength): p for p in found.points}
    assert points["none", 0.0].score == 1.0
    for strength in strengths:
        exact = float((radius > strength).double().mean())
        assert points["fgsm", strength].score == pytest.approx(exact), strength
        # The cube is crossed in its steps, and the loss is monotone in every direction of it.
        assert points["pgd", strength].score == pytest.approx(exact)
    assert points["fgsm", strengths[0]].score == 1.0 and points["fgsm", strengths[0]].change.difference == 0
    assert "it gets worse from fgsm of" in found.verdict.sentence and found.verdict.claim
    readable(found)


def test_the_scale_is_the_deviation_of_known_values():
    model, x, y, _ = linear()
    x = x * torch.tensor([1.0, 4.0])
    lengths = torch.full((len(x),), 3)
    lengths[0] = 1
    x[0, 1:] = 1e9
    found = robustness(model, (x, y, None, lengths), ["white"])
    known = torch.cat([row[:n] for row, n in zip(x, lengths.tolist(), strict=True)])
    assert found.scale.tolist() == pytest.approx(known.std(0, unbiased=False).tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_changes_nothing(kind):
    model, (x, y) = classifier(batch=9)
    found = robustness(model, (x, y), {kind: [0.0]}, score="accuracy")
    clean, disturbed = found.points
    assert disturbed.score == clean.score and disturbed.change.difference == 0
    samples = Samples.of((x, y)).double()
    changed = KINDS[kind].perturb(victim(samples, model.double()), 0.0)
    assert torch.equal(changed.x, samples.x) and torch.equal(changed.y, y)


def test_noise_is_what_it_says():
    torch.manual_seed(0)
    samples = Samples(torch.randn(400, 50, 2) + 2)
    x = samples.double().x
    white = KINDS["white"].perturb(victim(samples, strength=0.5), 0.6).x - x
    assert float(white.std()) == pytest.approx(0.3, rel=0.02) and abs(float(white.mean())) < 0.01
    multiplied = KINDS["multiplicative"].perturb(victim(samples), 0.2).x / x - 1
    assert float(multiplied.std()) == pytest.approx(0.2, rel=0.02)
    seasoned = KINDS["salt_pepper"].perturb(victim(samples), 0.25).x
    hit = seasoned != x
    assert float(hit.double().mean()) == pytest.approx(0.25, abs=0.01)
    low, high = x.amin((0, 1)).expand_as(x), x.amax((0, 1)).expand_as(x)
    assert bool(((seasoned == low) | (seasoned == high))[hit].all())
    jittered = KINDS["jitter"].perturb(victim(samples), 0.3).timespans
    assert float(jittered.mean()) == pytest.approx(1, rel=0.01)
    assert float(jittered.log().std()) == pytest.approx(0.3, rel=0.02)


def test_lost_samples_leave_their_time():
    spans = torch.rand(50, 6) + 0.5
    lengths = torch.randint(1, 7, (50,))
    samples = Samples(torch.randn(50, 6, 2), torch.zeros(50, dtype=torch.long), spans, lengths)
    seen = KINDS["dropped"].perturb(victim(samples), 0.5)
    assert int(seen.lengths.min()) >= 1 and bool((seen.lengths <= lengths).all())
    assert 0.3 < float(seen.lengths.sum() / lengths.sum()) < 0.75
    for row in range(50):
        times = spans[row].double().cumsum(0)
        kept = int(seen.lengths[row])
        places = [int((samples.x[row].double() == seen.x[row, i]).all(1).nonzero()[0]) for i in range(kept)]
        assert places == sorted(places) and places[-1] < lengths[row]
        torch.testing.assert_close(seen.timespans[row, :kept].cumsum(0), times[places])
    every = neuralosc.SequenceModel(neuralosc.ContinuousRNN(Sum(), "euler"), neuralosc.Readout(2, 1, "every")).double()
    numbers = Samples(samples.x, samples.x[..., :1], spans, lengths)
    seen = KINDS["dropped"].perturb(victim(numbers, every), 0.5)
    assert torch.equal(seen.y, seen.x[..., :1]), "targets of samples go with them"


def test_solvers_on_the_same_noise():
    """All integrate the constant slopes of held samples exactly, and are no two; a coarse one of an oscillator is."""
    model, x, y, _ = linear(batch=60)
    found = robustness(model, (x, y), {"white": [0.5], "jitter": [0.5]}, ["euler", "rk4"])
    assert [p.between.difference for p in found.points if p.solver == "rk4"] == [0, 0, 0]
    assert "no two solvers are told apart" in found.verdict.sentence
    assert [p.kind for p in found.points] == ["none", "white", "jitter"] * 2


def test_solvers_that_differ():
    torch.manual_seed(0)
    field = neuralosc.DenseHamiltonian(1, 4)
    model = neuralosc.SequenceModel(neuralosc.ContinuousRNN(field, "rk4", 1.2), neuralosc.Readout(4, 1)).double()
    x = torch.randn(100, 10, 1, dtype=torch.float64)
    with torch.no_grad():
        y = model(x)
    found = robustness(model, (x, y), {"white": [0.01]}, ["rk4", "euler"])
    assert found.score == "mse" and found.points[0].score < 1e-20
    euler = next(p for p in found.points if p.solver == "euler" and p.kind == "none")
    assert euler.between.difference > 0 and euler.between.apart
    assert "solvers differ in 2 places" in found.verdict.sentence and "white of 0.01 (to" in found.verdict.sentence


def test_no_claim_for_a_model_that_has_learnt_nothing():
    model, data = classifier(batch=40)
    found = robustness(model, data, ["white"])
    assert not found.verdict.claim and "best constant answer" in found.verdict.sentence


def test_a_baseline_has_no_clock():
    torch.manual_seed(0)
    model = neuralosc.SequenceModel(neuralosc.LSTM(2, 3), neuralosc.Readout(3, 2))
    found = robustness(model, (torch.randn(8, 5, 2), torch.randint(0, 2, (8,))), ["jitter", "dropped"])
    notes = {p.kind: p.note for p in found.points}
    assert notes["jitter"] == "the network has no clock" and not notes["dropped"]
    with pytest.raises(InputError, match="has no solver"):
        robustness(model, (torch.randn(8, 5, 2), torch.randint(0, 2, (8,))), solvers=["rk4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["pink"]}, "kind 'pink'"),
        ({"kinds": {"white": [-1.0]}}, "strengths of 'white'"),
        ({"kinds": {"white": [math.inf]}}, "strengths of 'white'"),
        ({"kinds": {"dropped": [2.0]}}, "at most 1"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"solvers": []}, "solvers is empty"),
        ({"solvers": ["yoshida"]}, "yoshida"),
        ({"data": torch.randn(2, 3, 2)}, "data has no targets"),
    ],
)
def test_bad_input(options, message):
    model, x, y, _ = linear(batch=5)
    with pytest.raises(InputError, match=message):
        robustness(model, **{"data": (x, y), **options})


def test_what_cannot_be_run_says_why():
    class Cubic(Sum):
        def forward(self, t, state, u):
            return state**3 + u.unsqueeze(-2)

    model = neuralosc.SequenceModel(neuralosc.ContinuousRNN(Cubic(), "euler", 0.1), neuralosc.Readout(2, 2))
    data = torch.randn(30, 9, 2), torch.randint(0, 2, (30,))
    points = robustness(model, data, {"white": [0.1, 1e6]}).points
    assert points[1].score is not None and points[2].score is None and "state" in points[2].note
