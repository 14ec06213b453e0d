"""The figures of every epoch so far, and what follows from them: which epoch was best, and whether to stop."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from experiments.tasks.metrics import METRICS
from experiments.train.config import RunConfig
from solvers.errors import InputError

# The columns of metrics.csv: epoch (counted from 1), train_* and validation_*, learning_rate, seconds.
Record = dict[str, float]

_VALIDATION = "validation_"


def read(path: Path) -> list[Record]:
    """The records in a metrics.csv.

    Raises:
        InputError: it cannot be read, or is not what a run writes.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            records = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        good = [record["epoch"] for record in records] == list(range(1, len(records) + 1))
        if not records or not good or not judged_by(records[0]):
            raise ValueError("it does not hold one line for every epoch")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, csv.Error) as error:
        raise InputError(f"{path} is damaged ({str(error) or 'a column is missing'})") from error
    return records


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


def kept_record(config: RunConfig, history: list[Record]) -> Record:
    """The epoch whose weights a run keeps, of those so far."""
    return history[-1] if config.keep == "last" else best_record(history)


def is_over(config: RunConfig, history: list[Record]) -> bool:
    """Whether all epochs are done, or the last `patience` of them have brought nothing better."""
    if not history:
        return False
    since_best = len(history) - int(best_record(history)["epoch"])
    return len(history) >= config.epochs or 0 < config.patience <= since_best
