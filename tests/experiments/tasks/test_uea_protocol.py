"""Sets of the UEA archive by the protocol of the papers on state-space models: pooled, divided by the seed."""

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import tasks
from experiments.tasks.ts_files import Labelled
from experiments.train.config import RunConfig
from experiments.train.model import build
from solvers.errors import InputError
from tests.experiments.tasks.labelled import CLASSES, made, same, task_of


def test_series_are_pooled_and_divided_by_the_seed():
    train, test = made(30, 0), made(12, 1)
    # One of the test set is one of the training set, too: it is there once.
    twice = Labelled((*test.series[:-1], train.series[4]), test.labels, CLASSES)
    task = task_of(train, twice, protocol="70/15/15")
    found = task.splits(2345)
    assert [len(part) for part in found] == [28, 6, 7]
    ends = [one.x[: one.lengths].numpy().tobytes() for part in found for one in (part[n] for n in range(len(part)))]
    assert len(set(ends)) == 41 and set(ends) == {one.tobytes() for one in (*train.series, *test.series[:-1])}
    labels = {one.tobytes(): CLASSES.index(name) for one, name in zip(train.series, train.labels, strict=True)}
    for part in found:
        for one in (part[number] for number in range(len(part))):
            assert labels.get(one.x[: one.lengths].numpy().tobytes(), int(one.y)) == int(one.y)
    same_seed, other = task.splits(2345), task.splits(3456)
    assert same(found[0][:], same_seed[0][:]) and not torch.equal(found[0][:].y, other[0][:].y)
    # As in the published code, the values are shown as they are.
    model = build(RunConfig(task="uea", model="gru", model_options={"hidden_size": 3}), task)
    assert model.input_scaler is None and task_of(train, test).measured


def test_the_time_goes_from_0_to_1_before_the_channels():
    task = task_of(made(30, 0), made(12, 1), protocol="70/15/15", clock=True)
    plain = task_of(made(30, 0), made(12, 1), protocol="70/15/15").splits(1)[2][3]
    one = task.splits(1)[2][3]
    length = int(one.lengths)
    assert task.input_size == 4 and torch.equal(one.x[:, 1:], plain.x)
    assert torch.equal(one.x[:length, 0], torch.arange(length, dtype=torch.float64) / length)


def test_the_time_is_shown_to_a_model_that_answers_to_a_file_too(tmp_path):
    series = made(2, 0)
    path = tmp_path / "new.csv"
    rows = [(f"s{n}", *row) for n, one in enumerate(series.series) for row in one]
    pd.DataFrame(rows, columns=["series", "a", "b", "c"]).to_csv(path, index=False)
    found = tasks.get("uea", clock=True).read([path], 4, print)
    for one, values in zip(found, series.series, strict=True):
        np.testing.assert_allclose(one.values[:, 1:], values)
        np.testing.assert_allclose(one.values[:, 0], np.arange(len(values)) / len(values))


def test_protocols_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="unknown protocol of task 'uea' '70/15': did you mean '70/15/15'"):
        tasks.get("uea", protocol="70/15")
    with pytest.raises(InputError, match="'clock' with samples removed"):
        tasks.get("uea", clock=True, drop=0.3)
    few = task_of(made(1, 0), made(1, 1), protocol="70/15/15")
    with pytest.raises(InputError, match="has 2 series that differ, too few for 70/15/15"):
        few.splits()
