"""The loss of a model on samples: what gradients, curvature and attacks are of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import STATE_BYTES, network
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.sequence_model import SequenceModel
from neuralosc.scores import gaussian_nll
from solvers.errors import InputError

#: Tensors of the size of a state that a recorded step keeps, about: what autograd stores of the plain step of rk4.
RECORDED = 24


@dataclass(frozen=True)
class Loss:
    """How far answers are from targets, as a mean over sequences.

    Attributes:
        name: what it is called.
        function: answers and targets, both on the scale of training, and which samples are valid `(batch, time)`, to
            one number, a mean over the sequences, or one for each of them.
    """

    name: str
    function: Callable[[Tensor, Any, Tensor], Tensor]

    @classmethod
    def of(cls, loss: Loss | Callable[[Tensor, Any], Tensor] | None, model: nn.Module, samples: Samples) -> Loss:
        """A loss from a function of answers and targets, or the usual one.

        That is, where there are targets, of classes the cross-entropy, of numbers the mean squared error, of a Gaussian
        read-out its negative log-likelihood; where there are none, the mean square of what the model gives.

        Raises:
            InputError: something else.
        """
        if isinstance(loss, cls):
            return loss
        if loss is not None:
            if not callable(loss):
                raise InputError(f"loss is {loss!r}, expected a function loss(answers, targets), or None")
            given: Any = loss
            return cls(getattr(loss, "__name__", type(loss).__name__), lambda answers, y, _: given(answers, y))
        if samples.y is None:
            return cls("mean square", lambda answers, _, valid: _over_time(answers.square().mean(-1), valid))
        if not samples.y.is_floating_point():
            return cls("cross-entropy", _cross_entropy)
        if isinstance(model, SequenceModel) and model.readout.likelihood == "gaussian":
            return cls("negative log-likelihood", _gaussian)
        return cls("mean squared error", _squares)

    def __call__(self, model: nn.Module, samples: Samples) -> Tensor:
        """The mean over these sequences, to be differentiated."""
        return self.each(model, samples).mean()

    def each(self, model: nn.Module, samples: Samples) -> Tensor:
        """The loss of each of these sequences, or, of a function that gives only that, their mean."""
        answers = model(**samples.inputs)
        if not isinstance(model, SequenceModel):
            answers = answers[0]
        value = self.function(answers, _scaled(model, samples, answers), samples.valid)
        if not isinstance(value, Tensor) or value.dim() > 1 or (value.dim() == 1 and len(value) != len(samples)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"the loss gives {shape}, expected one number, or one for each of {len(samples)} sequences"
            )
        return value

    @torch.no_grad()
    def value(self, model: nn.Module, samples: Samples) -> float:
        """The mean over all sequences, in parts that fit the memory; NaN or infinite where it is none."""
        return float(sum(weight * self(model, part) for part, weight in parted(model, samples, recorded=False)))

    def gradient(self, model: nn.Module, samples: Samples, of: list[Tensor]) -> list[Tensor]:
        """The gradient of the mean over all sequences, in parts that fit the memory; zero of what it does not touch."""
        total = [torch.zeros_like(tensor) for tensor in of]
        for part, weight in parted(model, samples, recorded=True):
            value = self(model, part)
            found = torch.autograd.grad(value, of, allow_unused=True) if value.requires_grad else [None] * len(of)
            for whole, piece in zip(total, found, strict=True):
                if piece is not None:
                    whole.add_(piece, alpha=weight)
        return total


def parted(model: nn.Module, samples: Samples, recorded: bool) -> Iterator[tuple[Samples, float]]:
    """Samples in parts that fit the memory, each with its share of all.

    Args:
        model: what will look at them.
        samples: all of them.
        recorded: whether autograd keeps what every step computes.
    """
    rnn = network(model)
    each = 8 * samples.x.shape[1] * rnn.num_layers * rnn.components * rnn.output_size
    if recorded:
        each *= RECORDED * (rnn.substeps if isinstance(rnn, ContinuousRNN) else 1)
    for part in samples.parts(max(1, STATE_BYTES // each)):
        yield part, len(part) / len(samples)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name.

    Raises:
        InputError: there are none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}
    if not found:
        raise InputError("no parameter of the model requires a gradient: thaw those that are meant (requires_grad_())")
    return found


def _scaled(model: nn.Module, samples: Samples, answers: Tensor) -> Tensor | None:
    """Targets on the scale of training, numbers in the shape of the answers.

    Raises:
        InputError: there are not as many as answers.
    """
    y, places = samples.y, answers.shape[:-1]
    if y is None:
        return None
    if not y.is_floating_point():
        if y.shape != places:
            raise InputError(
                f"classes are {tuple(y.shape)}, expected {tuple(places)}, one for each answer of the model"
            )
        return y
    if not places.numel() or y.shape[: len(places)] != places:
        raise InputError(f"targets are {tuple(y.shape)}, expected {(*places, '..')}, as the model answers")
    y = y.reshape(*places, -1)
    if not isinstance(model, SequenceModel) and y.shape != answers.shape:
        raise InputError(f"targets are {tuple(y.shape)}, expected {tuple(answers.shape)}, as the network gives")
    return model.scaled(y) if isinstance(model, SequenceModel) else y


def _over_time(values: Tensor, known: Tensor) -> Tensor:
    """The mean for each sequence of one value for each, or one for each sample, over those known; 0 where none is."""
    if values.dim() == 1:
        return values
    return torch.where(known, values, 0).sum(1) / known.sum(1).clamp_min(1)


def _cross_entropy(answers: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    low, high = (int(end) for end in y.aminmax())
    if low < 0 or high >= answers.shape[-1]:
        raise InputError(
            f"classes go from {low} to {high}, expected 0 to {answers.shape[-1] - 1}, as the model answers"
        )
    each = functional.cross_entropy(answers.flatten(0, -2), y.long().flatten(), reduction="none").view(y.shape)
    return _over_time(each, valid)


def _squares(answers: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    return _over_answers(y, valid, lambda targets: (answers - targets).square(), answers)


def _gaussian(answers: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    mean, log_std = answers.chunk(2, -1)
    return _over_answers(y, valid, lambda targets: gaussian_nll(mean, log_std, targets), mean)


def _over_answers(y: Tensor, valid: Tensor, error: Callable[[Tensor], Tensor], answers: Tensor) -> Tensor:
    """The mean error for each sequence over the answers that have a target; 0 of a sequence in which none has."""
    known = ~y.isnan()
    # Where there is no target the answer stands in, so that no NaN reaches a gradient.
    each = torch.where(known, error(torch.where(known, y, answers.detach())), 0)
    values = each.sum(-1) / known.sum(-1).clamp_min(1)
    return _over_time(values, valid & known.any(-1) if values.dim() > 1 else valid)
