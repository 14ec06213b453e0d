"""Scores of forecasts that say how sure they are, and read-outs that do."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import neuralosc
from neuralosc import Collator, Readout, SequenceModel, gaussian_crps, gaussian_nll, sample_crps
from solvers.errors import InputError

CASES = [(0.0, 1.0, 0.3), (-2.0, 0.5, 4.0), (3.0, 2.5, 2.9), (1.0, 1e-3, 1.0005), (0.0, 40.0, -7.0)]


def double(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def by_definition(distribution, y, width):
    """The integral of (F(x) - [x >= y])^2."""
    below = integrate.quad(lambda x: distribution(x) ** 2, y - width, y, epsabs=1e-13, epsrel=1e-11, limit=500)[0]
    above = integrate.quad(lambda x: (1 - distribution(x)) ** 2, y, y + width, epsabs=1e-13, epsrel=1e-11, limit=500)[0]
    return below + above


@pytest.mark.parametrize("mean, std, y", CASES)
def test_the_score_of_a_normal_distribution_is_the_integral_that_defines_it(mean, std, y):
    expected = by_definition(stats.norm(mean, std).cdf, y, abs(y - mean) + 12 * std)
    assert float(gaussian_crps(*double(mean, std, y))) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("mean, std, y", CASES)
def test_the_likelihood_of_a_normal_distribution(mean, std, y):
    found = gaussian_nll(*double(mean, math.log(std), y))
    assert float(found) == pytest.approx(-stats.norm(mean, std).logpdf(y), rel=1e-12)


def test_a_forecast_of_one_number_has_its_absolute_error():
    y = torch.tensor([1.0, -3.0, 0.0, torch.nan], dtype=torch.float64)
    score = gaussian_crps(torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), y)
    assert score[:3].tolist() == [1, 3, 0] and score[3].isnan()
    # Far out, in single precision, as near.
    far = gaussian_crps(*(torch.tensor(value) for value in (0.0, 1e-30, 1e10)))
    assert far == 1e10
    with pytest.raises(InputError, match=r"std goes down to -1: expected"):
        gaussian_crps(*double(0.0, -1.0, 0.0))


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    mean, log_std, y = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda m, s, y: gaussian_crps(m, s.exp(), y), (mean, log_std, y))
    assert torch.autograd.gradcheck(gaussian_nll, (mean, log_std, y))
    samples = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sample_crps, (samples, y))


def test_the_score_of_samples_is_the_sum_over_all_pairs():
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    pairs = (x[:, None] - x[None]).abs().sum((0, 1)) / (2 * 7 * 6)
    torch.testing.assert_close(sample_crps(x, y), (x - y).abs().mean(0) - pairs)
    # With squares in the place of the product it is the integral over the steps of the samples.
    own = (x - y).abs().mean(0) - pairs * 6 / 7
    points, at = np.sort(x[:, 0, 0].numpy()), float(y[0, 0])
    grid = np.sort(np.append(points, at))
    steps = [(np.mean(points <= left) - (left >= at)) ** 2 * (right - left) for left, right in itertools.pairwise(grid)]
    assert float(own[0, 0]) == pytest.approx(sum(steps))


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_score_of_samples_is_without_bias(count):
    generator = torch.Generator().manual_seed(count)
    draws = 200_000
    x = 0.5 + 2 * torch.randn(count, draws, dtype=torch.float64, generator=generator)
    scores = sample_crps(x, torch.full((draws,), 1.7, dtype=torch.float64))
    expected = float(gaussian_crps(*double(0.5, 2.0, 1.7)))
    error = float(scores.std() / math.sqrt(draws))
    assert abs(float(scores.mean()) - expected) < 4 * error and error < 0.01 * expected
    # What is not corrected for the number of samples is further off than that.
    assert 2 / math.sqrt(math.pi) / count > 8 * error


@pytest.mark.parametrize("samples, targets", [((1, 3), (3,)), ((), ()), ((4, 3), (4,)), ((4, 3), ())])
def test_samples_that_do_not_fit_are_refused(samples, targets):
    with pytest.raises(InputError, match="expected two samples at least"):
        sample_crps(torch.zeros(samples), torch.zeros(targets))


def test_a_series_without_values_has_no_score():
    y = torch.tensor([0.0, torch.nan])
    assert sample_crps(torch.randn(3, 2), y).isnan().tolist() == [False, True]


# Read-outs that say how sure they are


def sure(kind="last", **options):
    torch.manual_seed(0)
    rnn = neuralosc.make("gru", input_size=2, hidden_size=4)
    return SequenceModel(rnn, Readout(4, 3, kind, likelihood="gaussian"), **options).double()


def test_answers_are_means_and_deviations_in_the_units_of_the_targets():
    model = sure(collator=Collator(unit=2.0))
    x, targets = torch.randn(6, 5, 2).double(), torch.randn(6, 3).double() * torch.tensor([1.0, 50, 0.01]) + 7
    assert model.readout.out_features == 6 and model.readout.answers == 3
    model.fit_scaling(x, targets=targets)
    assert model.target_scaler.features == 3
    spans = torch.ones(6, 5).double()
    mean, log_std = model(x, spans).chunk(2, -1)
    scale, middle = targets.std(0, correction=0), targets.mean(0)
    answers = model.run(x, None, spans)[0]
    torch.testing.assert_close(answers, torch.cat((mean * scale + middle, log_std.exp() * scale), -1))
    times = np.arange(5) * 2.0 + 2
    found = model.predict(times, x[0].numpy())
    np.testing.assert_allclose(found, answers[0].detach().numpy())
    # The likelihood of targets is that of scaled ones, less the logarithm of the scale.
    units = gaussian_nll(answers[:, :3], answers[:, 3:].log(), targets)
    torch.testing.assert_close(units, gaussian_nll(mean, log_std, model.scaled(targets)) + scale.log())


def test_without_scales_deviations_are_positive_and_steps_are_the_whole():
    model = sure("every")
    x = torch.randn(2, 4, 2).double()
    answers, _ = model.run(x)
    raw = model(x)
    torch.testing.assert_close(answers, torch.cat((raw[..., :3], raw[..., 3:].exp()), -1))
    state = None
    for place, sample in enumerate(x.unbind(1)):
        answer, state = model.step(sample, state)
        torch.testing.assert_close(answer, answers[:, place])


@pytest.mark.parametrize("likelihood", ["none", "gaussian"])
def test_models_are_saved_with_what_their_answers_are(likelihood, tmp_path):
    rnn = neuralosc.make("gru", input_size=2, hidden_size=4)
    model = SequenceModel(rnn, Readout(4, 3, likelihood=likelihood)).eval()
    model.fit_scaling(torch.randn(6, 5, 2), targets=5 * torch.randn(6, 3))
    loaded = neuralosc.load(neuralosc.save(model, tmp_path / "model.safetensors"))
    x = torch.randn(2, 5, 2)
    assert loaded.readout.likelihood == likelihood
    assert torch.equal(loaded.run(x)[0], model.run(x)[0])
    if likelihood == "gaussian":
        program = neuralosc.export(model, 2).module()
        torch.testing.assert_close(program(x[:, :2], torch.zeros(2, 1, 4))[0], model.run(x[:, :2])[0])


def test_a_program_does_not_take_the_mean_of_deviations(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match="takes the mean of answers, and standard deviations have another one"):
        neuralosc.export_onnx(sure("mean").float(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="likelihood is 'normal', expected 'none'"):
        Readout(4, 3, likelihood="normal")
