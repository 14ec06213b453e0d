"""MNIST as events: where a black pixel follows a white one or the other way round, and how long after the last time."""

from __future__ import annotations

import numpy as np
import torch

from experiments.tasks.base import Splits, positive
from experiments.tasks.mnist import SequentialMNIST
from experiments.tasks.series import Series

#: A pixel is a 1 if it is brighter.
THRESHOLD = 128
#: Events of an image at most: what comes after is left out.
MOST_EVENTS = 256


class EventMNIST(SequentialMNIST):
    """The pixels of an image in reading order as bits, of which only the changes are samples.

    A sample is the bit that begins a run of equal ones; its timespan is the number of pixels since the run before
    began, 1 of the first, in units. Of the last run nobody is told how long it is, and what comes after 256 events is
    left out, both as published. The three sets are those of `SequentialMNIST`.

    Source: M. Lechner and R. Hasani, Learning long-term dependencies in irregularly-sampled time series, 2020, and its
    code; data of Y. LeCun, C. Cortes and C. Burges, the MNIST database, 1998.

    Args:
        data_dir: as for `smnist`.
        pixels_per_step: pixels that a timespan of 1 stands for; published 256.
    """

    name = "event_mnist"
    description = "MNIST one change of a pixel a step, with the time since the last (about 53 events), 10 classes"
    baseline = "0.978 (ODE-LSTM, 64 units)"
    irregular = True
    length = MOST_EVENTS

    def __init__(self, data_dir: str | None = None, pixels_per_step: int = 256) -> None:
        super().__init__(data_dir)
        self.pixels_per_step = positive(self.name, "pixels_per_step", pixels_per_step)

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: a file is missing, damaged, or does not hold what its name says.
        """
        train, validation, test = (self._events(*data[:]) for data in super().splits(seed))
        return train, validation, test

    def _events(self, pixels: torch.Tensor, labels: torch.Tensor) -> Series:
        # Pixels are whole numbers of 255ths.
        bits = pixels.squeeze(-1).mul(255).round().numpy() > THRESHOLD
        begins = np.ones_like(bits)
        begins[:, 1:] = bits[:, 1:] != bits[:, :-1]
        number = begins.cumsum(1) - 1
        image, place = np.nonzero(begins & (number < MOST_EVENTS))
        event = number[image, place]
        lengths = np.bincount(image, minlength=len(bits))
        x, spans = np.zeros((2, len(bits), lengths.max(initial=1)), np.float32)
        x[image, event] = bits[image, place]
        spans[image, event] = np.where(event > 0, np.diff(place, prepend=0), 1) / self.pixels_per_step
        return Series(torch.from_numpy(x).unsqueeze(-1), labels, torch.from_numpy(spans), torch.from_numpy(lengths))
