"""Sequences that are made when they are asked for, each from its own numbers."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Generated(Dataset):
    """Sequences made when they are asked for; the same (seed, stream, index) always gives the same sequence.

    Args:
        length: what decides how long a sequence is.
        size: number of sequences.
        seed: chooses the sequences, 0 or more.
        stream: a number for each set, so that sets made from one seed differ.
    """

    def __init__(self, length: int, size: int, *, seed: int, stream: int) -> None:
        self.length, self.size, self.seed, self.stream = length, size, seed, stream

    @abstractmethod
    def sequence(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One sequence, x `(time, input)` and y, drawn from these numbers alone."""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(self.size)[index]
        # Of no sequence the first one still says the shapes.
        pairs = [self._numbered(int(number)) for number in numbers.reshape(-1)] or [self._numbered(0)]
        x, y = (torch.from_numpy(np.stack(parts))[: numbers.numel()] for parts in zip(*pairs, strict=True))
        return (x, y) if numbers.ndim else (x[0], y[0])

    def _numbered(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        # A counter-based generator: sequence number `index` costs the same wherever it stands, and needs no others.
        return self.sequence(
            np.random.Generator(np.random.Philox(key=[self.seed, self.stream], counter=[0, 0, 0, index]))
        )
