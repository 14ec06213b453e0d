"""Forecasts of a run between and after the samples, and their picture."""

import numpy as np
import pytest
import torch

from experiments import tasks
from experiments.command.cli import main
from experiments.compare import forecasts
from experiments.train.training import load_model
from solvers.errors import InputError

SIZES = "--train-size 20 --validation-size 4 --test-size 4 --length 12"
LINE = f"train --task oscillators {SIZES} --model gru --hidden-size 3 --epochs 1 --threads 1 --ask extrapolation"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, more in (("sure", "--likelihood gaussian --observed 0.5 --shortest 8"), ("number", "")):
        assert main([*LINE.split(), *more.split(), "--root", str(root), "--name", name]) == 0
    return root


def test_truth_is_that_of_the_samples():
    task = tasks.get("oscillators", train_size=4, validation_size=4, test_size=4, length=12)
    for part, data in enumerate(task.splits(5)):
        whole = data[:]
        times = (whole.timespans.double().cumsum(1) - whole.timespans[:, :1]).numpy()
        np.testing.assert_allclose(task.path(part, [3, 1], times[[3, 1]], seed=5), whole.x[[3, 1]], atol=1e-5)


def test_a_network_is_asked_at_samples_of_which_nothing_is_seen(runs):
    model, config, task = load_model(runs / "sure")
    test = task.splits(config.seed)[2]
    for one in forecasts.forecasts(runs / "sure", [2, 0]):
        series = test[one.number]
        count = int(series.lengths)
        at = (series.timespans.double().cumsum(0) - 1)[:count].numpy()
        shown = ~series.x.isnan().any(-1)[:count].numpy()
        np.testing.assert_allclose(one.seen[:, 0], at[shown])
        np.testing.assert_allclose(one.seen[:, 1], series.x[:count, 0][torch.from_numpy(shown)])
        assert (np.diff(one.times) > 0).all() and one.times[0] == 0 and set(one.seen[:, 0]) <= set(one.times)
        # As far as the series goes, at most one question later.
        assert at[-1] - forecasts.APART <= one.times[-1] <= at[-1]
        np.testing.assert_allclose(one.true, task.path(2, [one.number], one.times, config.seed)[0, :, 0])
        np.testing.assert_allclose(one.true[np.isin(one.times, one.seen[:, 0])], one.seen[:, 1], atol=1e-5)
        np.testing.assert_allclose(np.interp(one.times, *one.path.T), one.true, atol=0.02)
        # The same once more, sample by sample.
        state, places = None, {time: k for k, time in enumerate(one.seen[:, 0])}
        values = series.x[:count][torch.from_numpy(shown)]
        before = -1.0
        for k, time in enumerate(one.times):
            sample = values[places[time]] if time in places else torch.full((2,), torch.nan)
            answer, state = model.step(sample.unsqueeze(0), state, float(time - before))
            before = time
            q, _, std, _ = answer[0].tolist()
            assert (q, std) == pytest.approx((one.mean[k], one.std[k]), abs=1e-4)
        later = one.times > one.seen[-1, 0]
        inside = np.abs(one.true - one.mean)[later] <= 1.6448536 * one.std[later]
        assert one.inside == pytest.approx(inside.mean())


def test_the_command_draws_a_picture(runs, tmp_path, capsys):
    path = tmp_path / "a.png"
    assert main(["forecast-figure", str(runs / "sure"), "--out", str(path), "--series", "1"]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG" and "series 1: " in capsys.readouterr().out
    assert main(["forecast-figure", str(runs / "sure"), "--out", str(tmp_path / "no" / "a.png")]) == 2
    assert "make it first" in capsys.readouterr().err


def test_runs_and_series_that_cannot_be_drawn_are_refused(runs):
    with pytest.raises(InputError, match="with the likelihood 'none': expected --task oscillators --ask"):
        forecasts.forecasts(runs / "number", [0])
    for wrong in ([4], [-1], []):
        with pytest.raises(InputError, match="expected numbers up to 3"):
            forecasts.forecasts(runs / "sure", wrong)
