"""Gradient-boosted trees on statistics of each sequence: what a network, which sees the sequence, has to beat."""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import neuralosc
from experiments.tasks import Task
from experiments.tasks.metrics import CLASSIFICATION
from experiments.tasks.series import batch_of
from experiments.train import checkpoints, feeding
from experiments.train.config import RunConfig
from experiments.train.model import make_task
from experiments.train.scoring import Scoring
from experiments.train.summaries import summaries
from experiments.train.trainer import evaluation_batches
from solvers.errors import InputError

#: What a configuration calls it, as its model.
NAME = "boosting"

#: Its settings, as scikit-learn names them, the same for every task. Training ends after so many iterations without a
#: smaller loss on the validation set, and the trees up to the smallest are kept. Every split looks at a part of the
#: statistics, drawn from the seed.
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.05,
    "max_iter": 400,
    "max_depth": 4,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
    "max_features": 0.3,
    "n_iter_no_change": 30,
}

#: What of a configuration decides what it learns, besides the seed: the rest is of networks.
OF_CONFIG = ("task", "task_options", "class_weights", "time", "limit_evaluation_batches")


@dataclass(frozen=True)
class Boosted:
    """How it ended; where they have the same names, as in a `RunResult`.

    Attributes:
        validation: {"loss", and the metrics of the task} on the validation set, by which it was stopped.
        test: the same on the test set.
        best_epoch: iterations that were kept; of several outputs, the most.
        epochs: iterations done.
        seconds: time for the statistics of the training and validation set, and for the trees.
        notices: what the task had to say of its data.
        versions: of the package that grew the trees.
        threads: of the processor, as many as it could use.
        parameters, baselines: none.
    """

    validation: dict[str, float]
    test: dict[str, float]
    best_epoch: int
    epochs: int
    seconds: float
    notices: list[str]
    versions: dict[str, str]
    threads: int
    parameters: None = None
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)


def settings(config: RunConfig) -> dict[str, Any]:
    """What decides what is learnt besides the seed, named as in a configuration."""
    values = config.to_dict()
    return {"model": NAME, "model_options": dict(SETTINGS), **{key: values[key] for key in OF_CONFIG}}


def train(config: RunConfig) -> Boosted:
    """Boost on the training set of a task, stop by the validation set, and judge on the test set as networks are.

    Args:
        config: the task, what it may know of times, the weights of classes, the seed and the threads; nothing else of
            it counts.

    Raises:
        InputError: a task that asks at every sample, or for how sure an answer is; a class or an output that the
            training set has nothing of; scikit-learn is not here.
    """
    ensemble, limits = _packages()
    task = make_task(config)
    check(config, task)
    sets = task.splits(config.seed)
    for line in task.notices:
        checkpoints.notice(line)
    scoring, scaler = _scoring(config, task, sets[0])
    started = time.perf_counter()
    with limits(config.threads or None, user_api="openmp"):
        training, validation = _part(sets[0], config, task, scaler, limit=0), _part(sets[1], config, task, scaler)
        grown = _grown(ensemble, training, validation, scoring, config.seed)
        seconds = time.perf_counter() - started
        on_validation = _judged(grown, validation, scoring)
        on_test = _judged(grown, _part(sets[2], config, task, scaler), scoring)
    return Boosted(
        validation=on_validation,
        test=on_test,
        best_epoch=max(trees.best for trees in grown),
        epochs=max(trees.learner.n_iter_ for trees in grown),
        seconds=seconds,
        notices=list(task.notices),
        versions={"scikit-learn": importlib.metadata.version("scikit-learn")},
        threads=config.threads or torch.get_num_threads(),
    )


def check(config: RunConfig, task: Task) -> None:
    """Refuse what it has no answer to.

    Raises:
        InputError: the line says what.
    """
    feeding.features(config, task)
    if task.every:
        raise InputError(
            f"boosting answers once to a sequence, and task {task.name!r} asks at every sample: leave it out"
        )
    if config.likelihood != "none":
        raise InputError(f"boosting answers with a number, and likelihood is {config.likelihood!r}: leave it out")


Part = tuple[np.ndarray, Tensor]


def _part(data: Dataset, config: RunConfig, task: Task, scaler: neuralosc.Scaler | None, **limit: int) -> Part:
    """Statistics of the sequences of a set, and the targets, on the scale on which networks are judged."""
    rows, targets = [], []
    # Of values and times as they are: what a network is told of them is `time`.
    told = replace(config, time="true", precision="64")
    for batch in evaluation_batches(data, told, task, ordered=True, **limit):
        x = batch.x.numpy()
        spans = np.ones(x.shape[:2]) if batch.timespans is None or config.time == "ignored" else batch.timespans.numpy()
        lengths = np.full(len(x), x.shape[1]) if batch.lengths is None else batch.lengths.numpy()
        rows.append(summaries(x, spans.cumsum(1), lengths))
        targets.append(batch.y if scaler is None else scaler(batch.y))
    return np.concatenate(rows), torch.cat(targets)


