"""What is measured in the second day of an intensive-care stay, from the first."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from experiments.tasks.base import Splits
from experiments.tasks.metrics import REGRESSION
from experiments.tasks.physionet2012 import MINUTES_PER_HOUR, PhysioNet2012
from experiments.tasks.stays import PARAMETERS
from neuralosc.layers.inputs import at_last_seen
from solvers.errors import InputError

HOURS = 48


class PhysioNetForecast(PhysioNet2012):
    """Values of 37 parameters in the hours to come, at the minutes in which they were measured.

    The samples, their scale and the three sets are those of `physionet2012`. Of samples from `hours` after admission on
    nothing is shown, and every value that was measured is asked for: such a sample is a time that is asked for, of
    which a network sees when it is, and answers all parameters, of which those count that were measured. Figures are on
    the scale of the values, a mean over all that were measured; beside them stand the mean of each parameter in the
    training set, and the last value that was shown of it.

    As W. Zhang, C. Yin, H. Liu, X. Zhou, H. Xiong, Irregular multivariate time series forecasting: a transformable
    patching graph neural networks approach, ICML 2024, with `--transform range` and the 24 hours of the default. There
    the stays are 12,000, of all three sets of the challenge, 60 % of them for training.

    Args:
        hours: that are shown, 1 to 47.

    Raises:
        InputError: an option that is none.
    """

    name = "physionet2012_forecast"
    description = "what is measured from hour 24 on, from the hours before; needs set A of PhysioNet 2012"
    output_size = len(PARAMETERS)
    kind = REGRESSION
    metrics = ("mse", "mae")
    baseline = "the mean, the last value: reported beside"
    every = True

    def __init__(
        self,
        data_dir: str | None = None,
        division: int = 0,
        static: bool = True,
        running: bool = False,
        transform: str = "standard",
        divider: str = "stratified",
        hours: int = 24,
    ) -> None:
        super().__init__(data_dir, division, static, running, transform, divider)
        if isinstance(hours, bool) or not isinstance(hours, int) or not 0 < hours < HOURS:
            raise InputError(
                f"task {self.name!r}: option 'hours' is {hours!r}: expected a whole number from 1 to {HOURS - 1}"
            )
        self.hours = hours

    def _divided(self, table: np.ndarray, minutes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        late = (minutes >= self.hours * MINUTES_PER_HOUR)[..., None]
        return np.where(late, np.nan, table), np.where(late, table, np.nan)

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: a file is missing or damaged.
        """
        return self._sets

    @functools.cached_property
    def _sets(self) -> Splits:
        return super().splits()

    def guesses(self, part: int) -> dict[str, Tensor]:
        """The mean of each parameter in the training set, and the last value that was shown of it, else the mean."""
        train, data = self._sets[0][:], self._sets[part][:]  # type: ignore[index]
        seen = torch.cat([values.flatten(0, -2) for values in (train.x[..., : len(PARAMETERS)], train.y)])
        valid = torch.cat((train.valid.flatten(), train.valid.flatten()))
        means = seen[valid].nanmean(0).nan_to_num(0.0)
        shown = data.x[..., : len(PARAMETERS)]
        held = at_last_seen(shown, ~shown.isnan() & data.valid.unsqueeze(-1), means)
        return {"mean": means.expand_as(shown), "last value": held}
