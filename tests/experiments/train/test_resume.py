"""Runs are killed (SIGKILL, nothing can be caught or tidied up) and resumed; the outcome must not show it."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.train import history
from experiments.train.checkpoints import load_checkpoint
from experiments.train.config import RunConfig
from experiments.train.progress import Stopped
from experiments.train.runs import RunFolder
from experiments.train.training import load_model, resume, train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed in the manner of POSIX")

ROOT = Path(__file__).parents[3]

# Two layers with dropout: weights, masks, order and optimiser all have to be put back.
VALUES = {
    "model_options": {"hidden_size": 8, "dt": 0.3, "gamma": 1.0, "epsilon": 1.0, "num_layers": 2, "dropout": 0.2},
    "lr": 0.01,
    "epochs": 4,
    "batch_size": 16,
    "limit_train_batches": 5,
    "seed": 2,
    "threads": 1,
}
ADDING = {"length": 12, "train_size": 100, "validation_size": 300, "test_size": 50}

# Trains in a process of its own, which kills itself when `moment` comes: ("forward", n) at the n-th call of the model,
# ("half", file, n), ("before", file, n) and ("after", file, n) around the n-th time that a file of that name is put in
# place (half of it written, written but not in place, in place).
DRIVER = """
import itertools, json, os, signal, sys
from pathlib import Path
import experiments.train.training as training
from experiments import files
from experiments.train.config import RunConfig

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at_forward(count):
    calls, build = itertools.count(1), training.build
    def rigged(*arguments):
        model = build(*arguments)
        model.register_forward_pre_hook(lambda *_: die() if next(calls) == count else None)
        return model
    training.build = rigged

