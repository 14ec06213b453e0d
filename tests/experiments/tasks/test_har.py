"""HAR-2 from the files of the repository: nine of signals and one of activities for each part."""

import re

import numpy as np
import pytest
import torch

from experiments import tasks
from experiments.tasks.har import CHANNELS
from experiments.train.config import RunConfig
from experiments.train.training import load_model, train
from solvers.errors import InputError


def write(folder, counts=None):
    """Files of random signals; returns them by part, `(number, 128, 9)`, with the activities from 1."""
    random, written = np.random.RandomState(0), {}
    for part, count in (counts or {"train": 60, "test": 12}).items():
        signals, labels = random.randn(count, 128, 9), np.arange(count) % 6 + 1
        (folder / part / "Inertial Signals").mkdir(parents=True)
        (folder / part / f"y_{part}.txt").write_text("".join(f"{label}\n" for label in labels))
        for number, channel in enumerate(CHANNELS):
            # As published: numbers in columns of one width.
            lines = [" " + " ".join(f"{value: .7e}" for value in row) + "\n" for row in signals[:, :, number]]
            (folder / part / "Inertial Signals" / f"{channel}_{part}.txt").write_text("".join(lines))
        written[part] = signals, labels
    return written


def test_signals_are_channels_and_activities_are_in_two_groups(tmp_path):
    folder = tmp_path / "UCI HAR Dataset"
    folder.mkdir()
    signals, labels = write(folder)["test"]
    train_set, validation, test = tasks.get("har2", data_dir=str(tmp_path)).splits(0)
    assert [len(train_set), len(validation), len(test)] == [54, 6, 12]
    x, y = test[:]
    assert x.shape == (12, 128, 9) and x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), signals, rtol=1e-6)
    # Walking, upstairs, downstairs, sitting, standing, laying.
    assert y[:6].tolist() == [0, 1, 0, 1, 0, 1] and y.tolist() == [int(label in (2, 4, 6)) for label in labels]
    assert len({row.numpy().tobytes() for data in (train_set, validation) for row in data[:][0]}) == 60
    again = tasks.get("har2", data_dir=str(folder)).splits(3)
    assert torch.equal(again[0][:][0], train_set[:][0])


def test_a_run_scales_the_channels_as_the_training_set_has_them(tmp_path):
    write(tmp_path)
    config = RunConfig(task="har2", data_dir=str(tmp_path), model_options={"hidden_size": 2}, epochs=1, threads=1)
    result = train(config, root=tmp_path / "runs", progress=False)
    assert 0 <= result.test["accuracy"] <= 1
    scaler = load_model(result.folder)[0].input_scaler
    x = tasks.get("har2", data_dir=str(tmp_path)).splits()[0][:][0]
    torch.testing.assert_close(scaler.mean, x.mean((0, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train/y_train.txt", lambda old: old.replace("6", "7", 1), "line 6: activity 7, expected 1 to 6"),
        ("train/y_train.txt", lambda old: "2.5\n" + old[2:], "line 1: activity 2.5, expected 1 to 6"),
        ("train/y_train.txt", lambda old: "", "is empty"),
        ("test/y_test.txt", lambda old: old[:-2], "has 12 windows, and"),
        ("train/Inertial Signals/body_gyro_y_train.txt", lambda old: old.rsplit(" ", 1)[0], "line 60: 12[67] numbers"),
        (
            "train/Inertial Signals/body_gyro_y_train.txt",
            lambda old: old[: len(old) // 2 - 30],
            "numbers, expected 128",
        ),
        (
            "train/Inertial Signals/total_acc_z_train.txt",
            lambda old: re.sub(r"\S+", "nan", old, count=1),
            "line 1: a number",
        ),
        (
            "train/Inertial Signals/total_acc_z_train.txt",
            lambda old: re.sub(r"\S+", "1,5", old, count=1),
            "holds '1,5'",
        ),
        ("train/Inertial Signals/body_acc_x_train.txt", lambda old: "é" + old, "is no text of numbers: byte 0"),
        (
            "test/Inertial Signals/body_acc_x_test.txt",
            lambda old: "<html>404</html>",
            "line 1: 1 numbers, expected 128",
        ),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(file, change, message, tmp_path):
    write(tmp_path)
    path = tmp_path / file
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        tasks.get("har2", data_dir=str(tmp_path)).splits()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(InputError, match="needs the folder UCI HAR Dataset: give --data-dir"):
        tasks.get("har2").splits()
    write(tmp_path)
    (tmp_path / "test" / "Inertial Signals" / "total_acc_x_test.txt").unlink()
    with pytest.raises(InputError, match=r"total_acc_x_test\.txt cannot be read: No such file"):
        tasks.get("har2", data_dir=str(tmp_path)).splits()


def test_too_few_windows_are_said(tmp_path):
    write(tmp_path, {"train": 6, "test": 6})
    with pytest.raises(InputError, match="has 6 training windows, too few"):
        tasks.get("har2", data_dir=str(tmp_path)).splits()
