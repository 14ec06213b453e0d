"""Training that begins with the weights of another run."""

import dataclasses
import shutil

import pytest
import torch
from torch.utils.data import TensorDataset

from experiments.tasks import Task
from experiments.tasks.series import Series
from experiments.train import initial, training
from experiments.train.checkpoints import load_checkpoint
from experiments.train.config import RunConfig
from experiments.train.training import load_model, resume, train
from neuralosc import Collator
from solvers.errors import InputError

SAMPLES = 30


class Divided(Task):
    """Thirty sequences, and which of them a network learns from.

    Args:
        first: number of the first of the ten that it learns from.
        classes: there are.
        shift: of all values.
        twice: the last sequence is the first one again.
    """

    name = "divided"
    kind = "classification"
    measured = True

    def __init__(self, first: int = 0, classes: int = 2, shift: float = 0.0, twice: bool = False) -> None:
        self.first, self.output_size, self.shift, self.twice = first, classes, shift, twice

    def splits(self, seed=0):
        x = torch.arange(SAMPLES * 4.0).sin().view(SAMPLES, 4, 1) + self.shift
        if self.twice:
            x[-1] = x[0]
        y = torch.arange(SAMPLES) % self.output_size
        order = torch.arange(SAMPLES).roll(-self.first)
        return tuple(TensorDataset(x[part], y[part]) for part in order.split(10))


class Timed(Divided):
    """The same sequences at other times, of a length each."""

    irregular = True
    collator = Collator(unit=2.0)

    def splits(self, seed=0):
        return tuple(
            Series(*data.tensors, torch.ones(10, 4) + self.first, torch.arange(10) % 4 + 1)
            for data in super().splits(seed)
        )


def config(**values):
    values = {"task": f"{__name__}:Divided", "model_options": {"hidden_size": 4}} | values
    return RunConfig(**{"epochs": 1, "threads": 1, "device": "cpu", "batch_size": 5, **values})


@pytest.fixture
def begun(tmp_path):
    """A run that has trained."""
    return train(config(seed=3), root=tmp_path, name="begun", progress=False).folder


def after(begun, **values):
    return config(initial_weights=str(begun.path), **values)


def untrained(result):
    """What a run of no rate kept: what it began with."""
    return load_model(result.folder)[0].state_dict()


def test_training_begins_with_weights_and_scales_of_another_run(begun, tmp_path, capsys):
    still = dataclasses.replace(after(begun, task_options={"shift": 5.0}), lr=1e-30, gradient_clip=0)
    result = train(still, root=tmp_path, progress=False)
    kept, expected = untrained(result), load_model(begun)[0].state_dict()
    assert kept.keys() == expected.keys() and any("input_scaler" in name for name in kept)
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value, rtol=0, atol=1e-25)
    assert not capsys.readouterr().err
    other = train(config(lr=1e-30, gradient_clip=0), root=tmp_path, progress=False)
    assert not torch.equal(untrained(other)["rnn.fields.0.W"], expected["rnn.fields.0.W"])
    # The folder is found from wherever the run goes on.
    assert result.folder.config().initial_weights == str(begun.path.resolve())


def test_a_run_that_goes_on_believes_its_own_checkpoint(begun, tmp_path, monkeypatch):
    whole = train(after(begun, epochs=3), root=tmp_path, name="whole", progress=False)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(after(begun, epochs=3), root=tmp_path, name="part", progress=False, after_epoch=stop)
    shutil.rmtree(begun.path)
    part = resume(tmp_path / "part", progress=False)
    left, right = (load_checkpoint(run.folder.last)["model"] for run in (whole, part))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_that_has_no_checkpoint_yet_begins_with_them_again(begun, tmp_path, monkeypatch):
    whole = train(after(begun), root=tmp_path, name="whole", progress=False)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "fit", killed)
        train(after(begun), root=tmp_path, name="part", progress=False)
    part = resume(tmp_path / "part", progress=False)
    left, right = (load_checkpoint(run.folder.last)["model"] for run in (whole, part))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "values, line",
    [
        (
            {"model_options": {"hidden_size": 5}},
            r"rnn\.fields\.0\.W is \(4, 4\) float32 there and \(5, 5\) float32 here",
        ),
        ({"precision": "64"}, r"is \(4, 4\) float32 there and \(4, 4\) float64 here"),
        ({"model_options": {"hidden_size": 4, "num_layers": 2}}, r"is nothing there and \(4, 4\) float32 here"),
        ({"model": "lem"}, r"V\.weight is \(4, 1\) float32 there and \(16, 1\) float32 here"),
        ({"task": "adding"}, r"V\.weight is \(4, 1\) float32 there and \(4, 2\) float32 here"),
    ],
)
def test_other_networks_are_refused_before_there_is_a_folder(begun, tmp_path, values, line):
    with pytest.raises(InputError, match=rf"the weights of run .*begun do not fit: .*{line}: give the same network"):
        train(after(begun, **values), root=tmp_path, name="refused", progress=False)
    assert not (tmp_path / "refused").exists()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no run folder"):
        train(config(initial_weights=str(tmp_path / "nothing")), root=tmp_path, name="refused", progress=False)
    assert not (tmp_path / "refused").exists()