def at_file(when, name, count):
    places, replace = itertools.count(1), os.replace
    def rigged(source, target):
        here = Path(target).name == name and next(places) == count
        if here and when == "half":
            os.truncate(source, os.path.getsize(source) // 2)
        if here and when != "after":
            die()
        replace(source, target)
        if here:
            die()
    os.replace = rigged

def trained(values, root, name, *moments):
    # In one child after the other: the first trains, the others resume, and all of them are killed.
    for number, (kind, *rest) in enumerate(moments):
        child = os.fork()
        if not child:
            at_forward(*rest) if kind == "forward" else at_file(kind, *rest)
            if number:
                training.resume(Path(root, name), progress=False)
            else:
                training.train(RunConfig.from_dict(values), root=root, name=name, progress=False)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(name, number, os.waitstatus_to_exitcode(status), flush=True)

for job in json.loads(sys.argv[1]):
    trained(*job)
"""

MOMENTS = {
    "first-batch": [("forward", 1)],
    "mid-first-epoch": [("forward", 4)],
    # An epoch calls the model 5 times to train and twice to validate.
    "mid-third-epoch": [("forward", 17)],
    "in-validation": [("forward", 14)],
    "first-checkpoint-half-written": [("half", "last.ckpt", 1)],
    "checkpoint-half-written": [("half", "last.ckpt", 2)],
    "checkpoint-not-in-place": [("before", "last.ckpt", 3)],
    "between-last-and-best": [("after", "last.ckpt", 2)],
    "best-half-written": [("half", "best.ckpt", 1)],
    "before-the-table": [("before", "metrics.csv", 2)],
    "last-epoch-done": [("after", "last.ckpt", 4)],
    "in-the-final-test": [("forward", 31)],
    "before-the-weights": [("before", "model.safetensors", 1)],
    "before-the-result": [("before", "result.json", 1)],
    "three-times": [("forward", 10), ("after", "last.ckpt", 1), ("forward", 3)],
}


TRAIN = """
import json, sys
from experiments.train.config import RunConfig
from experiments.train.training import train
train(RunConfig.from_dict(json.loads(sys.argv[1])), root=sys.argv[2], name=sys.argv[3], progress=False)
"""


def start(code, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def config(**changes):
    return RunConfig.from_dict({"task": "adding", "task_options": ADDING, **VALUES, **changes})


def table(folder):
    """The table of a run without the column that no two runs share."""
    with folder.metrics_file.open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def logged(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [
        (point.step, point.value) for point in EventAccumulator(str(folder.tensorboard)).Reload().Scalars("loss/train")
    ]


def outcome(folder):
    """Everything about a run that must not show whether it was interrupted."""
    checkpoints = {name: load_checkpoint(getattr(folder, name)) for name in ("last", "best")}
    for checkpoint in checkpoints.values():
        for record in checkpoint["history"]:
            del record["seconds"]
    return {
        # Files of weights name what is in them in any order.
        "result": {name: value for name, value in folder.result().items() if name not in ("seconds", "checksums")},
        "weights": load_model(folder)[0].state_dict(),
        "table": table(folder),
        "events": logged(folder),
        "files": sorted(str(file.relative_to(folder.path)) for file in folder.path.iterdir()),
        **checkpoints,
    }


def equal(a, b):
    """Whether two nested structures of tensors, numbers and text are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same(values, expected, name=""):
    for part in expected:
        assert equal(values[part], expected[part]), f"{name}: {part} differs"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    return train(config(), root=tmp_path_factory.mktemp("whole"), progress=False).folder


def test_killed_at_any_moment_a_run_goes_on_to_the_same_weights(whole, tmp_path):
    jobs = [[config().to_dict(), str(tmp_path), name, *moments] for name, moments in MOMENTS.items()]
    output, _ = start(DRIVER, json.dumps(jobs)).communicate(timeout=120)
    kills = [f"{name} {number} -9" for name, moments in MOMENTS.items() for number in range(len(moments))]
    assert output.splitlines() == kills
    expected = outcome(whole)
    for name in MOMENTS:
        folder = RunFolder.open(tmp_path / name)
        assert folder.result() is None, name
        if name == "between-last-and-best":
            # The case that needs mending: the second epoch is the best so far, and best.ckpt is of the first.
            # Its loss is half of that of the first epoch, so that it is the best on every processor.
            assert history.best_record(load_checkpoint(folder.last)["history"])["epoch"] == 2
            assert load_checkpoint(folder.best)["epochs"] == 1
        resume(folder.path, progress=False)
        assert_same(outcome(folder), expected, name)


@pytest.mark.slow
def test_killed_from_outside_a_run_goes_on_to_the_same_weights(tmp_path):
    values = {**VALUES, "epochs": 12, "limit_evaluation_batches": 1}
    folder = RunFolder(tmp_path / "killed")
    process = start(TRAIN, json.dumps(values), str(tmp_path), "killed")
    while process.poll() is None and not folder.best.is_file():
        time.sleep(0.01)
    # Somewhere in the second, third or fourth epoch, wherever that is on this machine today.
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    done = load_checkpoint(folder.last)["epochs"]
    assert 1 <= done < 12
    resume(folder.path, progress=False)
    whole = train(RunConfig.from_dict(values), root=tmp_path, name="whole", progress=False)
    assert_same(outcome(folder), outcome(whole.folder))


def test_a_run_stopped_early_stays_stopped(tmp_path):
    """Killed between the epoch that made it stop and the end, a run does not train on."""
    stopped = train(config(lr=1e-30, patience=2), root=tmp_path, progress=False)
    assert stopped.epochs == 3
    folder = stopped.folder
    before = outcome(folder)
    for file in (folder.result_file, folder.model_file, folder.metrics_file, folder.curve_file):
        file.unlink()
    assert resume(folder.path, progress=False).epochs == 3
    assert_same(outcome(folder), before)


@pytest.mark.parametrize("there", [("previous", "best"), ("best",)])
def test_from_an_earlier_checkpoint_a_run_goes_on_to_the_same_weights(there, whole, tmp_path, capsys):
    """The last one is damaged; what is there beside it serves."""
    folder = RunFolder.create(tmp_path)
    for name in ("config_file", "last", *there):
        getattr(folder, name).write_bytes(getattr(whole, name).read_bytes())
    folder.last.write_bytes(whole.last.read_bytes()[:-100])
    resume(folder.path, progress=False)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "last.ckpt is damaged" in said and f"going on from {there[0]}.ckpt" in said
    assert_same(outcome(folder), outcome(whole))


def test_what_is_told_of_every_epoch_may_stop_the_training_which_then_goes_on(tmp_path):
    config = RunConfig.from_dict({**VALUES, "task": "adding", "task_options": ADDING})
    whole = train(config, root=tmp_path, name="whole", progress=False)
    told = []

    def after_epoch(history):
        told.append([record["epoch"] for record in history])
        if len(told) == 2:
            raise Stopped("seen enough")

    with pytest.raises(Stopped, match="seen enough"):
        train(config, root=tmp_path, name="run", progress=False, after_epoch=after_epoch)
    folder = RunFolder.open(tmp_path / "run")
    result = folder.result()
    assert (result["status"], result["message"], result["epochs"]) == ("stopped", "seen enough", 2)
    again = resume(folder.path, progress=False, after_epoch=after_epoch)
    assert told == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert (again.validation, again.test, again.best_epoch) == (whole.validation, whole.test, whole.best_epoch)
