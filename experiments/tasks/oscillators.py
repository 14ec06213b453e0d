"""Driven, damped oscillators looked at now and then: what their period and damping are, or where they are else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from experiments.tasks.base import Splits, Task, positive
from experiments.tasks.series import Series, batch_of
from experiments.tasks.subsets import QUESTIONS, Subset
from solvers.errors import unknown

PARAMETERS = "parameters"
#: The shortest and the longest period, the least and the largest damping, the shortest and the longest mean gap.
PERIODS, DAMPINGS, GAPS = (4.0, 16.0), (0.05, 0.5), (0.5, 2.0)


class Oscillators(Task):
    """An oscillator that hangs on a moving hook, seen at random times; asked are its period and damping, or its path.

        q'' = w^2 (u(t) - q) - 2 z w q',    u(t) = a cos(v t + phi),    w = 2 pi / P

    A sample is (q, u). Gaps between samples are exponential; their mean is drawn log-uniformly from 1/2 to 2 for each
    sequence, so that counting samples does not tell P: their times are needed. P and the period of u are drawn
    log-uniformly from 4 to 16, z uniformly from 0.05 to 0.5, a from 0.5 to 1, phi from 0 to 2 pi, q(0) and q'(0) / w
    from -1 to 1; the solution is the closed one. Targets are log P and z, less their means and in units of their
    standard deviations: always answering 0 has the mean squared error 1.

    An interpolation or extrapolation shows a fraction of the samples and asks for (q, u) at their times, as `Subset`
    says; loss and figures are in the units of q and u, and means and last values are reported beside.

    Args:
        length: samples in a sequence, at least 2.
        shortest: samples in the shortest sequence; lengths are drawn uniformly from there to `length`; 0 for `length`.
        train_size, validation_size, test_size: sequences in each set.
        ask: "parameters", period and damping; "interpolation", samples of the whole series are shown and its values are
            asked for; "extrapolation", the same with samples of its first half.
        observed: fraction of these samples that is shown.
        scored: which values are asked for: "all", those that are "unseen", or those "later" than the first half.
        observed_seed: chooses which samples are shown.
    """

    name = "oscillators"
    description = "period and damping, or the path, of a driven oscillator seen at random times (from a seed)"
    input_size = 2
    output_size = 2
    kind = "regression"
    metrics = ("mse", "mae")
    baseline = 1.0
    irregular = True

    def __init__(
        self,
        length: int = 50,
        shortest: int = 0,
        train_size: int = 5_000,
        validation_size: int = 1_000,
        test_size: int = 1_000,
        ask: str = PARAMETERS,
        observed: float = 0.5,
        scored: str = "all",
        observed_seed: int = 0,
    ) -> None:
        self.length = positive(self.name, "length", length, least=2)
        self.shortest = positive(self.name, "shortest", shortest, least=0)
        if self.shortest > self.length:
            positive(self.name, "length", length, least=self.shortest)
        self.train_size = positive(self.name, "train_size", train_size)
        self.validation_size = positive(self.name, "validation_size", validation_size)
        self.test_size = positive(self.name, "test_size", test_size)
        if ask not in (PARAMETERS, *QUESTIONS):
            raise unknown(f"question (--ask) of task {self.name!r}", ask, (PARAMETERS, *QUESTIONS))
        self.ask, self.observed, self.scored, self.observed_seed = ask, observed, scored, observed_seed
        # What is wrong with the other options is said whether they are used or not.
        subset = Subset(self.name, QUESTIONS[1] if ask == PARAMETERS else ask, observed, scored, observed_seed)
        self.subset = None if ask == PARAMETERS else subset
        self.every = self.gaps = self.subset is not None
        self._sets: Splits | None = None

    def splits(self, seed: int = 0) -> Splits:
        """Sets with no sequence in common; `seed` chooses the sequences."""
        sizes = (self.train_size, self.validation_size, self.test_size)
        train, validation, test = (self._drawn(size, seed, stream) for stream, size in enumerate(sizes))
        self._sets = train, validation, test
        return self._sets

    def guesses(self, part: int) -> dict[str, Tensor]:
        """Of a path the mean, the last value shown, and of an interpolation a line between the neighbours.

        They are of the sets that were made last.
        """
        if self.subset is None:
            return {}
        sets = self._sets or self.splits()
        means = batch_of(sets[0], slice(None)).y.flatten(0, 1).nanmean(0)
        return self.subset.guesses(batch_of(sets[part], slice(None)), means)

    def path(self, part: int, numbers: Sequence[int], times: np.ndarray, seed: int = 0) -> np.ndarray:
        """Where some oscillators of a set and their hooks truly are, (q, u), at any times.

        Args:
            part: 0, 1 or 2, the training, validation or test set.
            numbers: of the sequences in the set.
            times: at least 0, `(times,)`, or one row for each sequence; the first sample is taken at 0.
            seed: as of `splits`.

        Returns:
            `(sequences, times, 2)`.
        """
        return _path(self._random(max(numbers, default=0) + 1, seed, part)[list(numbers)], np.atleast_2d(times))

    def _random(self, size: int, seed: int, stream: int) -> np.ndarray:
        """Uniform numbers of the first `size` sequences of a stream, of which each takes as many as any other."""
        random = np.random.Generator(np.random.Philox(key=[seed, stream]))
        return random.random((size, 9 + self.length))

    def _drawn(self, size: int, seed: int, stream: int) -> Series:
        """The first `size` sequences of a stream."""
        drawn = self._random(size, seed, stream)
        gaps = -np.log1p(-drawn[:, 9:]) * _logarithmic(drawn[:, 8:9], *GAPS)
        # The first sample is taken at time 0; that its timespan is 1 lets it act.
        times = np.cumsum(np.concatenate((np.zeros((size, 1)), gaps[:, 1:]), axis=1), axis=1)
        spans = np.concatenate((np.ones((size, 1)), gaps[:, 1:]), axis=1)
        period, damping = _logarithmic(drawn[:, :1], *PERIODS), _between(drawn[:, 2:3], *DAMPINGS)
        y = np.concatenate((_standard(np.log(period), *np.log(PERIODS)), _standard(damping, *DAMPINGS)), axis=1)
        x, targets, timespans = (torch.from_numpy(part.astype(np.float32)) for part in (_path(drawn, times), y, spans))
        if not self.shortest:
            return self._asked(x, targets, timespans, None, stream)
        lengths = self.shortest + (drawn[:, 7] * (self.length - self.shortest + 1)).astype(np.int64)
        padding = torch.arange(self.length) >= torch.from_numpy(lengths).unsqueeze(-1)
        x, timespans = x.masked_fill(padding.unsqueeze(-1), 0), timespans.masked_fill(padding, 0)
        return self._asked(x, targets, timespans, torch.from_numpy(lengths), stream)

    def _asked(self, x: Tensor, targets: Tensor, timespans: Tensor, lengths: Tensor | None, stream: int) -> Series:
        """The series with what is asked of them."""
        if self.subset is None:
            return Series(x, targets, timespans, lengths)
        numbers = torch.tensor([(stream, number) for number in range(len(x))])
        return self.subset.of(x, timespans, lengths, numbers)


def _path(drawn: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(q, u) at some times `(sequences, times)` of the oscillators that uniform numbers choose."""
    period, other = _logarithmic(drawn[:, :1], *PERIODS), _logarithmic(drawn[:, 1:2], *PERIODS)
    damping = _between(drawn[:, 2:3], *DAMPINGS)
    hook = (_between(drawn[:, 3:4], 0.5, 1.0), 2 * math.pi / other, 2 * math.pi * drawn[:, 4:5])
    q = position(times, 2 * math.pi / period, damping, hook, 2 * drawn[:, 5:6] - 1, 2 * drawn[:, 6:7] - 1)
    return np.stack((q, hook[0] * np.cos(hook[1] * times + hook[2])), axis=-1)


