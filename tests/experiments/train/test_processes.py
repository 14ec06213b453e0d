"""Two processes that train one network: what is the same as in one, and how they end together."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from experiments.train import processes
from experiments.train.checkpoints import load_checkpoint
from experiments.train.config import RunConfig, read_yaml
from experiments.train.runs import RunFolder
from experiments.train.scoring import Scoring
from experiments.train.training import resume, train

DIGITS = {
    "task": "digits",
    "model_options": {"hidden_size": 6, "dt": 0.2},
    "precision": "64",
    "threads": 1,
    "epochs": 1,
    "gradient_clip": 0.5,
    "device": "cpu",
}
LINOSS = {"model": "linoss", "model_options": {"hidden_size": 4, "state_size": 4, "num_layers": 1, "dropout": 0.0}}
ADDING = {
    **DIGITS,
    "task": "adding",
    "task_options": {"length": 8},
    "limit_train_batches": 3,
    "limit_evaluation_batches": 1,
}
CASES = {
    # 1258 sequences: the last batch has 3, of which one process has 2; and 1, of which one process has none.
    "unequal": {**DIGITS, "batch_size": 251, "class_weights": "balanced"},
    "none": {**DIGITS, "batch_size": 419, "class_weights": "balanced"},
    "masked": {**DIGITS, "task": "tests.experiments.train.in_processes:Ragged", "batch_size": 5, "epochs": 2},
    "normalized": {**DIGITS, **LINOSS, "batch_size": 251, "limit_train_batches": 3, "sync_batchnorm": True},
    "apart": {**DIGITS, **LINOSS, "batch_size": 251, "limit_train_batches": 3},
    "whole": {**ADDING, "epochs": 4, "warmup": 2.5, "optimizer": "sgd", "momentum": 0.9, "lr": 1e-3},
}


def launch(arguments, **environment):
    """Two processes by torchrun; what they print, on standard output and on standard error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **environment}
    given["PYTHONPATH"] = os.pathsep.join([os.getcwd(), given.get("PYTHONPATH", "")])
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the runs of two processes, and what they printed."""
    root = tmp_path_factory.mktemp("two")
    work = [{"config": config, "root": str(root), "name": name} for name, config in CASES.items()]
    work.append({"config": CASES["whole"], "root": str(root), "name": "parts", "stop": 2})
    work.append({"config": CASES["whole"], "root": str(root), "name": "failed", "fails": {"rank": 1, "epoch": 2}})
    work.append({"resume": str(root / "failed")})
    path = root / "work.json"
    path.write_text(json.dumps(work))
    done = launch(["-m", "tests.experiments.train.in_processes", str(path)])
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done


def weights(run):
    return load_checkpoint(RunFolder.open(run).last)["model"]


def figures(run):
    with RunFolder.open(run).metrics_file.open() as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["unequal", "none", "masked", "normalized", "whole"])
def test_two_processes_train_to_the_weights_of_one(two, name, tmp_path):
    one = train(RunConfig.from_dict(CASES[name]), root=tmp_path, name="one", progress=False)
    expected, found = weights(one.folder.path), weights(two[0] / name)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9, msg=key)
    for row, other in zip(figures(one.folder.path), figures(two[0] / name), strict=True):
        assert other == pytest.approx(row, rel=1e-6, abs=1e-9)
    result = RunFolder.open(two[0] / name).result()
    assert result["test"] == pytest.approx(one.test, rel=1e-6)
    assert result["validation"] == pytest.approx(one.validation, rel=1e-6)


def test_without_synchronized_normalization_it_is_another_training(two, tmp_path):
    one = train(RunConfig.from_dict(CASES["apart"]), root=tmp_path, name="one", progress=False)
    same = train(RunConfig.from_dict(CASES["normalized"]), root=tmp_path, name="same", progress=False)
    expected, found = weights(one.folder.path), weights(two[0] / "apart")
    far = max(float((found[key].double() - value.double()).abs().max()) for key, value in expected.items())
    assert far > 1e-4
    assert all(torch.equal(value, weights(same.folder.path)[key]) for key, value in expected.items())


def test_one_process_writes_and_the_run_says_how_many_there_were(two):
    root, done = two
    assert done.stdout.count("epoch 1/1  ") == 4 and done.stdout.count("epoch 4/4  ") == 2
    for name in CASES:
        folder = RunFolder.open(root / name)
        assert read_yaml(folder.config_file)["environment"]["processes"] == 2 == folder.processes()
        assert folder.result()["status"] == "finished"
    # One folder for each run.
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == sorted([*CASES, "parts", "failed"])


def test_an_interrupted_run_goes_on_with_as_many_and_with_another_number(two, tmp_path, capsys):
    root, done = two
    said = [line for line in done.stdout.splitlines() if "KeyboardInterrupt" in line]
    assert sorted(line.split(":")[0] for line in said) == [f"process {rank} KeyboardInterrupt" for rank in range(2)]
    assert RunFolder.open(root / "parts").result()["status"] == "interrupted"
    assert load_checkpoint(RunFolder.open(root / "parts").last)["epochs"] == 2
    for number in ("two", "one"):
        shutil.copytree(root / "parts", tmp_path / number)
    path = tmp_path / "work.json"
    path.write_text(json.dumps([{"resume": str(tmp_path / "two")}]))
    again = launch(["-m", "tests.experiments.train.in_processes", str(path)])
    assert again.returncode == 0, again.stdout + again.stderr
    expected = weights(root / "whole")
    assert all(torch.equal(value, weights(tmp_path / "two")[key]) for key, value in expected.items())
    assert figures(tmp_path / "two") == figures(root / "whole")
    resume(tmp_path / "one", progress=False)
    assert "began with 2 processes and goes on with 1" in capsys.readouterr().err
    for key, value in expected.items():
        torch.testing.assert_close(weights(tmp_path / "one")[key], value, rtol=1e-6, atol=1e-9)


def test_a_failure_of_one_process_is_that_of_all_and_leaves_good_checkpoints(two):
    root, done = two
    said = sorted(line for line in done.stdout.splitlines() if "NonFiniteLossError" in line)
    assert len(said) == 2 and all("process 1 has no numbers" in line for line in said)
    # It went on afterwards, from the end of the second epoch.
    expected = weights(root / "whole")
    assert all(torch.equal(value, weights(root / "failed")[key]) for key, value in expected.items())


def test_what_is_wrong_is_said_once(tmp_path):
    options = ["--hidden-size", "4", "--dynamics-lr", "0.1", "--root", str(tmp_path)]
    done = launch(["-m", "experiments", "train", *options])
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors and errors == [line for line in errors if "dynamics_lr is 0.1" in line] and len(errors) == 1
    assert done.returncode and not list(tmp_path.iterdir())


def test_commands_of_one_process_refuse_several(monkeypatch, capsys):
    from experiments.command.cli import main

    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "3", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["list"]) == 2
    assert "list runs in one process, and torchrun started 3" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(["list"]) == 2
    assert capsys.readouterr().err == ""


def test_what_two_have_counted_is_what_one_counts():
    torch.manual_seed(0)
    for scoring in (
        Scoring("classification", ("accuracy", "auroc", "auprc", "balanced_accuracy"), 3),
        Scoring("regression", ("mse", "rmse", "mae"), 2, reported={"second": 1}),
    ):
        classes = scoring.kind == "classification"
        answers = torch.randn(20, scoring.outputs)
        y = torch.randint(0, 3, (20,)) if classes else torch.randn(20, 2)
        whole, parts = scoring.totals(), [scoring.totals() for _ in range(3)]
        whole.add(answers, y)
        for part, a, b in zip(parts, answers.split((13, 7, 0)), y.split((13, 7, 0)), strict=True):
            if len(a):
                part.add(a, b)
        parts[0].merge(parts[1])
        parts[0].merge(parts[2])
        assert parts[0].result() == pytest.approx(whole.result(), rel=1e-6)


def test_a_joint_normalization_of_one_process_is_that_of_torch():
    torch.manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64)
    plain, model = torch.nn.BatchNorm1d(3).double(), torch.nn.Sequential(torch.nn.BatchNorm1d(3)).double()
    assert processes.synchronize(model) == 1 and processes.synchronize(model) == 1
    assert torch.equal(model(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
