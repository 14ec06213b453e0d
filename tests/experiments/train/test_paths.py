"""Which path a training takes for short sequences."""

import pytest

import solvers
from experiments.train import trainer
from experiments.train.config import RunConfig
from experiments.train.model import build, make_task
from experiments.train.training import evaluate, train


def config(**values):
    options = {"length": 20, "train_size": 40, "validation_size": 10, "test_size": 10}
    given = {"task": "adding", "task_options": options, "model_options": {"hidden_size": 4}, "batch_size": 10}
    return RunConfig(**{**given, "epochs": 2, "threads": 1, "device": "cpu", **values})


def steps_compiled_from(config):
    task = make_task(config)
    return trainer.TrainingLoop(build(config, task), config, task).least


def test_a_training_of_many_steps_compiles_for_short_sequences():
    # Four batches of 20 steps an epoch.
    enough = -(-trainer.MANY // 80)
    assert steps_compiled_from(config(epochs=enough)) == trainer.FEW
    assert steps_compiled_from(config(epochs=enough - 1)) is None
    assert steps_compiled_from(config(epochs=2 * enough, limit_train_batches=1)) is None


@pytest.mark.parametrize("many, path", [(160, "compiled"), (161, "plain")])
def test_the_path_is_that_of_the_training_and_of_nothing_after(tmp_path, monkeypatch, many, path):
    monkeypatch.setattr(trainer, "MANY", many)
    taken = []
    shared = trainer.shared

    def looked(model, batch, totals, loss):
        record = model.rnn.solve(batch.x).trajectories[0].record
        taken.append(record.path)
        return shared(model, batch, totals, loss)

    monkeypatch.setattr(trainer, "shared", looked)
    with solvers.backend("auto"):
        result = train(config(), root=tmp_path, progress=False)
    # Two epochs of four batches and one of validation; then validation and test once more, as they are evaluated.
    assert taken == [path] * 10 + ["plain"] * 2
    assert evaluate(result.folder)["loss"] == result.test["loss"]
    assert solvers.run.choice.least_steps() == solvers.run.choice.WORTHWHILE


def test_a_task_of_ones_own_need_not_say_how_long_it_is(monkeypatch):
    values = config(epochs=10**6)
    task = make_task(values)
    loop = trainer.TrainingLoop(build(values, task), values, task)
    assert loop.least == trainer.FEW
    monkeypatch.delattr(loop.task, "length")
    assert loop.least is None
