"""Training on series with times, lengths, missing values and a target at every sample."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import tasks
from experiments.command.cli import main
from experiments.compare.comparison import compare
from experiments.tasks.series import Series
from experiments.train import feeding
from experiments.train.checkpoints import load_checkpoint, sealed
from experiments.train.config import RunConfig, load_yaml
from experiments.train.scoring import Scoring
from experiments.train.trainer import Batches, measure
from experiments.train.training import build, evaluate, load_model, make_task, resume, train
from solvers.errors import InputError

SIZES = {"length": 9, "shortest": 4, "train_size": 60, "validation_size": 20, "test_size": 30}
CORNN = {"hidden_size": 6, "dt": 0.5, "gamma": 1.0, "epsilon": 1.0}


def config(**changes):
    values = {"task": "oscillators", "task_options": SIZES, "model_options": CORNN, "epochs": 2, "threads": 1}
    return RunConfig.from_dict({**values, "batch_size": 16, "lr": 0.02, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(config(), root=tmp_path_factory.mktemp("runs"), progress=False)


def test_the_network_is_given_times_and_lengths(finished):
    model, kept, task = load_model(finished.folder)
    assert kept.time == "true" and kept.readout == "last" and finished.test.keys() == {"loss", "mse", "mae"}
    data = task.splits(kept.seed)[2]
    # Each series by itself, without padding, is what the batches were.
    with torch.no_grad():
        alone = torch.cat([model(one.x[None], one.timespans[None]) for one in (data[i] for i in range(len(data)))])
    assert finished.test["mse"] == pytest.approx(float((alone - data[:].y).square().mean()), rel=1e-5)
    with torch.no_grad():
        model_without = model(data[:].x, None, data[:].lengths)
    assert not torch.allclose(model_without, alone, atol=1e-3)


def test_evaluate_and_resume_agree_with_the_result(finished):
    figures = evaluate(finished.folder.path, "test")
    assert {name: figures[name] for name in finished.test} == finished.test and figures["samples"] == 30
    assert resume(finished.folder.path, progress=False).test == finished.test
    other = evaluate(finished.folder.path, solver="rk4", substeps=2)
    assert other["loss"] != finished.test["loss"] and abs(other["loss"] - finished.test["loss"]) < 0.2


def test_an_interrupted_run_goes_on_to_the_same_weights(finished, tmp_path):
    first = train(config(epochs=1, schedule="constant"), root=tmp_path, name="run", progress=False).folder
    whole = train(config(schedule="constant"), root=tmp_path, progress=False).folder
    first.result_file.unlink()
    changed = replace(load_yaml(first.config_file), epochs=2)
    content = load_checkpoint(first.last)
    first.write_config(changed, "cpu")
    for path in (first.last, first.best):
        path.write_bytes(sealed({**content, "config": changed.to_dict()}))
    resume(first.path, progress=False)
    a, b = (load_checkpoint(folder.last)["model"] for folder in (first, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_comparison_solves_over_the_same_times(finished):
    result = compare(finished.folder.path, ["semi_implicit_euler", "rk4"], [1, 2], samples=30)
    rows = {(row.contender.solver, row.contender.substeps): row for row in result.rows}
    assert rows["semi_implicit_euler", 1].metric == pytest.approx(finished.test["mse"], rel=1e-5)
    assert result.metric_name == "mse" and result.samples == 30
    assert rows["rk4", 2].deviation < rows["rk4", 1].deviation < rows["semi_implicit_euler", 1].deviation
    assert result.reference.deviation < 1e-6
    # So few samples are all taken by the sweep too.
    assert result.sweep_metric == pytest.approx(result.reference.metric, rel=1e-12)


@pytest.mark.parametrize("time", ["true", "ignored", "input"])
@pytest.mark.parametrize("name", ["cornn", "lstm"])
def test_a_network_is_told_the_time_as_the_configuration_says(name, time, tmp_path):
    options = CORNN if name == "cornn" else {"hidden_size": 6}
    chosen = config(model=name, model_options=options, time=time, epochs=1)
    if (name, time) == ("lstm", "true"):
        with pytest.raises(InputError, match=r"'lstm' knows no time between samples.*--time input or --time ignored"):
            train(chosen, root=tmp_path, progress=False)
        chosen = replace(chosen, model_options={**options, "timespans": "feature"})
    run = train(chosen, root=tmp_path, progress=False)
    model, kept, task = load_model(run.folder)
    assert kept.time == time and model.rnn.input_size == 2 + (time == "input")
    batch = task.splits()[2][:]
    moved = batch._replace(timespans=batch.timespans * 1.5)
    with torch.no_grad():
        given = [feeding.told(one, time) for one in (batch, moved)]
        a, b = (model(one.x, one.timespans, one.lengths) for one in given)
    assert torch.equal(a, b) == (time == "ignored")
    assert evaluate(run.folder)["mse"] == run.test["mse"]


def test_a_task_without_times_has_none_to_ignore():
    with pytest.raises(InputError, match="time is 'input', and the samples of task 'digits' have no times"):
        chosen = RunConfig(task="digits", time="input")
        build(chosen, make_task(chosen))


@pytest.fixture
def cheetah(tmp_path):
    random = np.random.RandomState(0)
    walk = random.standard_normal((31, 1000, 17)).cumsum(1) * 0.1
    np.savez(tmp_path / "traces.npz", traces=walk.astype(np.float32))
    return tmp_path


def test_a_target_at_every_sample(cheetah, capsys):
    line = "train --task halfcheetah --model ltc --hidden-size 5 --epochs 1 --threads 1 --limit-train-batches 3"
    limits = f"--limit-evaluation-batches 1 --name run --data-dir {cheetah} --root {cheetah}"
    assert main([*line.split(), *limits.split()]) == 0
    assert re.search(r"test +loss [\d.]+ +mse [\d.]+ +mae [\d.]+", capsys.readouterr().out)
    model, kept, task = load_model(cheetah / "run")
    assert kept.readout == model.readout.kind == "every"
    data = task.splits()[2]
    figures = measure(model, Batches(data, 100), Scoring.of(task), "cpu")
    error = (model(data[:].x).detach() - data[:].y) * task.scale
    assert figures["mse"] == figures["loss"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert figures["mae"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
    assert main(["evaluate", str(cheetah / "run"), "--solver", "rk4"]) == 0
    result = compare(cheetah / "run", ["imex_euler"], samples=20, sweep=False)
    assert not result.rows[0].reason and result.rows[0].metric > 0
    capsys.readouterr()
    assert main([*line.split(), "--readout", "mean", "--data-dir", str(cheetah)]) == 2
    assert "task 'halfcheetah' asks at every sample: use every" in capsys.readouterr().err


class Sparse(tasks.Task):
    """A rare class, values that are missing, and a series without any sample."""

    name, description, output_size, kind, baseline = "sparse", "made up", 2, "classification", 0.5
    metrics = ("auroc", "auprc", "balanced_accuracy")
    input_size, length, irregular, gaps = 3, 6, True, True

    def splits(self, seed=0):
        generator = torch.Generator().manual_seed(0)
        y = (torch.arange(80) % 5 == 0).long()
        x = torch.randn(80, 6, 3, generator=generator) + y.view(-1, 1, 1)
        x[torch.rand(80, 6, 3, generator=generator) < 0.6] = torch.nan
        lengths = torch.arange(80) % 7
        x = torch.where((torch.arange(6) < lengths.unsqueeze(-1)).unsqueeze(-1), x, 0)
        data = Series(x, y, torch.rand(80, 6, generator=generator), lengths)
        return data.parts(*torch.arange(80).split([40, 20, 20]))


@pytest.mark.parametrize("name, shown", [("cornn", "mask"), ("linoss", "hold")])
def test_missing_values_and_rare_classes(name, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tasks.TASKS, "sparse", Sparse)
    chosen = config(
        task="sparse", task_options={}, model=name, model_options={"hidden_size": 6}, class_weights="balanced"
    )
    run = train(chosen, root=tmp_path, progress=False)
    err = capsys.readouterr().err
    kept = load_yaml(run.folder.config_file)
    assert f"task 'sparse' has missing values, shown as --missing {shown} (" in err and err.count("\n") == 1
    assert kept.model_options["missing"] == shown and kept.class_weights == "balanced"
    assert run.test.keys() == {"loss", "auroc", "auprc", "balanced_accuracy"}
    with run.folder.metrics_file.open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: (float(row["validation_auroc"]), -float(row["validation_loss"])))
    assert run.best_epoch == int(best["epoch"]) and run.validation["auroc"] == float(best["validation_auroc"])
    assert evaluate(run.folder)["loss"] == run.test["loss"]
    assert run.folder.curve_file.read_bytes().startswith(b"\x89PNG")
    if name == "cornn":
        result = compare(run.folder.path, ["rk4"], samples=20, sweep=False)
        assert result.metric_name == "auroc" and 0 <= result.rows[0].metric <= 1


def test_missing_values_are_shown_as_the_configuration_says():
    chosen = config(task="sparse", task_options={})
    assert build(chosen, Sparse()).rnn.missing == "mask"
    for given in ("hold", "decay"):
        changed = replace(chosen, model_options={"hidden_size": 6, "missing": given})
        assert feeding.missing(changed, Sparse()) == {} and build(changed, Sparse()).rnn.missing == given
    with pytest.raises(InputError, match="missing is 'error', and task 'sparse' has missing values: use one of hold,"):
        build(replace(chosen, model_options={"missing": "error"}), Sparse())
