"""A hopping robot of which some moments are shown; all of them are asked for."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from experiments.tasks.arrays import needed, read_arrays
from experiments.tasks.base import SPLIT_SEED, Splits, Task, positive
from experiments.tasks.series import Series
from experiments.tasks.subsets import Subset
from solvers.errors import InputError

FILE = "trajectories.npz"
VALIDATION_SHARE = TEST_SHARE = 0.1
#: Fewest trajectories that can be divided, and fewest samples of one that has halves.
FEWEST = 10, 2


class Hopper(Task):
    """Trajectories of 14 numbers, evenly spaced, of which a random half of the samples is shown; asked are the values.

    Of ten trajectories eight are for training, one each for validation and test, chosen once by a fixed seed. What is
    shown of each trajectory is the same for every network and every seed of a run. The network is given and asks for
    standardized numbers (mean and deviation of the training trajectories); loss and figures are in the units of the
    file, so that components that move much count most.

    As Y. Rubanova, R. T. Q. Chen, D. Duvenaud, Latent ODEs for irregularly-sampled time series, NeurIPS 2019, section
    4.2. There an extrapolation is judged by what comes later alone (`scored`), the published code shows the first third
    of a trajectory, not its half, samples that are shown are drawn anew in each epoch, and values are less their minima
    and over their maxima, over all 10,000 trajectories: its figures are not those of this file.

    Args:
        data_dir: folder with trajectories.npz, `trajectories` (trajectories, time, numbers).
        ask: "interpolation", samples of the whole trajectory are shown, or "extrapolation", of its first half.
        observed: fraction of these samples that is shown.
        scored: which values are asked for: "all", those that are "unseen", or those "later" than the first half.
        observed_seed: chooses which samples are shown.
    """

    name = "hopper"
    description = "a hopping robot at all times, from random ones or those of its first half; needs trajectories.npz"
    input_size = 14
    output_size = 14
    kind = "regression"
    metrics = ("mse", "mae")
    baseline = "the mean, the last value, a line between the neighbours: reported beside"
    every = True
    gaps = True
    length = 100

    def __init__(
        self,
        data_dir: str | None = None,
        ask: str = "interpolation",
        observed: float = 0.5,
        scored: str = "all",
        observed_seed: int = 0,
    ) -> None:
        self.data_dir, self.ask, self.observed, self.scored = data_dir, ask, observed, scored
        self.observed_seed = positive(self.name, "observed_seed", observed_seed, least=0)
        self.subset = Subset(self.name, ask, observed, scored, observed_seed)

    @property
    def scale(self) -> Tensor | None:
        """The deviations of the training trajectories."""
        return torch.from_numpy(self._trajectories[2])

    @functools.cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the trajectories of each set."""
        count = len(self._read)
        order = np.random.RandomState(SPLIT_SEED).permutation(count)
        held, tested = round(VALIDATION_SHARE * count), round(TEST_SHARE * count)
        train, validation, test = np.split(order, [count - held - tested, count - tested])
        return np.sort(train), np.sort(validation), np.sort(test)

    @functools.cached_property
    def _read(self) -> np.ndarray:
        path = needed(self.name, self.data_dir, FILE)
        read = read_arrays(path, {"trajectories": (None, None, self.input_size)})["trajectories"].astype(np.float64)
        if any(size < least for size, least in zip(read.shape, FEWEST, strict=False)) or not np.isfinite(read).all():
            raise InputError(
                f"{path} holds trajectories of shape {read.shape}, or some of them not finite: expected finite ones, "
                f"{FEWEST[0]} at least with {FEWEST[1]} samples or more"
            )
        return read

    @functools.cached_property
    def _trajectories(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All trajectories, and mean and deviation of those of the training set."""
        rows = self._read[self._parts[0]].reshape(-1, self.input_size)
        deviation = rows.std(0)
        return self._read, rows.mean(0), np.where(deviation > 0, deviation, 1.0)

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        train, validation, test = self._sets
        return train, validation, test

    @functools.cached_property
    def _sets(self) -> tuple[Series, ...]:
        whole, mean, deviation = self._trajectories
        values = torch.from_numpy(((whole - mean) / deviation).astype(np.float32))
        sets = []
        for part in self._parts:
            # The number in the file, whichever set it is in.
            numbers = torch.from_numpy(np.stack((np.zeros_like(part), part), axis=1))
            sets.append(self.subset.of(values[torch.from_numpy(part)], None, None, numbers))
        return tuple(sets)

    def guesses(self, part: int) -> dict[str, Tensor]:
        """The mean, the last value shown, and of an interpolation a line between the neighbours."""
        # The values of the training set are standardized.
        return self.subset.guesses(self._sets[part].whole, torch.zeros(self.input_size))
