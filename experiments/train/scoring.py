"""How answers are judged: the loss that is trained on, and the figures that are reported, over all batches so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.tasks import Task
from experiments.tasks.metrics import CLASSIFICATION, METRICS, OF_EACH, STANDARD, at
from experiments.tasks.series import Batch, batch_of
from experiments.train.config import RunConfig
from neuralosc import SequenceModel, gaussian_crps, gaussian_nll
from solvers.errors import InputError


@dataclass(frozen=True)
class Scoring:
    """What a loss and figures are computed from.

    Attributes:
        kind: "classification" or "regression".
        metrics: names of `METRICS`; those of the kind if left out.
        outputs: classes, or numbers of an answer.
        every: there is an answer for every sample, of which those of the padding do not count.
        scale: what targets and answers are multiplied by before they are compared, `(outputs,)`; None for 1. Targets
            that are NaN do not count.
        units: what answers and targets are multiplied by for the figures, and not for the loss, `(outputs,)`; None
            where both are of one scale.
        reported: outputs whose own errors are figures too, and their numbers; see `Task.reported`.
        weights: of the classes in the loss, `(outputs,)`; None for 1.
        likelihood: what the answers to a regression are, as of `neuralosc.Readout`.
    """

    kind: str
    metrics: tuple[str, ...] = ()
    outputs: int = 0
    every: bool = False
    scale: Tensor | None = field(default=None, compare=False)
    weights: Tensor | None = field(default=None, compare=False)
    units: Tensor | None = field(default=None, compare=False)
    reported: Mapping[str, int] = field(default_factory=dict)
    likelihood: str = "none"

    @classmethod
    def of(
        cls, task: Task, config: RunConfig | None = None, train: Any = None, model: SequenceModel | None = None
    ) -> Scoring:
        """That of a task; with the configuration and the training set also the weights of the classes, if any.

        With a model that scales its targets, `answered` and the like compare on its scale.

        Raises:
            InputError: weights are asked for, and there are no classes, or the training set has nothing of one.
        """
        weights = None
        if config is not None and config.class_weights == "balanced":
            if task.kind != CLASSIFICATION:
                raise InputError(f"class_weights is given, and task {task.name!r} has no classes: leave it out")
            weights = balanced(batch_of(train, slice(None)), task)
        scaler = None if model is None else model.target_scaler
        units = None if scaler is None else scaler.scale.detach().cpu()
        given = (task.kind, task.metrics, task.output_size, task.every, task.scale, weights, units, task.reported)
        return cls(*given, "none" if model is None else model.readout.likelihood)

    def totals(self) -> Totals:
        """Nothing counted yet."""
        return Totals(self)


def balanced(whole: Batch, task: Task) -> Tensor:
    """Weights with which every class has the same part in the loss, and which are 1 on the mean over the targets.

        w_c = n / (classes n_c)

    Raises:
        InputError: there is nothing of a class.
    """
    y = whole.y if not task.every or whole.valid is None else whole.y[whole.valid]
    counts = torch.bincount(y.reshape(-1), minlength=task.output_size)
    if not counts.all():
        empty = int((counts == 0).nonzero()[0])
        raise InputError(f"class_weights 'balanced': the training set has nothing of class {empty}")
    return (counts.sum() / (task.output_size * counts)).double()


class Totals:
    """Loss and figures over the samples seen so far.

    Args:
        scoring: how they are computed; a kind alone for the standard ones.
    """

    def __init__(self, scoring: Scoring | str) -> None:
        self.scoring = scoring if isinstance(scoring, Scoring) else Scoring(scoring)
        self.names = self.scoring.metrics or STANDARD[self.scoring.kind]
        self.sequences = self.samples = self.correct = 0
        self.loss = self.weight = self.squares = self.crps = self.nats = 0.0
        collected = [name for name in self.names if METRICS[name].of_torchmetrics]
        # Of each reported output: the sums of squares and of absolute errors, and how many they are of.
        self.sums = torch.zeros(3, len(self.scoring.reported), dtype=torch.float64)
        self.collected = {name: METRICS[name].make(self.scoring.outputs) for name in collected}

    def add(self, answers: Tensor, y: Tensor, valid: Tensor | None = None) -> Tensor:
        """Count a batch; returns its mean loss, with its graph.

        Args:
            answers: `(batch, outputs)`, or `(batch, time, outputs)` of a task that asks at every sample; of "gaussian"
                twice as many, as a read-out gives them.
            y: the targets.
            valid: which samples are none of the padding, `(batch, time)`; None for all.
        """
        self.sequences += len(y)
        if self.scoring.every:
            answers, y = (part.flatten(0, 1) if valid is None else part[valid] for part in (answers, y))
        if not len(y):
            return answers.sum() * 0
        if self.scoring.kind == CLASSIFICATION:
            loss, weight = self._classified(answers, y)
            self._count(loss, weight, len(y))
            self._collect(answers.detach(), y)
            return loss
        return self._regressed(answers, y)

    def merge(self, other: Totals) -> None:
        """Count what `other` has counted, too."""
        for name in ("sequences", "samples", "correct", "loss", "weight", "squares", "crps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sums = self.sums + other.sums
        for name, metric in self.collected.items():
            metric.merge_state(other.collected[name])

    def _count(self, loss: Tensor, weight: float, samples: int) -> None:
        self.samples += samples
        self.weight += weight
        self.loss += loss.item() * weight

    def _count_each(self, answers: Tensor, y: Tensor) -> None:
        """Count the errors of the reported outputs, of the targets that there are."""
        if not self.scoring.reported:
            return
        columns = list(self.scoring.reported.values())
        answers, y = (part[:, columns].cpu().double() for part in (answers, y))
        units = 1.0 if self.scoring.units is None else self.scoring.units[columns].double()
        errors = (answers - y) * units
        self.sums += torch.stack((errors.square().nansum(0), errors.abs().nansum(0), (~y.isnan()).sum(0)))

    def _regressed(self, answers: Tensor, y: Tensor) -> Tensor:
        """The mean loss over the targets that there are."""
        known = ~y.isnan()
        every = bool(known.all())
        if not every and not known.any():
            return answers.sum() * 0
        mean, log_std = answers, None
        if self.scoring.likelihood == "gaussian":
            # Of half precision an exponential keeps too little.
            mean, log_std = answers.to(torch.promote_types(answers.dtype, y.dtype)).chunk(2, -1)
        if self.scoring.scale is not None:
            scale = self.scoring.scale.to(answers)
            mean, y = mean * scale, y * scale
            log_std = None if log_std is None else log_std + scale.log()
        self._count_each(mean.detach(), y)
        units = torch.ones_like(y[0]) if self.scoring.units is None else self.scoring.units.to(answers)

        def chosen(part: Tensor) -> Tensor:
            return part if every else part[known]

        squares = F.mse_loss(chosen(mean), chosen(y))
        loss = squares if log_std is None else gaussian_nll(chosen(mean), chosen(log_std), chosen(y)).mean()
        weight = float(known.sum())
        self._count(loss, weight, len(y))
        self.squares += squares.item() * weight
        if "crps" in self.names:
            # Several targets, each in units of its own, have no error in common: scaled ones have.
            shown = units if "mae" in self.names else torch.ones_like(units)
            std = torch.zeros_like(mean) if log_std is None else log_std.detach().exp()
            parts = (chosen((part.detach() * shown).cpu().double()) for part in (mean, std, y))
            self.crps += gaussian_crps(*parts).sum().item()
        self._collect(chosen(mean.detach() * units), chosen(y * units))
        return loss

    def _classified(self, answers: Tensor, y: Tensor) -> tuple[Tensor, float]:
        """The loss and the weight of the batch in the mean of all."""
        self.correct += int((answers.detach().argmax(-1) == y).sum())
        if self.scoring.weights is None:
            return F.cross_entropy(answers, y), float(len(y))
        if "bpc" in self.names:
            self.nats += F.cross_entropy(answers.detach(), y).item() * len(y)
        weights = self.scoring.weights.to(answers)
        return F.cross_entropy(answers, y, weights), float(weights[y].cpu().double().sum())

    def _collect(self, answers: Tensor, y: Tensor) -> None:
        if not self.collected:
            return
        # On the processor and in float64: equal answers must stem from the network, not from a softmax.
        answers, y = answers.cpu().double(), y.cpu()
        if self.scoring.kind == CLASSIFICATION:
            answers = answers.softmax(-1)
        for name, metric in self.collected.items():
            if self.scoring.kind != CLASSIFICATION:
                metric.update(answers, y.double())
            elif name == "balanced_accuracy":
                metric.update(answers.argmax(-1), y)
            else:
                metric.update(answers[:, 1] if self.scoring.outputs == 2 else answers, y)

    def result(self) -> dict[str, float]:
        """{"loss", the metrics, and those of reported outputs} of what was counted; NaN where there is none."""
        loss = self.loss / self.weight if self.weight else math.nan
        return {"loss": loss, **{name: self._figure(name, loss) for name in self.names}, **self._of_each()}

    def _of_each(self) -> dict[str, float]:
        """RMSE and MAE of each reported output in its units, NaN of one without a target."""
        squares, absolute, count = self.sums
        figures = ((squares / count).sqrt(), absolute / count)
        return {
            at(name, output): float(values[place])
            for place, output in enumerate(self.scoring.reported)
            for name, values in zip(OF_EACH, figures, strict=True)
        }

    def _figure(self, name: str, loss: float) -> float:
        if not self.samples:
            return math.nan
        if name == "accuracy":
            return self.correct / self.samples
        if name == "bpc":
            nats = loss if self.scoring.weights is None else self.nats / self.samples
            return nats / math.log(2)
        if name in ("mse", "crps"):
            return (self.squares if name == "mse" else self.crps) / self.weight
        with warnings.catch_warnings(record=True) as said:
            # Of a class that is not there; recorded, not shown.
            warnings.simplefilter("always")
            value = float(self.collected[name].compute())
        undefined = any("samples in targets" in str(warning.message) for warning in said)
        return math.nan if undefined else value
