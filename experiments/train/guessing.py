"""How well answers without a network do, on what a network is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.tasks import Task
from experiments.tasks.series import Batch, batch_of
from experiments.train import feeding
from experiments.train.scoring import Scoring
from experiments.train.trainer import Batches
from neuralosc import SequenceModel


def guessed(
    task: Task, part: int, scoring: Scoring, model: SequenceModel, batches: Batches, training: Batches
) -> dict[str, dict[str, float]]:
    """Loss and metrics of what needs no network, by name, on the sequences of these batches of a part.

    Where a network says how sure it is so do they: by the root of their mean squared error on the training set, for
    each output.
    """
    where = model.readout.weight.device
    spread = {}
    if scoring.likelihood == "gaussian":
        spread = {name: _spread(_pairs(guess, training, where, task.every)) for name, guess in task.guesses(0).items()}
    found = {}
    for name, guess in task.guesses(part).items():
        totals = scoring.totals()
        for batch, given in _pairs(guess, batches, where, task.every):
            answers = feeding.targets(model, given)
            if name in spread:
                units = 1 if scoring.units is None else scoring.units
                log_std = (spread[name] / units).log().to(answers)
                answers = torch.cat((answers, log_std.expand_as(answers)), -1)
            totals.add(answers, feeding.targets(model, batch.y), batch.valid)
        found[name] = totals.result()
    return found


def _pairs(guess: Any, batches: Batches, where: torch.device, every: bool) -> Iterator[tuple[Batch, Tensor]]:
    """The sequences of batches, in the order of their data, with the answers to them."""
    count = min(batches.samples, len(batches) * batches.size)
    for first in range(0, count, batches.size):
        place = slice(first, min(first + batches.size, count))
        batch, answers = batch_of(batches.data, place).to(where), guess[place].to(where)
        # A batch is as long as its longest series.
        yield batch, answers[:, : batch.x.shape[1]] if every else answers


def _spread(pairs: Iterator[tuple[Batch, Tensor]]) -> Tensor:
    """The root of the mean squared error of answers, of each output, on the processor in float64."""
    total = count = torch.zeros((), dtype=torch.float64)
    for batch, answers in pairs:
        error = (answers - batch.y).cpu().double().flatten(0, -2)
        total, count = total + error.square().nansum(0), count + (~error.isnan()).sum(0)
    # An output that is always right would be sure of it; one that was never asked for is NaN.
    return (total / count).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
