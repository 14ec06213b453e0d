"""One pass over batches: answers are counted, and of pieces of a stream the state goes on from one to the next."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

import neuralosc
from experiments.tasks import Task
from experiments.tasks.metrics import CLASSIFICATION
from experiments.tasks.series import Batch
from experiments.train.config import RunConfig
from experiments.train.feeding import targets
from experiments.train.networks import OwnLayer
from experiments.train.scoring import Scoring
from neuralosc import SequenceModel
from solvers.errors import InputError


class Pass:
    """What a model answers to batches one after another.

    Args:
        scoring: how the answers are counted.
        streams: each batch goes on where the one before ended, row by row; gradients stop in between.
    """

    def __init__(self, scoring: Scoring, streams: bool = False) -> None:
        self.totals, self.streams = scoring.totals(), streams
        self.state: Any = None

    def answered(
        self, model: nn.Module, batch: Batch, timed: contextlib.AbstractContextManager[Any] | None = None
    ) -> Tensor:
        """Have the model answer a batch, and count it; returns the mean loss of the batch.

        Args:
            model: what is asked.
            batch: `x` and `y`.
            timed: entered while the model answers.
        """
        with timed or contextlib.nullcontext():
            answers = self._answers(model, batch)
        return self.totals.add(answers, targets(model, batch.y), batch.valid)

    def _answers(self, model: nn.Module, batch: Batch) -> Tensor:
        if not self.streams:
            answers: Tensor = model(batch.x, batch.timespans, batch.lengths)
            return answers
        assert isinstance(model, SequenceModel)
        start = begun(model.rnn, len(batch.x)) if self.state is None else self.state
        answers, after = model.run(batch.x, start, batch.timespans, batch.lengths)
        self.state = detached(after)
        return answers


def parallel(samples: int, rows: int) -> Tensor:
    """Which pieces the batches hold: row by row of a batch one piece after another of the same part of all.

    Args:
        samples: pieces there are, in their order.
        rows: parts that are gone through side by side; as many pieces as are left over, fewer than these, go.

    Returns:
        `(batches, rows)`.
    """
    each = samples // rows
    return torch.arange(each * rows).view(rows, each).T


def begun(rnn: neuralosc.RecurrentLayer, batch: int) -> Any:
    """What the first piece goes on from: nothing where a state says all, else a stream, which keeps samples, too."""
    recurrences = [layer.rnn for layer in rnn.layers] if isinstance(rnn, neuralosc.LinOSSNetwork) else [rnn]
    needs = any(
        isinstance(one, neuralosc.ContinuousRNN) and (one.control.memory or one.missing != "error" or one.timed)
        for one in recurrences
    )
    return rnn.begin(batch) if needs else None  # type: ignore[operator]


def detached(state: Any) -> Any:
    """A state, whatever it is made of, cut off from what it was computed from."""
    if isinstance(state, tuple | list):
        return type(state)(map(detached, state))
    if isinstance(state, dict):
        return {name: detached(part) for name, part in state.items()}
    return state.detach() if hasattr(state, "detach") else state


def check(rnn: neuralosc.RecurrentLayer, config: RunConfig, task: Task) -> None:
    """Refuse a network that cannot go on from piece to piece, for a task of streams.

    Raises:
        InputError: the line says what to use.
    """
    if not task.streams:
        return
    about = f"task {task.name!r} goes on from piece to piece of one sequence"
    if task.kind != CLASSIFICATION or not task.every:
        raise InputError(f"{about}: expected of it classes at every sample")
    if rnn.bidirectional:
        raise InputError(f"{about}, and a bidirectional network knows what follows: leave bidirectional out")
    if isinstance(rnn, neuralosc.ContinuousRNN) and not rnn.control.causal:
        raise InputError(f"{about}, and control {rnn.control.name!r} looks ahead: use one that does not")
    if isinstance(rnn, OwnLayer) and "state" not in rnn.takes:
        raise InputError(f"{about}, and model {config.network!r} has no 'state' in its forward: let it take it")
