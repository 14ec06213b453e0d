"""The next row of a simulated half-cheetah, at every row."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from experiments.tasks.arrays import needed, read_arrays
from experiments.tasks.base import Splits, Task
from experiments.tasks.series import Series

FILE = "traces.npz"
WINDOW, EVERY = 32, 10
#: Roll-outs of each set: training, validation and test.
ROLLOUTS = (slice(15, 25), slice(0, 5), slice(5, 15))
#: Deviations beyond which a standardized input is cut off: single components jump up to 56 of them.
FURTHEST = 4.0


class HalfCheetah(Task):
    """Windows of 32 rows of 17 numbers, one every 10 rows of a roll-out; asked is the next row, at every row.

    Roll-outs 15-24 are the training set (970 windows), 0-4 the validation set (485), 5-14 the test set (970). The loss
    and the mean squared error are those of the published code: over all windows, all 32 rows, from the first on, and
    all 17 components, in the units in which they were recorded, so that the components that move much count most. The
    network itself is given and asks for standardized numbers (mean and deviation of the training roll-outs), inputs cut
    off at 4 deviations, and its answers are multiplied by the deviations before they are compared; the published code
    took the numbers as they are, which `raw` does.

    Source: R. Hasani, M. Lechner, A. Amini, D. Rus, R. Grosu, Liquid time-constant networks, AAAI 2021, and its code;
    its roll-outs in the order of their files, 1000 rows each, as `traces` of a file `traces.npz`.

    Args:
        data_dir: folder with traces.npz.
        raw: take the numbers as they were recorded.
    """

    name = "halfcheetah"
    description = "the next row of a simulated half-cheetah, at every row of windows of 32; needs traces.npz"
    input_size = 17
    output_size = 17
    kind = "regression"
    metrics = ("mse", "mae")
    baseline = "2.308 (LTC), 2.500 (LSTM); 17.5 by the mean, 62.9 by the last row"
    every = True
    length = WINDOW

    def __init__(self, data_dir: str | None = None, raw: bool = False) -> None:
        self.data_dir, self.raw = data_dir, raw

    @property
    def scale(self) -> Tensor | None:
        """The deviations of the training roll-outs."""
        return None if self.raw else torch.from_numpy(self._rollouts[2])

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        traces, mean, deviation = self._rollouts
        scaled = torch.from_numpy(((traces - mean) / deviation).astype(np.float32))
        train, validation, test = (self._windows(scaled[part]) for part in ROLLOUTS)
        return train, validation, test

    @functools.cached_property
    def _rollouts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All roll-outs, and mean and deviation of those of the training set."""
        path = needed(self.name, self.data_dir, FILE)
        traces = read_arrays(path, {"traces": (31, 1000, self.input_size)})["traces"].astype(np.float64)
        rows = traces[ROLLOUTS[0]].reshape(-1, self.input_size)
        if self.raw:
            return traces, np.zeros(self.input_size), np.ones(self.input_size)
        return traces, rows.mean(0), rows.std(0)

    def _windows(self, rollouts: Tensor) -> Series:
        # The published code ends a window before the last row but one.
        starts = torch.arange(0, rollouts.shape[1] - WINDOW - 1, EVERY)
        whole = rollouts[:, starts.unsqueeze(-1) + torch.arange(WINDOW + 1)].flatten(0, 1)
        x = whole[:, :-1]
        return Series(x if self.raw else x.clamp(-FURTHEST, FURTHEST), whole[:, 1:], every=True)
