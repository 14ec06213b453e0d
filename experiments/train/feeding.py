"""What a network is given of a task: its samples, what of their times, what of missing values, and what it answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import neuralosc
from experiments.tasks import Task
from experiments.tasks.metrics import CLASSIFICATION
from experiments.tasks.series import Batch, batch_of
from experiments.train import networks
from experiments.train.config import READOUTS_OF_A_SEQUENCE, RunConfig
from experiments.train.networks import OwnLayer
from neuralosc import SequenceModel
from neuralosc.arguments import HELD, MISSING
from solvers.errors import InputError


def told(batch: Batch, time: str) -> Batch:
    """The batch with as much of its times as `time` of the configuration says."""
    if batch.timespans is None or time == "true":
        return batch
    x = batch.x if time == "ignored" else torch.cat((batch.x, batch.timespans.unsqueeze(-1)), -1)
    return batch._replace(x=x, timespans=None)


def targets(model: nn.Module, y: Tensor) -> Tensor:
    """Targets on the scale that a model answers on."""
    if isinstance(model, SequenceModel) and model.target_scaler is not None:
        return model.scaled(y)
    return y


def shown(model: SequenceModel, batch: Batch) -> Batch:
    """A batch as the network is shown it, with targets on its scale, for those who ask the network itself."""
    with torch.no_grad():
        return batch._replace(x=model.shown(batch.x, batch.lengths), y=targets(model, batch.y))


def fit(model: SequenceModel, config: RunConfig, task: Task) -> None:
    """Give a model the scales of the training set of a task whose data are as measured."""
    if task.measured:
        batch = told(batch_of(task.splits(config.seed)[0], slice(None)), config.time)
        model.fit_scaling(batch.x, batch.lengths, None if task.kind == CLASSIFICATION else batch.y)
        if task.counted and config.time == "input":
            assert model.input_scaler is not None
            model.input_scaler.mean[-1], model.input_scaler.scale[-1] = 0, 1


def scale(model: SequenceModel, task: Task) -> None:
    """Give a model scales to be filled, where `fit` gives it those of the training set."""
    if task.measured:
        weight = model.readout.weight
        if model.embedding is None:
            model.input_scaler = neuralosc.Scaler(model.rnn.input_size).to(weight)
        if task.kind != CLASSIFICATION:
            model.target_scaler = neuralosc.Scaler(model.readout.out_features).to(weight)


def features(config: RunConfig, task: Task) -> int:
    """Features of the samples that the network is given.

    Raises:
        InputError: a choice of time for a task whose samples have none, or which tokens have no place for.
    """
    if not task.irregular and config.time != "true":
        raise InputError(f"time is {config.time!r}, and the samples of task {task.name!r} have no times: leave it out")
    if task.tokens:
        if config.time == "input":
            raise InputError(
                f"time is 'input', and task {task.name!r} has tokens, beside which no feature stands: use --time true "
                "or --time ignored"
            )
        return task.embedding_size
    return task.input_size + (config.time == "input")


def embedding(task: Task) -> neuralosc.Embedding | None:
    """The vectors of the tokens of a task, just drawn; None for one of features."""
    if not task.tokens:
        return None
    return neuralosc.Embedding(task.tokens, task.embedding_size, task.embedding_dropout)


def missing(config: RunConfig, task: Task) -> dict[str, Any]:
    """What the network makes of missing values, where the task has any and the configuration does not say.

    Raises:
        InputError: missing values are refused, and the task has some.
    """
    given = config.model_options.get("missing")
    if not task.gaps or given not in (None, "error"):
        return {}
    if given == "error":
        kinds = ", ".join(kind for kind in MISSING if kind != "error")
        raise InputError(f"missing is 'error', and task {task.name!r} has missing values: use one of {kinds}")
    about = networks.card(config)
    if "missing" not in about.defaults:
        raise InputError(f"task {task.name!r} has missing values, and model {config.network!r} takes no 'missing'")
    blocks = about.blocks
    return {"missing": "hold" if blocks and "mask" not in HELD else "mask"}


def readout(config: RunConfig, task: Task) -> str:
    """The kind of read-out.

    Raises:
        InputError: one for every sample where the task asks one answer of a sequence, or the other way round.
    """
    if config.readout == "auto":
        return "every" if task.every else "last"
    if task.every != (config.readout not in READOUTS_OF_A_SEQUENCE):
        asks, fitting = ("at every sample", "every") if task.every else ("once", ", ".join(READOUTS_OF_A_SEQUENCE))
        raise InputError(f"readout is {config.readout!r}, and task {task.name!r} asks {asks}: use {fitting}")
    return config.readout


def check(rnn: neuralosc.RecurrentLayer, config: RunConfig, task: Task) -> None:
    """Refuse a network that knows no time for samples that have it.

    Raises:
        InputError: the line says what to use.
    """
    if task.irregular and config.time == "true" and getattr(rnn, "timespans", None) == "refuse":
        raise InputError(
            f"model {config.network!r} knows no time between samples, and task {task.name!r} has it: use --time input "
            "or --time ignored"
        )


def check_lengths(rnn: neuralosc.RecurrentLayer, config: RunConfig, task: Task) -> None:
    """Refuse a module of one's own that takes no lengths for series of several.

    Raises:
        InputError: the line says what to write.
    """
    # Pieces of one sequence that are side by side are of one length.
    if isinstance(rnn, OwnLayer) and "lengths" not in rnn.takes and not task.streams:
        lengths = batch_of(task.splits(config.seed)[0], slice(None)).lengths
        if lengths is not None and int(lengths.min()) < int(lengths.max()):
            raise InputError(
                f"model {config.network!r} has no 'lengths' in its forward, and the series of task {task.name!r} have "
                f"{int(lengths.min())} to {int(lengths.max())} samples: let it take them"
            )
