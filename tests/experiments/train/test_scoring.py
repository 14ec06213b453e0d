"""Loss and figures over batches, against scikit-learn and against all samples at once."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch.nn import functional as F

from experiments.tasks.base import Task
from experiments.tasks.metrics import METRICS, shown
from experiments.tasks.series import Batch, Series
from experiments.train import history
from experiments.train.config import RunConfig
from experiments.train.scoring import Scoring, Totals, balanced
from solvers.errors import InputError, UnknownNameError

CLASSES = tuple(name for name, metric in METRICS.items() if metric.kind == "classification")
NUMBERS = tuple(name for name, metric in METRICS.items() if metric.kind == "regression")


def drawn(outputs, count=203):
    generator = torch.Generator().manual_seed(outputs)
    # Rounded, so that some answers are equal.
    answers = (3 * torch.randn(count, outputs, generator=generator)).round(decimals=1)
    y = (answers + 4 * torch.randn(count, outputs, generator=generator)).argmax(-1)
    return answers, y


def counted(totals, answers, y, size=50):
    for part in torch.arange(len(y)).split(size):
        totals.add(answers[part], y[part])
    return totals.result()


@pytest.mark.parametrize("outputs", [2, 4])
def test_figures_of_classes_are_those_of_scikit_learn(outputs):
    answers, y = drawn(outputs)
    result = counted(Totals(Scoring("classification", CLASSES, outputs)), answers, y)
    p = answers.double().softmax(-1).numpy()
    score = p[:, 1] if outputs == 2 else p
    expected = {
        "accuracy": reference.accuracy_score(y, p.argmax(1)),
        "balanced_accuracy": reference.balanced_accuracy_score(y, p.argmax(1)),
        "auroc": reference.roc_auc_score(y, score, multi_class="ovr"),
        "auprc": reference.average_precision_score(np.eye(outputs)[y] if outputs > 2 else y, score),
        "bpc": reference.log_loss(y, p) / math.log(2),
    }
    assert result.keys() == {"loss", *expected}
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-6), name


def test_figures_of_numbers_are_over_all_of_them():
    generator = torch.Generator().manual_seed(0)
    answers, y = torch.randn(2, 103, 3, generator=generator, dtype=torch.float64)
    result = counted(Totals(Scoring("regression", NUMBERS, 3)), answers, y)
    error = (answers - y).numpy()
    assert result["mse"] == result["loss"] == pytest.approx((error**2).mean())
    assert result["rmse"] == pytest.approx(math.sqrt((error**2).mean()))
    assert result["mae"] == pytest.approx(abs(error).mean())


def test_a_scale_brings_loss_and_figures_into_the_units_of_the_data():
    answers, y = torch.randn(2, 20, 3)
    scale = torch.tensor([1.0, 5, 20], dtype=torch.float64)
    result = counted(Totals(Scoring("regression", ("mse", "mae"), 3, scale=scale)), answers, y, 7)
    error = ((answers - y) * scale).numpy()
    assert result["mse"] == pytest.approx((error**2).mean()) and result["mae"] == pytest.approx(abs(error).mean())


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_padding_does_not_count(kind):
    lengths = torch.tensor([3, 0, 5, 1])
    valid = torch.arange(5) < lengths.unsqueeze(-1)
    answers = torch.randn(4, 5, 3, requires_grad=True)
    y = torch.randint(3, (4, 5)) if kind == "classification" else torch.randn(4, 5, 3)
    totals = Totals(Scoring(kind, outputs=3, every=True))
    loss = totals.add(answers, y, valid)
    chosen = F.cross_entropy if kind == "classification" else F.mse_loss
    torch.testing.assert_close(loss, chosen(answers[valid], y[valid]))
    assert totals.samples == 9 and totals.sequences == 4
    (gradient,) = torch.autograd.grad(loss, answers)
    assert not gradient[~valid].any() and gradient[valid].abs().min() > 0
    # Samples are weighed, not batches: the whole is the mean over all valid samples.
    parts = Totals(Scoring(kind, outputs=3, every=True))
    for part in (slice(0, 2), slice(2, 4)):
        parts.add(answers[part], y[part], valid[part])
    assert parts.result() == pytest.approx(totals.result())
    empty = Totals(Scoring(kind, outputs=3, every=True))
    assert empty.add(answers[1:2], y[1:2], valid[1:2]).item() == 0 and math.isnan(empty.result()["loss"])


class Rare(Task):
    name, description, output_size, kind, baseline = "rare", "", 2, "classification", 0.5
    metrics = ("auroc",)

    def splits(self, seed=0):
        raise NotImplementedError


def test_balanced_weights_give_each_class_the_same_part_of_the_loss():
    y = torch.tensor([0] * 90 + [1] * 10)
    weights = balanced(Batch(torch.zeros(100, 1, 1), y), Rare())
    assert weights.tolist() == pytest.approx([100 / 180, 5]) and weights[y].mean() == pytest.approx(1)
    answers = torch.randn(100, 2)
    totals = Scoring.of(Rare(), RunConfig(class_weights="balanced"), Series(torch.zeros(100, 1, 1), y)).totals()
    result = counted(totals, answers, y, 30)
    each = [F.cross_entropy(answers[y == c], y[y == c]) for c in (0, 1)]
    assert result["loss"] == pytest.approx(float(sum(each) / 2), rel=1e-5)
    assert Scoring.of(Rare(), RunConfig(), None).weights is None


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="has nothing of class 1"):
        balanced(Batch(torch.zeros(3, 1, 1), torch.tensor([0, 0, 0])), Rare())
    with pytest.raises(UnknownNameError, match="unknown class_weights 'balance': did you mean 'balanced'"):
        RunConfig(class_weights="balance")
    from experiments import tasks

    with pytest.raises(InputError, match="task 'adding' has no classes"):
        Scoring.of(tasks.get("adding"), RunConfig(class_weights="balanced"), None)


def test_a_figure_that_has_no_value_is_none_and_no_epoch_is_the_better_for_it():
    totals = Totals(Scoring("classification", ("auroc", "auprc"), 2))
    assert all(math.isnan(value) for value in totals.result().values())
    totals.add(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64))
    assert math.isnan(totals.result()["auroc"])
    records = [{"validation_loss": 1.0, "validation_auroc": value} for value in (math.nan, 0.3, math.nan)]
    assert history.best_record(records) is records[1]


def test_the_best_epoch_is_so_by_the_first_metric_and_its_direction():
    larger = [{"validation_loss": 1.0, "validation_auroc": a, "validation_accuracy": -a} for a in (0.2, 0.9, 0.5)]
    assert history.best_record(larger) is larger[1]
    smaller = [{"validation_loss": -a, "validation_rmse": a, "validation_mae": -a} for a in (0.2, 0.1, 0.5)]
    assert history.best_record(smaller) is smaller[1]
    equal = [{"validation_loss": a, "validation_accuracy": 0.5} for a in (0.2, 0.1, 0.1)]
    assert history.best_record(equal) is equal[1]


def test_shares_are_shown_in_percent():
    assert shown("balanced_accuracy", 0.5) == "50.00%" and shown("auroc", 0.5) == "0.5" == shown("loss", 0.5)
