"""The figures of every epoch so far, and what follows from them: which epoch was best, and whether to stop."""

from __future__ import annotations

import math

from experiments.tasks.metrics import METRICS
from experiments.train.config import RunConfig

# The columns of metrics.csv: epoch (counted from 1), train_* and validation_*, learning_rate, seconds.
Record = dict[str, float]

_VALIDATION = "validation_"


def judged_by(record: Record) -> str:
    """The metric by which epochs are compared: the first one of the validation set."""
    names = (name.removeprefix(_VALIDATION) for name in record if name.startswith(_VALIDATION))
    return next(name for name in names if name in METRICS)


def merit(record: Record) -> tuple[float, float]:
    """What makes one epoch better than another: its validation metric, among equals its validation loss."""
    name = judged_by(record)
    value = record[_VALIDATION + name]
    # A metric that is not defined, of a set without one of the classes, is better than nothing.
    value = -math.inf if math.isnan(value) else value if METRICS[name].larger else -value
    return value, -record["validation_loss"]


def best_record(history: list[Record]) -> Record:
    """The best epoch, the earliest among equals."""
    return max(history, key=merit)


def is_over(config: RunConfig, history: list[Record]) -> bool:
    """Whether all epochs are done, or the last `patience` of them have brought nothing better."""
    if not history:
        return False
    since_best = len(history) - int(best_record(history)["epoch"])
    return len(history) >= config.epochs or 0 < config.patience <= since_best
