"""The copy memory problem: what is shown, what is asked, and what an answer without memory reaches."""

import math

import pytest
import torch

from experiments import tasks
from experiments.tasks.copy_memory import CopySequences
from experiments.train.config import RunConfig
from experiments.train.model import build
from experiments.train.scoring import Scoring
from experiments.train.trainer import Batches
from experiments.train.training import guessed
from solvers.errors import InputError


def test_ten_symbols_are_shown_and_asked_for_after_the_pause():
    train, validation, test = tasks.get("copy", delay=7, train_size=400, validation_size=20, test_size=30).splits(5)
    assert [len(train), len(validation), len(test)] == [400, 20, 30]
    x, y = train[:]
    assert x.shape == (400, 27, 10) and y.shape == (400, 27) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert torch.equal(x.sum(-1), torch.ones(400, 27))
    shown = x.argmax(-1)
    # Ten symbols, six blanks, the sign, ten blanks: T + 20 samples, the sign ten before the end.
    assert torch.equal(y[:, -10:], shown[:, :10]) and not y[:, :-10].any()
    assert (shown[:, 16] == 9).all() and not shown[:, 10:16].any() and not shown[:, 17:].any()
    counts = torch.bincount(shown[:, :10].flatten(), minlength=10)
    assert counts[0] == counts[9] == 0 and (counts[1:9] / 4000 - 1 / 8).abs().max() < 0.03


def test_a_sequence_depends_on_seed_set_and_index_alone():
    data = CopySequences(5, 50, seed=7, stream=0)
    x, y = data[:]
    assert torch.equal(data[13][0], x[13]) and torch.equal(data[13][1], y[13])
    assert torch.equal(CopySequences(5, 80, seed=7, stream=0)[:50][1], y)
    assert data[0:0][0].shape == (0, 25, 10) and data[0:0][1].shape == (0, 25)
    for other in (CopySequences(5, 50, seed=8, stream=0), CopySequences(5, 50, seed=7, stream=1)):
        assert not torch.equal(other[:][1], y)
    with pytest.raises(IndexError):
        data[50]


def test_the_memoryless_answer_has_the_published_cross_entropy():
    task = tasks.get("copy", delay=30, train_size=10, validation_size=10, test_size=300)
    sets = task.splits(0)
    scoring = Scoring.of(task)
    model = build(RunConfig(task="copy", task_options={"delay": 30}, model_options={"hidden_size": 4}), task)
    figures = guessed(task, 2, scoring, model, Batches(sets[2], 64), Batches(sets[0], 64))["memoryless"]
    assert figures["loss"] == pytest.approx(10 * math.log(8) / 50, rel=1e-6)
    assert figures["balanced_accuracy"] == pytest.approx(2 / 9) == task.baseline
    # (T + 10 blanks and every eighth of ten symbols) of T + 20.
    assert figures["accuracy"] == pytest.approx((40 + 10 / 8) / 50, abs=0.01)


@pytest.mark.parametrize("options", [{"delay": 0}, {"delay": 2.5}, {"train_size": 0}])
def test_useless_options_are_refused(options):
    with pytest.raises(InputError, match=f"'{next(iter(options))}' is .*: expected a whole number of at least"):
        tasks.get("copy", **options)
