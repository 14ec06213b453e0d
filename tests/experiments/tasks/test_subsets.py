"""Series of which a part of the samples is shown: the hopper, and the paths of the oscillators."""

import json
import re

import numpy as np
import pytest
import torch

import neuralosc
from experiments import tasks
from experiments.command.cli import main
from experiments.tasks import oscillators
from experiments.tasks.subsets import Subset
from solvers.errors import InputError, UnknownNameError

SIZES = {"train_size": 30, "validation_size": 8, "test_size": 8, "length": 20}


@pytest.fixture
def folder(tmp_path):
    """Trajectories in the published form, each component on a scale of its own."""
    random = np.random.RandomState(0)
    paths = random.standard_normal((30, 21, 14)).cumsum(1) * np.logspace(-1, 1, 14) + np.arange(14)
    np.savez(tmp_path / "trajectories.npz", trajectories=paths.astype(np.float32))
    return tmp_path


def subset(question="interpolation", **options):
    return Subset("hopper", question, **options)


def numbers(count, stream=0):
    return torch.tensor([(stream, number) for number in range(count)])


# What is shown and what is asked


@pytest.mark.parametrize("question, observed, count", [("interpolation", 0.3, 6), ("extrapolation", 0.5, 5)])
def test_a_fraction_of_what_may_be_shown_is_shown_and_all_is_asked(question, observed, count):
    values = torch.randn(50, 20, 3)
    batch = subset(question, observed=observed).of(values, None, None, numbers(50))[:]
    shown = ~batch.x.isnan()
    assert torch.equal(batch.y, values) and batch.timespans is None and batch.lengths is None
    assert torch.equal(shown.any(-1), shown.all(-1)) and (shown.all(-1).sum(1) == count).all()
    assert torch.equal(batch.x[shown], values[shown])
    # Of everything that may be shown something is, and of nothing else.
    often = shown[..., 0].float().mean(0)
    assert (often > 0).tolist() == [question == "interpolation" or place < 10 for place in range(20)]


def test_what_is_asked_may_be_what_is_unseen_or_what_comes_later():
    values = torch.randn(9, 7, 2)
    shown = ~subset("extrapolation").of(values, None, None, numbers(9))[:].x.isnan()
    unseen = subset("extrapolation", scored="unseen").of(values, None, None, numbers(9))[:].y
    later = subset("extrapolation", scored="later").of(values, None, None, numbers(9))[:].y
    assert torch.equal(unseen.isnan(), shown) and torch.equal(unseen[~shown], values[~shown])
    # Three of seven samples are the first half.
    assert later[:, :3].isnan().all() and torch.equal(later[:, 3:], values[:, 3:])


def test_series_of_different_lengths_have_halves_of_their_own():
    values, lengths = torch.randn(4, 9, 2), torch.tensor([9, 1, 4, 6])
    spans = torch.rand(4, 9)
    batch = subset("extrapolation", observed=1.0).of(values, spans, lengths, numbers(4))[:]
    valid = batch.valid
    assert (~batch.x.isnan().any(-1) & valid).sum(1).tolist() == [4, 1, 2, 3]
    assert not batch.x[~valid].any() and batch.y[~valid].isnan().all() and torch.equal(batch.y[valid], values[valid])
    assert torch.equal(batch.timespans, spans) and torch.equal(batch.lengths, lengths)


def test_what_is_shown_depends_on_the_seed_and_the_number_of_the_series():
    values = torch.randn(12, 20, 1)
    one, again, other = (subset(seed=seed).of(values, None, None, numbers(12))[:].x.isnan() for seed in (0, 0, 1))
    elsewhere = subset().of(values, None, None, numbers(12, stream=1))[:].x.isnan()
    few = subset().of(values[:5], None, None, numbers(5))[:].x.isnan()
    assert torch.equal(one, again) and torch.equal(one[:5], few)
    assert not torch.equal(one, other) and not torch.equal(one, elsewhere)
    assert len({row.numpy().tobytes() for row in one}) == 12
    # A sample that is shown at one fraction is shown at every larger one.
    more = subset(observed=0.8).of(values, None, None, numbers(12))[:].x.isnan()
    assert not (more & ~one).any()