def position(
    t: np.ndarray,
    w: np.ndarray,
    z: np.ndarray,
    hook: tuple[np.ndarray, np.ndarray, np.ndarray],
    start: np.ndarray,
    speed: np.ndarray,
) -> np.ndarray:
    """q at times t of q'' = w^2 (a cos(v t + phi) - q) - 2 z w q' with q(0) = `start` and q'(0) = w `speed`, for z < 1.

    Args:
        t: times, at least 0.
        w, z: angular frequency without damping, and damping.
        hook: a, v and phi.
        start, speed: at time 0.
    """
    a, v, phi = hook
    # The forced motion is the real part of a complex wave, and what it leaves of the start decays.
    wave = a * np.exp(1j * phi) * w**2 / (w**2 - v**2 + 2j * z * w * v)
    damped = w * np.sqrt(1 - z**2)
    cosine = start - wave.real
    sine = (w * speed - (1j * v * wave).real + z * w * cosine) / damped
    free = np.exp(-z * w * t) * (cosine * np.cos(damped * t) + sine * np.sin(damped * t))
    return free + (wave * np.exp(1j * v * t)).real


def _between(part: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + part * (high - low)


def _logarithmic(part: np.ndarray, low: float, high: float) -> np.ndarray:
    return low * (high / low) ** part


def _standard(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uniform values from low to high, with mean 0 and variance 1."""
    return (values - (low + high) / 2) * math.sqrt(12) / (high - low)
