"""Series of which a part of the samples is shown, and all or some of the values are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.tasks.series import Batch, Series
from solvers.errors import InputError, unknown

#: What may be shown: samples of the whole of a series, or of its first half.
QUESTIONS = ("interpolation", "extrapolation")
#: Where an answer counts: everywhere, where nothing is shown, or in the second half.
SCORED = ("all", "unseen", "later")


@dataclass(frozen=True)
class Subset:
    """Which samples of a series are shown, and where its values are asked for.

    Every sample stays in its place and keeps its timespan; of one that is not shown all values are NaN, as of a missing
    one. So a time that is asked for is a sample of which nothing is seen, before the last observation as after it, and
    a network answers at "every" sample. What it answers there follows from what was shown before; a bidirectional
    network has seen what comes after it, too. At a sample that is shown it has seen the value that is asked for.

    Attributes:
        task: name of the task, for messages.
        question: "interpolation", of the whole series samples are shown; "extrapolation", of its first half alone (of
            an odd number of samples the smaller half).
        observed: fraction of these samples that is shown, above 0 and up to 1; one sample is shown at least.
        scored: "all" values are asked for; those that are "unseen"; or those "later", in the second half.
        seed: chooses which samples are shown.

    Raises:
        InputError: a value that cannot be used.
    """

    task: str
    question: str
    observed: float = 0.5
    scored: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        about = f"task {self.task!r}: option"
        if self.question not in QUESTIONS:
            raise unknown(f"question (--ask) of task {self.task!r}", self.question, QUESTIONS)
        if isinstance(self.observed, bool) or not isinstance(self.observed, int | float) or not 0 < self.observed <= 1:
            raise InputError(f"{about} 'observed' is {self.observed!r}: expected a fraction above 0, up to 1")
        if self.scored not in SCORED:
            raise unknown(f"value of option 'scored' of task {self.task!r}", self.scored, SCORED)
        if self.scored == "later" and self.question == "interpolation":
            raise InputError(f"{about} 'scored' is 'later', and of an interpolation nothing is: --ask extrapolation")
        if self.scored == "unseen" and self.observed == 1 and self.question == "interpolation":
            raise InputError(f"{about} 'observed' is 1, and so nothing is unseen: expected less")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"{about} 'observed_seed' is {self.seed!r}: expected a whole number of at least 0")

    def of(self, values: Tensor, timespans: Tensor | None, lengths: Tensor | None, numbers: Tensor) -> Series:
        """The series as a data set that asks for its values.

        Args:
            values: `(number, time, features)`.
            timespans, lengths: as of `Series`.
            numbers: two numbers of each series, that of its set and its own, `(number, 2)`: which samples are shown
                depends on these, on its length and on the seed alone.
        """
        count, time = values.shape[:2]
        whole = torch.full((count,), time) if lengths is None else lengths
        places = torch.arange(time)
        shown = torch.zeros(count, time, dtype=torch.bool)
        for row, length, key in zip(shown, whole.tolist(), numbers.tolist(), strict=True):
            row[torch.from_numpy(kept(self._candidates(length), 1 - self.observed, (self.seed, *key)))] = True
        asked = torch.ones_like(shown)
        if self.scored == "unseen":
            asked = ~shown
        elif self.scored == "later":
            asked = places >= torch.tensor([self._candidates(length) for length in whole.tolist()]).unsqueeze(-1)
        asked &= places < whole.unsqueeze(-1)
        x, y = (torch.where(part.unsqueeze(-1), values, math.nan) for part in (shown, asked))
        if lengths is not None:
            x = x.masked_fill((places >= whole.unsqueeze(-1)).unsqueeze(-1), 0)
        return Series(x, y, timespans, lengths, every=True)

    def _candidates(self, length: int) -> int:
        """So many samples, the first ones of a series, may be shown."""
        return length if self.question == "interpolation" else max(1, length // 2)

    def guesses(self, batch: Batch, means: Tensor) -> dict[str, Tensor]:
        """Answers without a network, by name: the mean, the last value shown, and, of an interpolation, a line.

        Args:
            batch: series that `of` made.
            means: of the features in the training set, `(features,)`.
        """
        shown = ~batch.x.isnan().all(-1)
        if batch.valid is not None:
            shown &= batch.valid
        answers = means.to(batch.x).expand_as(batch.x)
        before = torch.where(shown, torch.arange(shown.shape[1]), -1).cummax(1).values
        held = torch.take_along_dim(batch.x, before.clamp_min(0).unsqueeze(-1), 1)
        found = {"mean": answers, "last value": torch.where(before.unsqueeze(-1) >= 0, held, answers)}
        if self.question == "interpolation":
            found["line between the neighbours"] = _lines(batch, shown)
        return found


def _lines(batch: Batch, shown: Tensor) -> Tensor:
    """Straight lines from each sample that is shown to the next; before the first and after the last its value."""
    spans = torch.ones(shown.shape) if batch.timespans is None else batch.timespans
    times, values = spans.double().cumsum(1).numpy(), batch.x.double().numpy()
    answers = np.empty_like(values)
    for answer, time, value, seen in zip(answers, times, values, shown.numpy(), strict=True):
        for channel in range(value.shape[1]):
            answer[:, channel] = np.interp(time, time[seen], value[seen, channel])
    return torch.from_numpy(answers).to(batch.x)


def kept(length: int, drop: float, key: tuple[int, ...]) -> np.ndarray:
    """The places of the samples of one series that are left, in order; one at least.

    Each sample draws a number, and the floor(drop length) with the least ones are removed.

    Args:
        length: samples of the series, at least 1.
        drop: the fraction that is removed, at least 0 and less than 1.
        key: numbers that choose what is drawn.
    """
    # 0.29 * 100 is a little less than 29.
    removed = min(math.floor(drop * length + 1e-9), length - 1)
    drawn = np.random.Generator(np.random.Philox(key)).random(length)
    return np.sort(np.argsort(drawn, kind="stable")[removed:])
