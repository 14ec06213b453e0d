"""Which epoch's weights a run keeps."""

import pytest
import torch

from experiments import figures
from experiments.train import history as histories
from experiments.train.checkpoints import load_checkpoint
from experiments.train.config import RunConfig
from experiments.train.training import evaluate, load_model, resume, train
from solvers.errors import InputError

EPOCHS = 3


def config(**values):
    options = {"hidden_size": 8}
    return RunConfig(
        task="digits", model_options=options, epochs=EPOCHS, limit_train_batches=2, threads=1, device="cpu", **values
    )


@pytest.fixture
def first_is_best(monkeypatch):
    """Each epoch is worse than the one before, as on a validation set that a network overfits."""
    monkeypatch.setattr(histories, "merit", lambda record: -record["epoch"])


def weights(path):
    return load_checkpoint(path)["model"]


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("keep, epoch", [("best", 1), ("last", EPOCHS)])
def test_kept_weights_are_those_that_are_served_and_judged(first_is_best, tmp_path, keep, epoch):
    result = train(config(keep=keep), root=tmp_path, progress=False)
    assert result.best_epoch == epoch and load_checkpoint(result.folder.best)["epochs"] == epoch
    served = load_model(result.folder)[0].state_dict()
    assert same(weights(result.folder.best), served)
    assert same(weights(result.folder.last), served) == (keep == "last")
    assert evaluate(result.folder)["loss"] == result.test["loss"]
    assert evaluate(result.folder, "validation")["loss"] == result.validation["loss"]


@pytest.mark.parametrize("keep, epoch", [("best", 1), ("last", EPOCHS)])
def test_the_learning_curve_marks_the_epoch_that_is_kept(first_is_best, tmp_path, monkeypatch, keep, epoch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda draw, path: drawn.append(draw()))
    train(config(keep=keep), root=tmp_path, progress=False)
    for axes in drawn[-1].axes:
        assert [list(line.get_xdata()) for line in axes.lines if line.get_label().startswith("epoch kept")] == [[epoch]]


def test_what_is_kept_changes_nothing_of_the_training(first_is_best, tmp_path):
    best, last = (train(config(keep=keep), root=tmp_path, progress=False).folder for keep in ("best", "last"))
    assert same(weights(best.last), weights(last.last)) and not same(weights(best.best), weights(last.best))


def test_a_resumed_run_keeps_the_last_epoch_again(first_is_best, tmp_path):
    """It died after its last epoch, before anything else was written."""
    folder = train(config(keep="last"), root=tmp_path, progress=False).folder
    before = weights(folder.last)
    for file in (folder.result_file, folder.model_file, folder.best):
        file.unlink()
    result = resume(folder.path, progress=False)
    assert result.best_epoch == EPOCHS and same(before, load_model(folder)[0].state_dict())


def test_the_last_of_epochs_that_bring_nothing_is_not_kept():
    with pytest.raises(InputError, match=r"patience is 2 and keep is 'last'.*give one"):
        config(keep="last", patience=2)
    with pytest.raises(InputError, match=r"'first'.*best.*last"):
        config(keep="first")
