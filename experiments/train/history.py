"""The figures of every epoch so far, and what follows from them: which epoch was best, and whether to stop."""

from __future__ import annotations

from experiments.train.config import RunConfig

# The columns of metrics.csv: epoch (counted from 1), train_* and validation_*, learning_rate, seconds.
Record = dict[str, float]


def merit(record: Record) -> tuple[float, float]:
    """What makes one epoch better than another: its validation accuracy, among equals its validation loss."""
    return record.get("validation_accuracy", 0.0), -record["validation_loss"]


def best_record(history: list[Record]) -> Record:
    """The best epoch, the earliest among equals."""
    return max(history, key=merit)


def is_over(config: RunConfig, history: list[Record]) -> bool:
    """Whether all epochs are done, or the last `patience` of them have brought nothing better."""
    if not history:
        return False
    since_best = len(history) - int(best_record(history)["epoch"])
    return len(history) >= config.epochs or 0 < config.patience <= since_best
