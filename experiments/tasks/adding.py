"""The adding problem: two numbers of a long sequence are marked, and their sum is asked for."""

from __future__ import annotations

import numpy as np

from experiments.tasks.base import Splits, Task, positive
from experiments.tasks.generated import Generated


class Adding(Task):
    """Sequences of (value, marker): one marker in each half, the target is the sum of the two marked values.

    Always answering 1 has the mean squared error 1/6, the variance of the sum of two uniform numbers.
    Source: S. Hochreiter and J. Schmidhuber, Long short-term memory, 1997; in the form used by T. K. Rusch and
    S. Mishra, Coupled oscillatory recurrent neural network, 2021, section 4.

    Args:
        length: samples in a sequence, at least 2.
        train_size, validation_size, test_size: sequences in each set.
    """

    name = "adding"
    description = "sum of the two marked numbers of a random sequence (length T, generated from a seed)"
    input_size = 2
    output_size = 1
    kind = "regression"
    baseline = 1 / 6

    def __init__(
        self, length: int = 100, train_size: int = 20_000, validation_size: int = 1_000, test_size: int = 1_000
    ) -> None:
        self.length = positive(self.name, "length", length, least=2)
        self.train_size = positive(self.name, "train_size", train_size)
        self.validation_size = positive(self.name, "validation_size", validation_size)
        self.test_size = positive(self.name, "test_size", test_size)

    def splits(self, seed: int = 0) -> Splits:
        """Sets with no sequence in common; `seed` chooses the sequences."""
        sizes = (self.train_size, self.validation_size, self.test_size)
        train, validation, test = (
            AddingSequences(self.length, size, seed=seed, stream=stream) for stream, size in enumerate(sizes)
        )
        return train, validation, test


class AddingSequences(Generated):
    """The sequences of `Adding`."""

    def sequence(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Values with their markers, and the sum of the marked ones."""
        half = self.length // 2
        x = np.zeros((self.length, 2), np.float32)
        x[:, 0] = random.random(self.length, dtype=np.float32)
        marked = [random.integers(half), random.integers(half, self.length)]
        x[marked, 1] = 1
        return x, x[marked, 0].sum(keepdims=True)
