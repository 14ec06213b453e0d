"""What a task is: named data with a split, a loss and a figure to beat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from experiments.tasks.metrics import METRICS, STANDARD
from neuralosc import Collator
from solvers.errors import InputError

Splits = tuple[Dataset, Dataset, Dataset]

# Stored data are divided once and for all with this seed, so that every run is tested on the same samples.
SPLIT_SEED = 0


class Task(ABC):
    """Sequences with targets, divided into training, validation and test sets.

    A data set holds `x` (time, input) float32, or tokens (time, 1) as integers, and `y`: a class number for a
    classification, (output,) float32 for a regression, NaN where there is no target. It is indexed by a number, a
    slice or a vector of numbers, as a `TensorDataset` is. One of series with times or lengths of their own is a
    `Series`.

    Attributes:
        name: what the task is called in `TASKS`.
        description: one line on what the data are.
        input_size: channels of x.
        output_size: classes, or channels of y.
        kind: "classification" (cross-entropy, accuracy) or "regression" (mean squared error).
        metrics: what is reported, names of `METRICS`; the best epoch is the one that is best by the first. Accuracy or
            the mean squared error where a task names none.
        baseline: the figure to beat, a number of the task's first metric or a sentence.
        every: there is a target for every sample, not one for the sequence.
        irregular: the samples have timespans.
        gaps: values may be missing, NaN in x.
        length: samples in a sequence, the longest.
        tokens: how many there are, of a task whose x are the numbers of tokens, 0 to `tokens` - 1, in the place of
            features: the network is shown trained vectors of them; 0 of a task of features.
        embedding_size, embedding_dropout: features of such a vector, and the dropout of `neuralosc.Embedding`.
        measured: x and y are in the units of the data: the model has the scales of the training set, as
            `SequenceModel.fit_scaling` takes them, and figures are in the units of y.
        echoed: what is asked for is a part of the state that is shown at first: a read-out of as many channels begins
            as the identity.
        counted: timespans are numbers of steps; `--time input` shows them as they are, without a scale.
        streams: the sequences of a set are pieces of one, in their order: a network goes on from each to the next, and
            begins anew with every pass. Of classes at every sample.
        collator: how times became timespans, which the model keeps; None where it need not know.
        notices: what is to be said of the data.

    Sizes and `gaps` of a task whose options name its data are read from these when they are asked for.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    input_size: int = 1
    output_size: int
    kind: str
    metrics: tuple[str, ...] = ()
    baseline: ClassVar[float | str]
    every: bool = False
    irregular: bool = False
    gaps: bool = False
    length: int
    tokens: int = 0
    embedding_size: int = 100
    embedding_dropout: float = 0.0
    measured: bool = False
    echoed: ClassVar[bool] = False
    counted: ClassVar[bool] = False
    streams: bool = False
    collator: Collator | None = None
    notices: Sequence[str] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "kind"):
            cls.metrics = cls.metrics or STANDARD[cls.kind]
            assert all(METRICS[name].kind == cls.kind for name in cls.metrics)

    @property
    def metric_name(self) -> str:
        """The first of the metrics, by which the best epoch is chosen."""
        return self.metrics[0]

    @property
    def scale(self) -> Tensor | None:
        """What y and the answers are multiplied by, channel by channel, before they are compared; None for 1."""
        return None

    @property
    def reported(self) -> dict[str, int]:
        """Outputs of a regression whose own errors are told beside those of all, and their numbers; none of most."""
        return {}

    def embedded(self, drawn: Tensor) -> Tensor:
        """The vectors of the tokens that training begins with, like `drawn`, `(tokens, embedding_size)`."""
        return drawn

    def guesses(self, part: int) -> dict[str, Any]:
        """Answers without a network to the training (0), validation (1) or test set (2), by what they are called.

        They have the shape of y and are in its units, of classes `(sequences, classes)` logarithms of probabilities: a
        tensor, or what gives one for a slice of the sequences. None of most tasks.
        """
        return {}

    @abstractmethod
    def splits(self, seed: int = 0) -> Splits:
        """The (training, validation, test) sets.

        Args:
            seed: of sequences that are generated. Stored data are always divided in the same way.

        Raises:
            InputError: a data file is missing or cannot be read.
        """


def divide(x: Tensor, y: Tensor, *parts: Tensor) -> tuple[TensorDataset, ...]:
    """One data set for each vector of indices in `parts`."""
    return tuple(TensorDataset(x[part], y[part]) for part in parts)


def stratified(
    labels: np.ndarray, validation: float, test: float, seed: int = SPLIT_SEED
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of a training, a validation and a test part, each with the same share of every class (to one sample)."""
    order = np.random.RandomState(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    # Every class is cut at the same quantiles of its own (shuffled) order.
    quantile = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    part = np.digitize(quantile, [1 - validation - test, 1 - test])
    train, held_out, held_back = (torch.from_numpy(np.sort(by_class[part == number])) for number in range(3))
    return train, held_out, held_back


def names(option: str, value: Any) -> list[str]:
    """Names separated by commas, or a list of them."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise InputError(f"--{option} is {value!r}: expected names, separated by commas")
    names = [str(part).strip() for part in parts if str(part).strip()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--{option} names {twice!r} twice")
    return names


def positive(task: str, option: str, value: Any, least: int = 1) -> int:
    """`value` if it is an integer of at least `least`, else an InputError that names the option of the task."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"task {task!r}: option {option!r} is {value!r}: expected a whole number of at least {least}")
    return value