def test_answers_without_a_network():
    nan = torch.nan
    x = torch.tensor([[nan, 1.0, nan, nan, 4.0, nan]]).unsqueeze(-1)
    spans = torch.tensor([[1.0, 1, 2, 1, 3, 1]])
    made = subset().of(torch.zeros(1, 6, 1), spans, None, numbers(1))[:]._replace(x=x)
    found = {name: values[0, :, 0].tolist() for name, values in subset().guesses(made, torch.tensor([7.0])).items()}
    assert found == {
        "mean": [7.0] * 6,
        "last value": [7, 1, 1, 1, 4, 4],
        "line between the neighbours": pytest.approx([1, 1, 2, 2.5, 4, 4]),
    }
    assert list(subset("extrapolation").guesses(made, torch.tensor([7.0]))) == ["mean", "last value"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ask": "extrapolate"}, "question (--ask) of task 'hopper' 'extrapolate': did you mean 'extrapolation'"),
        ({"observed": 0}, "'observed' is 0: expected a fraction above 0, up to 1"),
        ({"observed": 1.5}, "'observed' is 1.5: expected"),
        ({"observed": True}, "'observed' is True: expected"),
        ({"observed": float("nan")}, "'observed' is nan: expected"),
        ({"observed": 1.0, "scored": "unseen"}, "'observed' is 1, and so nothing is unseen"),
        ({"scored": "late"}, "option 'scored' of task 'hopper' 'late': did you mean 'later'"),
        ({"scored": "later"}, "of an interpolation nothing is: --ask extrapolation"),
        ({"observed_seed": -1}, "'observed_seed' is -1: expected a whole number of at least 0"),
    ],
)
def test_useless_options_are_refused(options, message):
    with pytest.raises((InputError, UnknownNameError), match=re.escape(message)):
        tasks.get("hopper", **options)


# Oscillators


