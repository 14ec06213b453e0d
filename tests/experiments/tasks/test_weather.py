"""The weather of the next hours from that of the last ones."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import tasks
from experiments.command.cli import main
from experiments.tasks.weather import VARIABLES
from solvers.errors import InputError, UnknownNameError

SIZES = {"past": 30, "future": 18, "apart": 101}


def table():
    """48 months in the form of the published file, each variable with a day of its own and some noise."""
    hours = pd.date_range("2010-01-01", "2013-12-31 23:00", freq="h")
    random = np.random.RandomState(0)
    day = np.sin(2 * np.pi * (hours.hour.to_numpy()[:, None] + np.arange(12)) / 24)
    values = np.round(20 * day * np.arange(1, 13) + random.standard_normal((len(hours), 12)) + np.arange(12) * 7, 2)
    written = [f"{d.month}/{d.day}/{d.year} {d.hour}:00" for d in hours]
    return pd.DataFrame({"date": written, **dict(zip(VARIABLES, values.T, strict=True)), "time": range(len(hours))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weather")
    table().to_csv(path / "WTH.csv", index=False)
    return path


def test_windows_lie_in_one_part_and_ask_what_follows_what_they_show(folder):
    sets = tasks.get("weather", data_dir=str(folder), **SIZES).splits(3)
    values = table()[list(VARIABLES)].to_numpy()
    # 28, 10 and 10 calendar months of 2010 to 2013.
    ends = (0, 20424, 27720, 35064)
    trained = values[: ends[1]]
    scaled = torch.from_numpy((values - trained.mean(0)) / trained.std(0)).float()
    for data, begin, end in zip(sets, ends[:-1], ends[1:], strict=True):
        starts = list(range(begin, end - 48 + 1, 101))
        assert len(data) == len(starts)
        batch = data[torch.tensor([0, len(starts) - 1])]
        assert batch.timespans is None and batch.lengths is None and batch.x.shape == batch.y.shape == (2, 48, 12)
        for row, start in enumerate((starts[0], starts[-1])):
            torch.testing.assert_close(batch.x[row, :30], scaled[start : start + 30])
            torch.testing.assert_close(batch.y[row, 30:], scaled[start + 30 : start + 48])
        assert batch.x[:, 30:].isnan().all() and batch.y[:, :30].isnan().all()
        one = data[1]
        assert one.x.shape == (48, 12) and torch.equal(data[1:2].y[0].nan_to_num(9), one.y.nan_to_num(9))


def test_a_window_at_every_hour_up_to_the_last_one(folder):
    train, validation, test = tasks.get("weather", data_dir=str(folder)).splits()
    assert [len(train), len(validation), len(test)] == [20424 - 1439, 7296 - 1439, 7344 - 1439]
    batch = test[-1]
    assert batch.x.shape == (1440, 12) and not batch.x[:720].isnan().any() and not batch.y[720:].isnan().any()


def test_one_variable_may_be_asked_from_all(folder):
    whole, one = (tasks.get("weather", data_dir=str(folder), **SIZES, **more) for more in ({}, {"target": "WindSpeed"}))
    assert (whole.output_size, one.output_size, one.input_size) == (12, 1, 12)
    number = VARIABLES.index("WindSpeed")
    a, b = whole.splits()[2][:5], one.splits()[2][:5]
    assert torch.equal(a.x.nan_to_num(9), b.x.nan_to_num(9))
    assert torch.equal(a.y[..., number].nan_to_num(9), b.y[..., 0].nan_to_num(9))


def test_persistence_and_the_mean_of_the_hour(folder):
    task = tasks.get("weather", data_dir=str(folder), **SIZES, target="WindSpeed")
    place = VARIABLES.index("WindSpeed")
    found = task.guesses(1)
    batch = task.splits()[1][2:4]
    persistence, hourly = (found[name][2:4] for name in ("persistence", "mean of the hour"))
    assert persistence.shape == hourly.shape == batch.y.shape
    assert torch.equal(persistence, batch.x[:, 29:30, place : place + 1].expand_as(batch.y))
    column = table()["WindSpeed"].to_numpy()
    trained = column[:20424]
    means = np.array([trained[hour::24].mean() for hour in range(24)])
    start = 20424 + 2 * 101
    expected = (means[(start + np.arange(48)) % 24] - trained.mean()) / trained.std()
    np.testing.assert_allclose(hourly[0, :, 0], expected, atol=1e-5)


def test_a_run_counts_the_hours_that_are_asked_alone(folder, tmp_path, capsys):
    line = "train --task weather --past 30 --future 18 --apart 202 --target WindSpeed --model gru --hidden-size 3"
    line += f" --epochs 1 --threads 1 --limit-train-batches 2 --data-dir {folder} --root {tmp_path}"
    assert main(line.split()) == 0
    result = json.loads((tmp_path / "weather-gru-001" / "result.json").read_text())
    task = tasks.get("weather", data_dir=str(folder), past=30, future=18, apart=202, target="WindSpeed")
    batch = task.splits()[2][:]
    for name, guess in task.guesses(2).items():
        error = (guess[:] - batch.y)[:, 30:].double()
        assert result["baselines"][name]["mae"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
        assert result["baselines"][name]["mse"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert result["metric"] == "mae" and result["test"]["mse"] == result["test"]["loss"]
    capsys.readouterr()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.drop(columns="WindSpeed"), "has no column 'WindSpeed': it has date, Visibility"),
        (lambda t: t.drop(index=50), "row 51 is not one hour after the row before"),
        (lambda t: t.assign(Altimeter=["?" if i == 7 else 1 for i in range(len(t))]), "row 8 has no date such as"),
        (lambda t: t.assign(date="yesterday"), "row 1 has no date such as 1/31/2010 5:00"),
        (lambda t: t[:0], "its rows have no date"),
        (lambda t: t[:90], "the validation part has 0 hours, and a window 48"),
    ],
)
def test_files_that_do_not_fit_are_one_clear_line(change, message, tmp_path):
    change(table()[:90].copy()).to_csv(tmp_path / "WTH.csv", index=False)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        tasks.get("weather", data_dir=str(tmp_path), **SIZES).splits()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target": "Windspeed"}, "variable (--target) of task 'weather' 'Windspeed': did you mean 'WindSpeed'"),
        ({"past": 0}, "'past' is 0: expected a whole number of at least 1"),
        ({"future": "1h"}, "'future' is '1h': expected a whole number"),
        ({"apart": -1}, "'apart' is -1: expected a whole number"),
        ({}, "task 'weather' needs the file WTH.csv: give --data-dir"),
    ],
)
def test_useless_options_are_refused(options, message):
    with pytest.raises((InputError, UnknownNameError), match=re.escape(message)):
        tasks.get("weather", **options).splits()
