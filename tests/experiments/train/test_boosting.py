"""Gradient boosting on statistics of sequences: the statistics, what it learns from them, and what it refuses."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import neuralosc
from experiments.tasks import Task
from experiments.tasks.series import Batch, Series, batch_of
from experiments.train import boosting
from experiments.train.config import RunConfig
from experiments.train.model import build
from experiments.train.scoring import Scoring
from experiments.train.summaries import OF_ALL, STATISTICS, summaries
from experiments.train.trainer import evaluation_batches
from solvers.errors import InputError

pytest.importorskip("sklearn", reason="boosting is scikit-learn's")

LENGTHS = np.array([7, 1, 4, 0, 9])


def ragged():
    """Series of 9 samples at most, three features with gaps, the last seen once in a series at most."""
    generator = np.random.default_rng(0)
    x = generator.normal(5.0, 2.0, (len(LENGTHS), LENGTHS.max(), 3))
    x[generator.random(x.shape) < 0.4] = np.nan
    x[:, 1:, 2] = np.nan
    x[0, :2, 0], x[1, 0, 1] = np.nan, np.nan
    return x, generator.random(x.shape[:2]).cumsum(1) + 0.5, LENGTHS


def by_hand(values, times):
    """The statistics of one feature of one series, with NumPy's own."""
    seen = ~np.isnan(values)
    v, t = values[seen], times[seen]
    if not len(v):
        return [0] + [np.nan] * (len(STATISTICS) - 1)
    slope = np.polyfit(t, v, 1)[0] if len(v) > 1 else np.nan
    return [len(v), np.mean(v), np.std(v), np.min(v), np.max(v), v[0], v[-1], t[-1], slope]


def test_statistics_are_those_of_numpy_of_what_was_recorded():
    x, times, lengths = ragged()
    found = summaries(x, times, lengths)
    assert found.shape == (5, 3 * len(STATISTICS) + len(OF_ALL))
    for row, values, at, length in zip(found, x, times, lengths, strict=True):
        expected = [by_hand(values[:length, feature], at[:length]) for feature in range(3)]
        end = at[length - 1] if length else np.nan
        np.testing.assert_allclose(row, [*np.ravel(expected), length, end], rtol=1e-9, atol=1e-12)
    # Every kind of gap was among them: features never, once and several times seen.
    assert {0, 1} < set(found[:, 0 :: len(STATISTICS)][:, :3].ravel())


def test_padding_does_not_count_whatever_is_in_it():
    x, times, lengths = ragged()
    expected = summaries(x, times, lengths)
    longer = np.concatenate((x, np.zeros((5, 6, 3))), 1)
    later = np.concatenate((times, np.full((5, 6), np.nan)), 1)
    padding = np.arange(longer.shape[1]) >= lengths[:, None]
    for rubbish in (0.0, 1e9, np.nan, np.inf):
        longer[padding], later[padding] = rubbish, rubbish
        np.testing.assert_array_equal(summaries(longer, later, lengths), expected)


def test_a_constant_has_no_deviation_and_one_time_no_slope():
    x = np.full((1, 4, 2), 0.1)
    times = np.array([[0.1, 0.4, 0.7, 1.9]])
    found = dict(zip(STATISTICS, summaries(x, times, np.array([4]))[0], strict=False))
    assert found["std"] == 0 and found["slope"] == 0 and found["mean"] == 0.1
    x[0, :, 0] = [1, 2, 3, 4]
    assert np.isnan(summaries(x, np.full((1, 4), 0.3), np.array([4]))[0, STATISTICS.index("slope")])