def test_paths_of_oscillators_are_their_series():
    plain = tasks.get("oscillators", **SIZES, shortest=9).splits(3)
    task = tasks.get("oscillators", **SIZES, shortest=9, ask="extrapolation", observed=0.4)
    assert task.every and task.gaps and task.irregular
    for one, other in zip(plain, task.splits(3), strict=True):
        whole, asked = one[:], other[:]
        valid = asked.valid
        assert torch.equal(whole.timespans, asked.timespans) and torch.equal(whole.lengths, asked.lengths)
        assert torch.equal(asked.y[valid], whole.x[valid]) and asked.y[~valid].isnan().all()
        shown = ~asked.x.isnan().any(-1) & valid
        assert torch.equal(asked.x[shown], whole.x[shown]) and (shown.sum(1) <= (whole.lengths + 1) // 4).all()
    assert not tasks.get("oscillators").every and not tasks.get("oscillators").guesses(0)


def test_guesses_of_oscillators_are_of_the_sets_that_were_made():
    task = tasks.get("oscillators", **SIZES, ask="interpolation")
    test = task.splits(5)[2][:]
    found = task.guesses(2)
    line = found["line between the neighbours"]
    shown = ~test.x.isnan()
    torch.testing.assert_close(line[shown], test.y[shown])
    errors = {name: float((answers - test.y).square().mean()) for name, answers in found.items()}
    assert errors["line between the neighbours"] < errors["last value"] < errors["mean"]
    with pytest.raises(UnknownNameError, match=r"question .*of task 'oscillators'"):
        tasks.get("oscillators", ask="parameter")
    assert task.__class__().ask == oscillators.PARAMETERS


def test_a_latent_ode_takes_the_series_as_they_are():
    batch = tasks.get("oscillators", **SIZES, shortest=9, ask="extrapolation").splits()[1][:]
    torch.manual_seed(0)
    model = neuralosc.LatentODE(2, 3, encoder_size=4, units=5, gate_units=5, solver="euler", max_dt=0.5).double()
    x, spans, y = batch.x.double(), batch.timespans.double(), batch.y.double()
    answers = model(x, spans, batch.lengths, draws=2)
    assert answers.shape == (2, *batch.y.shape)
    # What is not shown does not reach it, and what is asked for is where the series are.
    at = spans.cumsum(1)
    noise = torch.zeros(1, len(x), 3, dtype=torch.float64)
    told = model(x, spans, batch.lengths, noise=noise)[0]
    error = (y - told).square()[~y.isnan()].sum() / 2 / 0.3**2
    count = int((~y.isnan()).sum())
    mean, std = model.encode(x, spans, batch.lengths)
    divergence = ((mean**2 + std**2 - 1) / 2 - std.log()).sum()
    bound = model.elbo(x, spans, batch.lengths, y, at, noise_std=0.3, noise=noise).sum()
    expected = -error - count * (np.log(0.3) + np.log(2 * np.pi) / 2) - divergence
    torch.testing.assert_close(bound, expected)


# Hopper


def test_hopper_is_divided_and_standardized_by_its_training_set(folder):
    task = tasks.get("hopper", data_dir=str(folder), ask="extrapolation")
    whole = np.load(folder / "trajectories.npz")["trajectories"].astype(np.float64)
    sets = task.splits(4)
    assert [len(data) for data in sets] == [24, 3, 3] and task.every and task.gaps and not task.irregular
    train = sets[0][:].y.flatten(0, 1).double()
    assert train.mean(0).abs().max() < 1e-6 and (train.std(0, correction=0) - 1).abs().max() < 1e-6
    rows = torch.cat([data[:].y for data in sets]).double() * task.scale
    # Less the mean, the trajectories of the file, each in one set.
    back = (rows - rows[:, :1]).numpy()
    mine = (whole - whole[:, :1]).astype(np.float64)
    found = [int(np.abs(mine - one).max((1, 2)).argmin()) for one in back]
    assert sorted(found) == list(range(30)) and np.abs(mine[found] - back).max() < 1e-4
    again = tasks.get("hopper", data_dir=str(folder), ask="extrapolation").splits(0)
    assert all(torch.equal(a[:].y, b[:].y) for a, b in zip(sets, again, strict=True))
    assert all(torch.equal(a[:].x.isnan(), b[:].x.isnan()) for a, b in zip(sets, again, strict=True))
    shown = ~sets[0][:].x.isnan().any(-1)
    assert (shown.sum(1) == 5).all() and not shown[:, 10:].any()


@pytest.mark.parametrize(
    "arrays, message",
    [
        (None, r"trajectories.npz of task 'hopper' not found in .*: no such file; give --data-dir"),
        ({"traces": np.zeros(3)}, "has no array 'trajectories': it holds traces"),
        ({"trajectories": np.zeros((20, 9, 13))}, r"'trajectories' of shape \(20, 9, 13\): expected \(any, any, 14\)"),
        ({"trajectories": np.zeros((9, 9, 14))}, r"trajectories of shape \(9, 9, 14\), .* 10 at least"),
        ({"trajectories": np.full((20, 9, 14), np.nan)}, "or some of them not finite"),
    ],
)
def test_files_that_hold_no_trajectories_are_one_clear_line(arrays, message, tmp_path):
    if arrays is not None:
        np.savez(tmp_path / "trajectories.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        tasks.get("hopper", data_dir=str(tmp_path)).splits()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scored", ["all", "later"])
def test_a_run_is_judged_in_the_units_of_the_file_where_values_are_asked(folder, scored, tmp_path, capsys):
    line = "train --task hopper --ask extrapolation --model gru --hidden-size 4 --epochs 1 --threads 1 --lr 0.001"
    assert main([*line.split(), "--scored", scored, "--data-dir", str(folder), "--root", str(tmp_path / "runs")]) == 0
    result = json.loads((tmp_path / "runs" / "hopper-gru-001" / "result.json").read_text())
    task = tasks.get("hopper", data_dir=str(folder), ask="extrapolation", scored=scored)
    test = task.splits()[2]
    batch = test[:]
    y, scale = batch.y.double(), task.scale
    asked = ~y.isnan()
    expected = float(((y * scale)[asked] ** 2).mean())
    assert result["baselines"]["mean"]["mse"] == pytest.approx(expected, rel=1e-5)
    assert set(result["baselines"]) == {"mean", "last value"} and result["test"]["loss"] == result["test"]["mse"]
    model = neuralosc.load(tmp_path / "runs" / "hopper-gru-001" / "model.safetensors")
    assert model.rnn.missing == "mask"
    with torch.no_grad():
        answers = model(batch.x).double()
    error = ((answers - y) * scale)[asked]
    assert result["test"]["mse"] == pytest.approx(float((error**2).mean()), rel=1e-4)
    assert result["test"]["mae"] == pytest.approx(float(error.abs().mean()), rel=1e-4)
    capsys.readouterr()


def test_only_a_bidirectional_network_knows_what_comes_later(folder):
    batch = tasks.get("hopper", data_dir=str(folder)).splits()[0][:4]
    changed = batch.x.clone()
    changed[:, 12:] += 1
    for both in (False, True):
        torch.manual_seed(0)
        rnn = neuralosc.GRU(14, 5, missing="mask", bidirectional=both)
        with torch.no_grad():
            apart = (rnn(batch.x)[0] - rnn(changed)[0])[:, :12].abs().max()
        assert (apart > 1e-3) == both
