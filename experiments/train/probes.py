"""Whether code or data still are what they were in a run: a few series with what was answered to them.

A run keeps the name of a class, not the class. A class that was changed since may have weights of the same shapes and
other answers; what it answered in training is therefore kept beside the weights that answered it. Nor does a run keep
the texts that say which token has which number: of other texts every number would be another word.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments import own
from experiments.tasks import Task
from experiments.tasks.base import Splits
from experiments.tasks.series import Batch, batch_of
from experiments.train import feeding
from experiments.train.config import RunConfig
from experiments.train.model import dtype
from neuralosc import SequenceModel
from solvers.errors import InputError

#: Series of the validation set, and the samples of each.
SERIES, SAMPLES = 2, 16

# How far answers may be from those of the training, of the largest: other devices and versions round otherwise.
TOLERANCE = 1e-3

Probe = dict[str, Tensor]


def of(model: SequenceModel, config: RunConfig, splits: Splits) -> Probe | None:
    """What a model answers to some series, with these; None of a run without code of one's own and without tokens."""
    if not own.is_own(config.network) and not own.is_own(config.task) and model.embedding is None:
        return None
    batch = _shortened(splits)
    parts = {name: part for name, part in batch._asdict().items() if part is not None}
    return {**parts, "answers": _answers(model, config, batch).cpu()}


def require_same_answers(model: SequenceModel, config: RunConfig, probe: Probe | None, where: str) -> None:
    """Refuse a network of one's own that answers otherwise than in training.

    Args:
        model: with the weights that answered then.
        config: of the run.
        probe: what `of` gave.
        where: the run.

    Raises:
        InputError: it does.
    """
    if probe is None or not own.is_own(config.network):
        return
    then = probe["answers"]
    now = _answers(model, config, Batch(*(probe.get(name) for name in Batch._fields)))  # type: ignore[arg-type]
    size = float(then.abs().max())
    far = float((now - then).abs().max()) if now.shape == then.shape else float("inf")
    if not far <= TOLERANCE * size:
        raise InputError(
            f"{config.network!r} answers otherwise than in the training of {where}, by {far:.2g} where answers go up "
            f"to {size:.2g}: its code was changed since, or it has a state that is not in its weights; put the code "
            "back, or train another run"
        )


def watched(config: RunConfig, task: Task) -> bool:
    """Whether the data of a task may be others without a word: of code of one's own, or the numbers of tokens."""
    return own.is_own(config.task) or bool(task.tokens)


def require_same_data(task: Task, config: RunConfig, probe: Probe | None, where: str) -> None:
    """Refuse a task whose data may be others, see `watched`, and are others than in training.

    Raises:
        InputError: they are.
    """
    if probe is None or not watched(config, task):
        return
    now, then = _shortened(task.splits(config.seed)), Batch(*(probe.get(name) for name in Batch._fields))  # type: ignore[arg-type]
    if not all(_same(a, b) for a, b in zip(now, then, strict=True)):
        raise InputError(
            f"task {config.task!r} gives other data than in the training of {where}: its code or its files were "
            "changed since, or they do not depend on the seed alone; put them back, or train another run"
        )


def _shortened(splits: Splits) -> Batch:
    """Some series of the validation set, no longer than is needed."""
    data = splits[1]
    batch = batch_of(data, torch.arange(min(SERIES, len(data))))  # type: ignore[arg-type]
    every = batch.y.dim() > 1 and batch.y.shape[:2] == batch.x.shape[:2]
    return Batch(
        batch.x[:, :SAMPLES],
        batch.y[:, :SAMPLES] if every else batch.y,
        None if batch.timespans is None else batch.timespans[:, :SAMPLES],
        None if batch.lengths is None else batch.lengths.clamp_max(SAMPLES),
    )


@torch.no_grad()
def _answers(model: SequenceModel, config: RunConfig, batch: Batch) -> Tensor:
    """Answers in evaluation mode, in which what is random is drawn from a stream of its own."""
    training, device = model.training, model.readout.weight.device
    shown = feeding.told(batch, config.time).floating(dtype(config)).to(device)
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            answers: Tensor = model.run(shown.x, None, shown.timespans, shown.lengths)[0]
    finally:
        model.train(training)
    return answers


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-8, equal_nan=True)