class Means(Task):
    """Whether the mean of the first feature is above that of all; what is in the padding says the opposite."""

    name = "means"
    description = "the mean of a series"
    output_size = 2
    kind = "classification"
    metrics = ("auroc", "accuracy")
    baseline = 0.5
    irregular = gaps = True
    input_size = 2
    length = 12
    rare = False

    def splits(self, seed=0):
        return tuple(self._part(seed + part, count) for part, count in enumerate((300, 100, 150)))

    def _part(self, seed, count):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, self.length, 1, generator=generator)
        lengths = torch.randint(4, self.length + 1, (count,), generator=generator)
        inside = (torch.arange(self.length) < lengths[:, None]).unsqueeze(-1)
        x[torch.rand(x.shape, generator=generator) < 0.3] = torch.nan
        x[:, 0] = torch.randn(count, 1, generator=generator)
        mean = torch.where(inside, x, torch.nan).nanmean(1)[:, 0]
        # What is noted once has no slope in any series.
        noted = torch.full_like(x, torch.nan)
        noted[:, 0] = torch.randn(count, 1, generator=generator)
        x = torch.cat((x, noted), -1)
        x = torch.where(inside, x, -50 * mean.sign()[:, None, None])
        return Series(x, self.answers(mean, generator), torch.rand(x.shape[:2], generator=generator) + 0.5, lengths)

    def answers(self, mean, generator):
        return (mean > 0.6 * self.rare).long()


class Numbers(Means):
    """The mean in units of its own, and its opposite, which is not always known."""

    name = "numbers"
    output_size = 2
    kind = "regression"
    metrics = ("mse", "rmse", "mae")
    measured = True

    def answers(self, mean, generator):
        y = torch.stack((1000 + 300 * mean, -20 * mean), -1)
        y[torch.rand(len(y), generator=generator) < 0.2, 1] = torch.nan
        return y


class Everywhere(Means):
    """An answer at every sample."""

    name = "everywhere"
    every = True