def _scoring(config: RunConfig, task: Task, train: Dataset) -> tuple[Scoring, neuralosc.Scaler | None]:
    """How answers are judged, and the scale of the targets, as of a network on this task."""
    scoring = Scoring.of(task, config, train)
    if not task.measured or task.kind == CLASSIFICATION:
        return scoring, None
    scaler = neuralosc.Scaler(task.output_size).fit(batch_of(train, slice(None)).y)
    return replace(scoring, units=scaler.scale), scaler.double()


@dataclass(frozen=True)
class _Trees:
    """A learner that has grown its trees.

    Attributes:
        learner: of scikit-learn.
        columns: the statistics that it was given.
        best: iterations that are kept.
    """

    learner: Any
    columns: np.ndarray
    best: int

    def answers(self, rows: np.ndarray, method: str) -> np.ndarray:
        """What it answers with these."""
        stages = getattr(self.learner, f"staged_{method}")(rows[:, self.columns])
        kept: np.ndarray = next(itertools.islice(stages, self.best - 1, None))
        return kept


def _grown(ensemble: Any, training: Part, validation: Part, scoring: Scoring, seed: int) -> list[_Trees]:
    """One learner of all classes, or one for each number of an answer."""
    options = {**SETTINGS, "early_stopping": True, "scoring": "loss", "random_state": seed}
    if scoring.kind == CLASSIFICATION:
        counts = torch.bincount(training[1], minlength=scoring.outputs)
        if not counts.all():
            empty = int((counts == 0).nonzero()[0])
            raise InputError(f"boosting: the training set has nothing of class {empty}")
        weights = torch.ones(scoring.outputs) if scoring.weights is None else scoring.weights
        learner = ensemble.HistGradientBoostingClassifier(**options)
        return [_fitted(learner, *((rows, y.numpy(), weights[y].numpy()) for rows, y in (training, validation)))]
    grown = []
    for output in range(scoring.outputs):
        parts = []
        for name, (rows, y) in (("training", training), ("validation", validation)):
            known = ~y[:, output].isnan().numpy()
            if not known.any():
                raise InputError(f"boosting: the {name} set has no target of output {output}")
            parts.append((rows[known], y[:, output].numpy()[known], np.ones(known.sum())))
        grown.append(_fitted(ensemble.HistGradientBoostingRegressor(**options), *parts))
    return grown


Weighted = tuple[np.ndarray, np.ndarray, np.ndarray]


def _fitted(learner: Any, training: Weighted, validation: Weighted) -> _Trees:
    """The learner, stopped by the validation set; of statistics, targets and weights of each."""
    (rows, y, weights), (held_rows, held_y, held_weights) = training, validation
    # It takes no statistic that no sequence has, such as the slope of a feature that is noted once; counts all have.
    columns = np.flatnonzero((~np.isnan(rows)).any(0))
    held = {"X_val": held_rows[:, columns], "y_val": held_y, "sample_weight_val": held_weights}
    learner.fit(rows[:, columns], y, weights, **held)
    # The first is the loss before there is a tree; a tree is kept at least.
    return _Trees(learner, columns, max(1, int(np.argmax(learner.validation_score_))))


def _judged(grown: list[_Trees], part: Part, scoring: Scoring) -> dict[str, float]:
    """Loss and metrics on a set."""
    rows, targets = part
    if scoring.kind == CLASSIFICATION:
        shares = grown[0].answers(rows, "predict_proba")
        answers = np.log(shares.clip(np.finfo(shares.dtype).tiny))
    else:
        answers = np.stack([trees.answers(rows, "predict") for trees in grown], -1)
    totals = scoring.totals()
    totals.add(torch.from_numpy(answers), targets)
    return totals.result()


def _packages() -> tuple[Any, Any]:
    """scikit-learn's ensembles, and what limits threads; imported here, since only those who boost need them.

    Raises:
        InputError: they are not here.
    """
    try:
        import sklearn.ensemble
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"boosting needs scikit-learn, which cannot be imported ({reason:.120}): pip install "
            "'neuralosc[experiments]' (in a checkout '.[experiments]')"
        ) from error
    return sklearn.ensemble, threadpool_limits
