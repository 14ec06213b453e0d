"""Runs whose answers are normal distributions: their loss, their figures, what is set beside them and predicted."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import neuralosc
from experiments.command.cli import main
from experiments.tasks.table import Table
from experiments.train.scoring import Scoring, Totals
from experiments.train.training import evaluate, load_model
from neuralosc import gaussian_crps

NAMES = ("crps", "rmse", "mae", "mse")
HOURS = pd.date_range("2026-01-01", periods=240, freq="h")


def drawn(shape=(37, 2)):
    generator = torch.Generator().manual_seed(0)
    mean, log_std, y = (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return mean, log_std, torch.where(torch.rand(shape, generator=generator) < 0.2, torch.nan, y)


def counted(scoring, answers, y, size=10):
    totals = Totals(scoring)
    losses = [totals.add(answers[part], y[part]) for part in torch.arange(len(y)).split(size)]
    return totals.result(), losses


@pytest.mark.parametrize("of", ["none", "scale", "units"])
def test_loss_and_figures_are_those_of_all_answers_at_once(of):
    mean, log_std, y = drawn()
    sizes = torch.tensor([3.0, 0.2], dtype=torch.float64)
    scoring = Scoring("regression", NAMES, 2, likelihood="gaussian", **({} if of == "none" else {of: sizes}))
    result, _ = counted(scoring, torch.cat((mean, log_std), -1), y)
    known = ~y.isnan()
    own = torch.ones(2, dtype=torch.float64) if of == "none" else sizes
    m, s, t = ((part * own)[known].numpy() for part in (mean, log_std.exp(), y))
    # Of units the loss knows nothing, of a scale it does.
    off = (own.log().expand_as(y)[known].mean() if of == "units" else torch.tensor(0.0)).item()
    assert result["loss"] == pytest.approx(-stats.norm(m, s).logpdf(t).mean() - off)
    crps = gaussian_crps(*(torch.from_numpy(part) for part in (m, s, t)))
    assert result["crps"] == pytest.approx(float(crps.mean()))
    assert result["mae"] == pytest.approx(np.abs(m - t).mean())
    assert result["rmse"] == pytest.approx(math.sqrt(((m - t) ** 2).mean()))
    inner = (mean - y) * (own if of == "scale" else 1)
    assert result["mse"] == pytest.approx(float(inner[known].square().mean()))


def test_several_targets_of_units_of_their_own_have_a_score_of_scaled_ones():
    mean, log_std, y = drawn()
    units = torch.tensor([3.0, 0.2], dtype=torch.float64)
    scoring = Scoring("regression", ("crps", "mse"), 2, units=units, likelihood="gaussian")
    result, _ = counted(scoring, torch.cat((mean, log_std), -1), y)
    known = ~y.isnan()
    expected = gaussian_crps(mean[known], log_std.exp()[known], y[known])
    assert result["crps"] == pytest.approx(float(expected.mean()))


def test_answers_that_are_numbers_have_their_absolute_error_for_score():
    mean, _, y = drawn()
    result, _ = counted(Scoring("regression", ("crps", "mae", "mse"), 2), mean, y)
    assert result["crps"] == pytest.approx(result["mae"]) and result["mse"] == result["loss"]


def test_the_loss_has_the_gradient_of_the_likelihood():
    mean, log_std, y = drawn((9, 2))
    answers = torch.cat((mean, log_std), -1).requires_grad_()
    _, (loss,) = counted(Scoring("regression", ("crps",), 2, likelihood="gaussian"), answers, y)
    (found,) = torch.autograd.grad(loss, answers)
    known = ~y.isnan()
    z = ((y - mean) / log_std.exp()).nan_to_num()
    wanted = torch.cat((-z / log_std.exp(), (1 - z**2) * known), -1) / known.sum()
    torch.testing.assert_close(found, wanted)


# A table


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on a day's wave with noise, in units far from 1, and its file."""
    folder = tmp_path_factory.mktemp("runs")
    noise = np.random.RandomState(0).standard_normal(240)
    wave = 1000 + 500 * np.sin(2 * np.pi * np.arange(240) / 24) + 40 * noise
    wave[4::9] = np.nan
    path = folder / "a.csv"
    pd.DataFrame({"when": HOURS, "wave": wave, "other": np.arange(240.0)}).to_csv(path, index=False)
    line = f"train --csv {path} --time-column when --target wave --horizon 2h,5h --history 6h --relative --model gru"
    line += " --hidden-size 4 --epochs 2 --threads 1 --likelihood gaussian --lr 0.02"
    assert main([*line.split(), "--root", str(folder), "--name", "run"]) == 0
    return folder


