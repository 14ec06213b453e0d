"""The copy memory problem: some symbols are shown, and asked for again after a long pause."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from experiments.tasks.base import Splits, Task, positive
from experiments.tasks.generated import Generated

#: Symbols that are to be remembered, and how many kinds of them there are.
COUNT, SYMBOLS = 10, 8
#: Channels of the input: the blank first, then the symbols, then the sign to begin.
BLANK, SIGN = 0, SYMBOLS + 1
#: The logarithm of a probability that is as good as 0, and still a number.
NEVER = -100.0


class CopyMemory(Task):
    """Ten symbols are shown, and asked for in their order by the last ten samples; a blank is asked for before.

    A sequence is ten symbols of eight, T - 1 blanks, a sign to begin and ten more blanks.
    Inputs are one-hot, 10 channels: the blank, the eight symbols, the sign. Answers have 9 classes, the blank (0) and
    the symbols (1 to 8). Who remembers nothing, and knows when symbols are due, answers blanks and then any symbol:
    that costs a cross-entropy of 10 log 8 / (T + 20), and is right at (T + 11.25) / (T + 20) of the samples, more the
    longer the pause. So the first figure is the mean over the classes of the share that is found: 2/9 of such answers.

    Source: M. Arjovsky, A. Shah, Y. Bengio, Unitary evolution recurrent neural networks, ICML 2016, section 5.1, after
    S. Hochreiter and J. Schmidhuber, Long short-term memory, 1997.

    Args:
        delay: T, samples from the last symbol shown to the sign; a sequence has T + 20 samples.
        train_size, validation_size, test_size: sequences in each set.

    Attributes:
        length: samples in a sequence, T + 20.
    """

    name = "copy"
    description = "ten symbols to be repeated after a pause of T samples (generated from a seed), 9 classes"
    input_size = SYMBOLS + 2
    output_size = SYMBOLS + 1
    kind = "classification"
    metrics = ("balanced_accuracy", "accuracy")
    baseline = 2 / 9
    every = True

    def __init__(
        self, delay: int = 100, train_size: int = 20_000, validation_size: int = 1_000, test_size: int = 1_000
    ) -> None:
        self.delay = positive(self.name, "delay", delay)
        self.train_size = positive(self.name, "train_size", train_size)
        self.validation_size = positive(self.name, "validation_size", validation_size)
        self.test_size = positive(self.name, "test_size", test_size)
        self.length = self.delay + 2 * COUNT

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.train_size, self.validation_size, self.test_size

    def guesses(self, part: int) -> dict[str, Any]:
        """The answer of who remembers nothing: blanks, and any symbol where one is due."""
        answer = torch.full((self.length, self.output_size), NEVER)
        answer[:-COUNT, BLANK] = 0
        answer[-COUNT:, 1:] = -math.log(SYMBOLS)
        return {"memoryless": answer.expand(self._sizes[part], -1, -1)}

    def splits(self, seed: int = 0) -> Splits:
        """Sets that are drawn apart from each other; `seed` chooses the sequences."""
        train, validation, test = (
            CopySequences(self.delay, size, seed=seed, stream=stream) for stream, size in enumerate(self._sizes)
        )
        return train, validation, test


class CopySequences(Generated):
    """The sequences of `CopyMemory`; `length` is the delay."""

    def sequence(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One-hot samples, and the class that is asked for at each."""
        symbols = random.integers(1, SYMBOLS + 1, COUNT)
        shown = np.full(self.length + 2 * COUNT, BLANK)
        asked = shown.copy()
        shown[:COUNT], asked[-COUNT:] = symbols, symbols
        shown[-COUNT - 1] = SIGN
        return np.eye(SYMBOLS + 2, dtype=np.float32)[shown], asked.astype(np.int64)