def test_a_read_out_that_answers_otherwise_begins_anew_and_says_so(begun, tmp_path, capsys):
    values = {"task_options": {"classes": 3}, "lr": 1e-30, "gradient_clip": 0}
    kept = untrained(train(after(begun, **values), root=tmp_path, progress=False))
    fresh = untrained(train(config(**values), root=tmp_path, progress=False))
    assert "the read-out of run" in capsys.readouterr().err
    earlier = load_model(begun)[0].state_dict()
    for name, value in kept.items():
        expected = fresh if name.startswith("readout.") else earlier
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-25)


class Numbered(Divided):
    """A number is asked of the same sequences."""

    kind = "regression"
    metrics = ("mse",)

    def __init__(self, first: int = 0) -> None:
        super().__init__(first, classes=1)

    def splits(self, seed=0):
        return tuple(TensorDataset(x, x[:, -1] * 3 + 1) for x, _ in (data.tensors for data in super().splits(seed)))


@pytest.mark.parametrize("there, here", [("Numbered", "Divided"), ("Divided", "Numbered")])
def test_a_scale_of_the_targets_goes_with_the_read_out(there, here, tmp_path, capsys):
    earlier = train(config(task=f"{__name__}:{there}"), root=tmp_path, progress=False).folder
    values = {"task": f"{__name__}:{here}", "lr": 1e-30, "gradient_clip": 0}
    kept = untrained(train(after(earlier, **values), root=tmp_path, progress=False))
    fresh = untrained(train(config(**values), root=tmp_path, progress=False))
    assert "the read-out of run" in capsys.readouterr().err
    assert kept.keys() == fresh.keys()
    assert any(name.startswith("target_scaler.") for name in kept) == (here == "Numbered")
    for name in kept:
        if name.startswith(("readout.", "target_scaler.")):
            torch.testing.assert_close(kept[name], fresh[name], rtol=0, atol=1e-25)


def test_choices_that_are_no_weights_are_told_where_they_differ(begun, tmp_path, capsys):
    train(
        after(begun, model_options={"hidden_size": 4, "dt": 0.5, "gamma": 2.5}, readout="mean"),
        root=tmp_path,
        progress=False,
    )
    line = capsys.readouterr().err
    dt, gamma = (begun.config().model_options[name] for name in ("dt", "gamma"))
    assert f"model_options.dt {dt} (0.5 here)" in line and f"model_options.gamma {gamma} (2.5 here)" in line
    assert "readout last (mean here)" in line
    assert "hidden_size" not in line and line.count("\n") == 1


def test_a_unit_of_time_that_differs_is_told(tmp_path, capsys, monkeypatch):
    task = f"{__name__}:Timed"
    folder = train(config(task=task), root=tmp_path, progress=False).folder
    monkeypatch.setattr(Timed, "collator", Collator(unit=3.0))
    train(config(task=task, initial_weights=str(folder.path)), root=tmp_path, progress=False)
    assert "unit of time 2 (3 here)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "task, first, kind, known",
    [
        ("Divided", 5, "test", 5),
        ("Divided", 10, "test", 10),
        ("Divided", 20, "validation", 10),
        # Of the ten some are as long as samples that were seen, and at the same times.
        ("Timed", 0, "", 0),
    ],
)
def test_what_a_run_is_judged_by_was_not_trained_on_before(begun, tmp_path, task, first, kind, known):
    task = f"{__name__}:{task}"
    begun = train(config(task=task), root=tmp_path, name="earlier", progress=False).folder
    values = after(begun, task=task, task_options={"first": first})
    if not kind:
        train(values, root=tmp_path, name="fine", progress=False)
        return
    with pytest.raises(InputError, match=rf"was trained on {known} of the 10 {kind} sequences of this one: divide"):
        train(values, root=tmp_path, name="refused", progress=False)
    assert not (tmp_path / "refused").exists()


def test_a_sequence_that_the_data_hold_twice_is_no_other_division(tmp_path):
    options = {"twice": True}
    begun = train(config(task_options=options), root=tmp_path, progress=False).folder
    train(after(begun, task_options=options), root=tmp_path, progress=False)


def test_the_runs_before_the_earlier_one_count_too(begun, tmp_path, capsys):
    second = train(after(begun), root=tmp_path, name="second", progress=False).folder
    # Another data set in between hides nothing.
    third = train(after(second, task_options={"shift": 1.0}), root=tmp_path, name="third", progress=False).folder
    with pytest.raises(InputError, match=r"run \S*second was trained on 10 of the 10 test sequences"):
        train(after(third, task_options={"first": 10}), root=tmp_path, progress=False)
    capsys.readouterr()
    shutil.rmtree(second.path)
    train(after(third, task_options={"first": 10}), root=tmp_path, progress=False)
    assert "what run" in (said := capsys.readouterr().err) and "is not known: no run folder" in said


def test_data_of_the_earlier_run_that_are_gone_are_said_not_to_be_compared(begun, tmp_path, capsys, monkeypatch):
    own = Divided.splits

    def splits(task, seed=0):
        if seed == 3:
            raise InputError("no such file")
        return own(task, seed)

    monkeypatch.setattr(Divided, "splits", splits)
    monkeypatch.setattr(initial, "put", lambda *_: None)
    loaded = load_model(begun)
    monkeypatch.setattr(training, "load_model", lambda _: loaded)
    train(after(begun), root=tmp_path, progress=False)
    assert "is not compared with what this one is judged by: no such file" in capsys.readouterr().err
