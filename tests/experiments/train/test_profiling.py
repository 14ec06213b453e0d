"""Where the time of training goes: the parts are those of the epochs, and sum to them."""

import io

import pytest
import torch
from rich.console import Console

from experiments.command.cli import main
from experiments.train.config import RunConfig
from experiments.train.profiling import OF_THE_MODEL, PARTS, Profile, parts
from experiments.train.training import load_model, train

TINY = {
    "task": "adding",
    "task_options": {"length": 8},
    "model_options": {"hidden_size": 8},
    "limit_train_batches": 3,
    "limit_evaluation_batches": 1,
    "threads": 1,
    "epochs": 2,
}


def test_parts_are_taken_from_actions_that_hold_each_other():
    found = parts(
        {
            "run_training_epoch": 10.0,
            "[Callback]Keeper.on_train_epoch_end": 1.0,
            "[Callback]Keeper.on_train_start": 7.0,
            "[LightningModule]TrainingLoop.optimizer_step": 6.0,
            "[Strategy]SingleDeviceStrategy.training_step": 3.0,
            "train model": 2.5,
            "[Strategy]SingleDeviceStrategy.backward": 2.0,
            "[Strategy]SingleDeviceStrategy.validation_step": 1.5,
            "evaluation model": 1.25,
            "[_TrainingEpochLoop].train_dataloader_next": 0.5,
            "[_EvaluationLoop].val_next": 0.25,
            "[Strategy]SingleDeviceStrategy.batch_to_device": 0.25,
        }
    )
    assert found == {
        "data": 1.0,
        "forward": 2.5,
        "backward": 2.0,
        "optimizer": 1.0,
        "evaluation": 1.25,
        "scoring": 0.75,
        "writing": 1.0,
        "other": 1.5,
    }
    assert list(found) == list(PARTS) and sum(found.values()) == 11.0


def test_the_parts_of_a_run_sum_to_its_epochs(tmp_path):
    kept = Profile()
    result = train(RunConfig.from_dict(TINY), root=tmp_path, progress=False, profile=kept)
    found = kept.seconds()
    assert all(seconds >= 0 for seconds in found.values())
    assert all(found[name] > 0 for name in (*OF_THE_MODEL, "data", "scoring", "writing"))
    assert sum(len(kept.profiler.recorded_durations[name]) for name in ("train model", "evaluation model")) == 8
    # The clock of the run is read within an epoch.
    recorded = kept.profiler.recorded_durations
    ends = sum(
        sum(v) for name, v in recorded.items() if name.endswith((".on_train_epoch_start", ".on_train_epoch_end"))
    )
    assert sum(found.values()) == pytest.approx(sum(recorded["run_training_epoch"]) + ends)
    assert sum(found.values()) >= 0.5 * result.seconds


def test_a_profile_changes_no_weight(tmp_path):
    plain = train(RunConfig.from_dict(TINY), root=tmp_path, progress=False)
    watched = train(RunConfig.from_dict(TINY), root=tmp_path, progress=False, profile=Profile())
    assert plain.test == watched.test
    left, right = (load_model(run.folder)[0].state_dict() for run in (plain, watched))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_table_says_what_is_in_the_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    options = ["--task", "adding", "--length", "8", "--hidden-size", "8", "--epochs", "1", "--limit-train-batches", "2"]
    limits = ["--limit-evaluation-batches", "1", "--threads", "1", "--root", str(tmp_path), "--profile"]
    assert main(["train", *options, *limits]) == 0
    printed = capsys.readouterr().out
    assert "Where the time of the epochs went" in printed and "of which in the model" in printed
    assert all(text in printed for text in PARTS.values())


def test_without_an_epoch_there_are_no_shares():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(Profile().table())
    assert "of which in the model -" in console.export_text()