def test_figures_of_a_run_are_in_the_units_of_the_target(finished):
    model, config, task = load_model(finished / "run")
    assert config.likelihood == "gaussian" == model.readout.likelihood and task.metrics == ("crps", "rmse", "mae")
    result = json.loads((finished / "run" / "result.json").read_text())
    assert result["metric"] == "crps" and evaluate(finished / "run")["crps"] == result["test"]["crps"]
    batch = task.splits()[2][:].floating(torch.float32)
    with torch.no_grad():
        mean, std = model.unscaled(model(batch.x, batch.timespans, batch.lengths)).double().chunk(2, -1)
    known = ~batch.y.isnan()
    score = gaussian_crps(mean, std, batch.y.double())[known].mean()
    assert result["test"]["crps"] == pytest.approx(float(score), rel=1e-5)
    assert result["test"]["crps"] < result["test"]["mae"] and 20 < result["test"]["crps"] < 1000


def test_what_needs_no_network_is_as_sure_as_the_training_part_allows(finished):
    result = evaluate(finished / "run")
    task: Table = load_model(finished / "run")[2]
    train, _, test = (part[:] for part in task.splits())
    for name, figures in result["baselines"].items():
        std = (task.guesses(0)[name] - train.y).square().nanmean(0).sqrt()
        score = gaussian_crps(task.guesses(2)[name], std.expand_as(test.y), test.y)
        assert figures["crps"] == pytest.approx(float(score.nanmean()), rel=1e-5)
        scale = load_model(finished / "run")[0].target_scaler.scale.double()
        nll = -stats.norm(task.guesses(2)[name], std).logpdf(test.y) - np.log(scale.numpy())
        assert figures["loss"] == pytest.approx(np.nanmean(nll), rel=1e-5)


def test_predictions_have_mean_and_deviation_in_the_units_of_the_target(finished, capsys):
    assert main(["predict", str(finished / "run"), str(finished / "a.csv"), "--output", str(finished / "o.csv")]) == 0
    answers = pd.read_csv(finished / "o.csv")
    assert list(answers.columns) == ["series", "when", "wave", "std(wave)"]
    assert main(["export", str(finished / "run"), str(finished / "model.safetensors")]) == 0
    values = pd.read_csv(finished / "a.csv").to_numpy()[:, 1:].astype(float)
    found = neuralosc.load(finished / "model.safetensors").predict(HOURS[-7:], values[-7:])
    last = values[~np.isnan(values[:, 0]), 0][-1]
    np.testing.assert_allclose(answers.wave, found[:2] + last, rtol=1e-5)
    np.testing.assert_allclose(answers["std(wave)"], found[2:], rtol=1e-5)
    assert (answers["std(wave)"] > 20).all()
    capsys.readouterr()


def test_a_regression_of_several_targets_names_each_deviation(tmp_path, capsys):
    random = np.random.RandomState(0)
    rows = [(i // 3, random.randn(), 10 * (i // 3), -(i // 3)) for i in range(60)]
    pd.DataFrame(rows, columns=["who", "a", "b", "c"]).to_csv(tmp_path / "a.csv", index=False)
    line = f"train --csv {tmp_path / 'a.csv'} --id who --target b,c --target-kind regression --inputs a --model gru"
    line += f" --hidden-size 3 --epochs 1 --threads 1 --likelihood gaussian --root {tmp_path} --name run"
    assert main(line.split()) == 0
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "a.csv")]) == 0
    assert "who,b,c,std(b),std(c)" in capsys.readouterr().out
    assert load_model(tmp_path / "run")[2].metrics == ("crps", "mse")


def test_a_path_at_every_sample_is_a_distribution_at_every_sample(tmp_path, capsys):
    line = "train --task oscillators --train-size 20 --validation-size 5 --test-size 5 --length 12 --ask extrapolation"
    line += " --model gru --hidden-size 3 --epochs 1 --threads 1 --likelihood gaussian"
    assert main([*line.split(), "--root", str(tmp_path), "--name", "run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["test"]) == {"loss", "crps", "mse", "mae"} and set(result["baselines"]) == {"mean", "last value"}
    # Of a normal distribution that fits, the score is s / sqrt(pi), and the error sqrt(2 / pi) s.
    assert 0.5 < result["baselines"]["mean"]["crps"] / result["baselines"]["mean"]["mae"] < 0.9
    capsys.readouterr()


def test_classes_have_no_likelihood_of_numbers(capsys):
    assert main(["train", "--task", "digits", "--likelihood", "gaussian", "--model", "gru"]) == 2
    assert "likelihood is given, and task 'digits' has classes" in capsys.readouterr().err
    assert main(["train", "--task", "adding", "--likelihood", "normal", "--model", "gru"]) == 2
    assert "likelihood 'normal'" in capsys.readouterr().err