class Plain(Means):
    """Series without times or lengths, of which the third class never comes."""

    name = "plain"
    input_size = 1
    output_size = 3
    irregular = gaps = False
    metrics = ("accuracy",)

    def _part(self, seed, count):
        x = torch.randn(count, 5, 1, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(x, (x.mean(1)[:, 0] > 0).long())


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(boosting.SETTINGS, "max_iter", 120)
    return RunConfig(task=f"{__name__}:Means", threads=1, seed=1)


def test_a_task_that_a_mean_decides_is_solved(config):
    result = boosting.train(config)
    assert result.test["auroc"] > 0.98 and result.validation["auroc"] > 0.98
    assert 1 <= result.best_epoch <= result.epochs <= boosting.SETTINGS["max_iter"]
    assert set(result.test) == {"loss", "auroc", "accuracy"} and result.versions["scikit-learn"]


def test_the_seed_draws_and_gives_the_same_again(config, monkeypatch):
    monkeypatch.setattr(Means, "splits", lambda task, seed=0, splits=Means.splits: splits(task, 0))
    one, again = boosting.train(config).test, boosting.train(config).test
    assert one == again != boosting.train(dataclasses.replace(config, seed=2)).test


def test_it_is_stopped_by_the_validation_set_and_never_sees_the_test_set(config, monkeypatch):
    # Classes by chance in training: nothing is to be found, and the validation set says so soon.
    chance = {0: torch.rand(300).round().long(), 1: torch.rand(100).round().long()}

    def splits(task, seed=0, splits=Means.splits):
        sets = splits(task, 0)
        return tuple(
            Series(part.whole.x, chance.get(number, part.whole.y), *part.whole[2:]) for number, part in enumerate(sets)
        )

    monkeypatch.setattr(Means, "splits", splits)
    result = boosting.train(config)
    assert result.epochs < boosting.SETTINGS["max_iter"]
    assert result.epochs == result.best_epoch + boosting.SETTINGS["n_iter_no_change"] or result.best_epoch == 1
    assert result.test["auroc"] < 0.9


def test_weights_of_classes_are_those_of_the_configuration(config, monkeypatch):
    monkeypatch.setattr(Means, "rare", True)
    monkeypatch.setattr(Means, "metrics", ("balanced_accuracy", "auroc"))
    drawn = []
    fitted = boosting._fitted

    def kept(learner, training, validation):
        drawn.append((training[1], training[2], validation[2]))
        return fitted(learner, training, validation)

    monkeypatch.setattr(boosting, "_fitted", kept)
    for class_weights in ("none", "balanced"):
        boosting.train(dataclasses.replace(config, class_weights=class_weights))
    (_, ones, held_ones), (y, weights, held) = drawn
    assert (ones == 1).all() and (held_ones == 1).all()
    totals = [weights[y == label].sum() for label in (0, 1)]
    assert totals[0] == pytest.approx(totals[1]) and set(held) == set(weights) and len(set(weights)) == 2


def test_numbers_are_judged_on_the_scale_of_networks(config):
    config = dataclasses.replace(config, task=f"{__name__}:Numbers", model="gru", model_options={"hidden_size": 3})
    result = boosting.train(config)
    # In units of the data, of which the first has a deviation of more than 100.
    assert result.test["mse"] < 0.3 and 1 < result.test["mae"] < 60
    task = Numbers()
    train, _, test = task.splits(config.seed)
    model = build(config, task)
    scoring, scaler = boosting._scoring(config, task, train)
    y = batch_of(test, slice(None)).y
    torch.testing.assert_close(scaler(y.double()), model.scaled(y).double(), rtol=1e-5, atol=1e-6, equal_nan=True)
    answers = torch.randn(y.shape)
    figures = []
    for each in (scoring, Scoring.of(task, config, train, model)):
        totals = each.totals()
        totals.add(answers, model.scaled(y))
        figures.append(totals.result())
    assert figures[0] == pytest.approx(figures[1]) and set(figures[0]) == {"loss", "mse", "rmse", "mae"}


def test_what_is_known_of_times_is_what_the_configuration_says(config):
    task = Means()
    data = task.splits(1)[0]
    rows = {
        time: boosting._part(data, dataclasses.replace(config, time=time), task, None)[0]
        for time in ("true", "input", "ignored")
    }
    np.testing.assert_array_equal(rows["true"], rows["input"])
    batch = batch_of(data, slice(None))
    ends = batch.timespans.double().cumsum(1).gather(1, batch.lengths[:, None] - 1)[:, 0]
    np.testing.assert_allclose(rows["true"][:, -1], ends)
    np.testing.assert_array_equal(rows["ignored"][:, -1], batch.lengths.double())


def test_all_sequences_count_and_the_limit_of_an_evaluation_holds(config):
    task = Means()
    data = task.splits(1)[0]
    size = evaluation_batches(data, config, task).size
    longer = Series(*Batch(*(torch.cat((part,) * (size // 300 + 1)) for part in data.whole)))
    assert len(boosting._part(longer, config, task, None)[1]) == len(longer) > size
    limited = dataclasses.replace(config, limit_evaluation_batches=1)
    assert len(boosting._part(longer, limited, task, None)[1]) == size
    assert len(boosting._part(longer, limited, task, None, limit=0)[1]) == len(longer)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("Everywhere", {}, "answers once to a sequence, and task 'everywhere' asks at every sample"),
        ("Numbers", {"likelihood": "gaussian"}, "likelihood is 'gaussian'"),
        ("Plain", {}, "nothing of class 2"),
        ("Plain", {"time": "input"}, "samples of task 'plain' have no times"),
    ],
)
def test_what_it_has_no_answer_to_is_one_line(task, settings, message, config):
    with pytest.raises(InputError, match=message) as raised:
        boosting.train(dataclasses.replace(config, task=f"{__name__}:{task}", **settings))
    assert "\n" not in str(raised.value)


def test_an_output_without_targets_is_one_line(config, monkeypatch):
    monkeypatch.setattr(Numbers, "measured", False)
    monkeypatch.setattr(
        Numbers, "answers", lambda task, mean, _: torch.stack((mean, torch.full_like(mean, torch.nan)), -1)
    )
    task = Numbers()
    scoring = Scoring.of(task)
    part = boosting._part(task.splits(0)[0], config, task, None)
    with pytest.raises(InputError, match="training set has no target of output 1"):
        boosting._grown(boosting._packages()[0], part, part, scoring, 0)


def test_without_scikit_learn_one_line_says_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(InputError, match=r"boosting needs scikit-learn.*'neuralosc\[experiments\]'") as raised:
        boosting.train(config)
    assert "\n" not in str(raised.value)


def test_it_is_no_name_of_a_network():
    # Else a row would not say which of both it runs.
    with pytest.raises(InputError, match="unknown model 'boosting'"):
        neuralosc.model(boosting.NAME)
