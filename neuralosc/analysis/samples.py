"""What an analysis looks at: samples with their targets, and how answers to them are judged one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralosc.data.collate import Batch
from solvers.errors import InputError, unknown


@dataclass(frozen=True)
class Samples:
    """Sequences, and what a model should answer to them.

    Attributes:
        x: `(batch, time, input)`, as measured; NaN where a value is missing.
        y: targets: classes `(batch,)` or numbers `(batch, answers)`; `(batch, time, ...)` of a model that answers at
            every sample. None for what asks nothing of them.
        timespans: time since the sample before, in units of dt, `(time,)` or `(batch, time)`; None where all are 1.
        lengths: valid samples of each sequence, `(batch,)`; None where all are.
    """

    x: Tensor
    y: Tensor | None = None
    timespans: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def of(cls, data: Any) -> Samples:
        """Samples from what holds them: x, a tuple (x, y, timespans, lengths) without its last parts, or a `Batch`.

        Raises:
            InputError: anything else, or parts of which there are not as many.
        """
        if isinstance(data, Batch):
            data = cls(data.x, None, data.timespans, data.lengths)
        elif isinstance(data, Tensor):
            data = cls(data)
        elif isinstance(data, Mapping):
            data = cls(**data)
        elif isinstance(data, tuple) and 1 <= len(data) <= 4:
            data = cls(*data)
        if not isinstance(data, cls) or not isinstance(data.x, Tensor) or data.x.dim() != 3 or not len(data.x):
            given = tuple(data.x.shape) if isinstance(getattr(data, "x", None), Tensor) else type(data).__name__
            raise InputError(
                f"data is {given}, expected x (batch, time, input), a tuple (x, y, timespans, lengths), a "
                "neuralosc.Batch or a neuralosc.analysis.Samples, of one sequence at least"
            )
        for name in ("y", "timespans", "lengths"):
            part = getattr(data, name)
            each = part is not None and not (name == "timespans" and part.dim() == 1)
            if each and len(part) != len(data.x):
                raise InputError(f"{name} has {len(part)} rows, and x {len(data.x)}: expected one for each sequence")
        return data

    def __len__(self) -> int:
        return len(self.x)

    @property
    def inputs(self) -> dict[str, Tensor | None]:
        """The arguments of a call of a network."""
        return {"x": self.x, "timespans": self.timespans, "lengths": self.lengths}

    @property
    def targets(self) -> Tensor:
        """The targets.

        Raises:
            InputError: there are none.
        """
        if self.y is None:
            raise InputError("data has no targets: give (x, y), or (x, y, timespans, lengths)")
        return self.y

    @property
    def valid(self) -> Tensor:
        """Which samples are none of the padding, `(batch, time)`."""
        count, time = self.x.shape[:2]
        if self.lengths is None:
            return torch.ones(count, time, dtype=torch.bool, device=self.x.device)
        return torch.arange(time, device=self.x.device) < self.lengths.to(self.x.device).unsqueeze(-1)

    def double(self) -> Samples:
        """The same with numbers in float64."""
        return self._each(lambda part: part.double() if part.is_floating_point() else part)

    def take(self, count: int | None, seed: int = 0) -> Samples:
        """So many of them, drawn by `seed` and in their order; all of them if there are no more, or count is None."""
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise InputError(f"samples is {count}, expected a whole number of at least 1")
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values
        return self.pick(chosen)

    def pick(self, rows: Tensor | slice) -> Samples:
        """Those at these places."""
        return self._each(lambda part: part[rows])

    def parts(self, size: int) -> Iterator[Samples]:
        """All of them, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.pick(slice(start, start + size))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Samples:
        changed = {}
        for f in dataclasses.fields(self):
            part = getattr(self, f.name)
            shared = f.name == "timespans" and part is not None and part.dim() == 1
            # Timespans that all share have no rows.
            changed[f.name] = None if part is None else self._all(part, change) if shared else change(part)
        return Samples(**changed)  # type: ignore[arg-type]

    def _all(self, part: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        rows = change(part.expand(len(self), -1))
        return rows[0] if len(rows) else part


@dataclass(frozen=True)
class Score:
    """How the answer to each sequence is judged.

    Attributes:
        name: of the mean over sequences.
        each: the answers, the targets and which samples are valid `(batch, time)`, to a number for each sequence.
        better: 1 where more is better, -1 where less is.
        guess: of the same, the score of each sequence under the best constant answer, which looks at no input.
    """

    name: str
    each: Callable[[Tensor, Tensor, Tensor], Tensor]
    better: int
    guess: Callable[[Tensor, Tensor, Tensor], Tensor]

    @classmethod
    def of(cls, score: str | Score | None, targets: Tensor) -> Score:
        """A score by name, or the usual one: of classes the accuracy, of numbers the mean squared error.

        Raises:
            InputError: an unknown name.
        """
        if isinstance(score, cls):
            return score
        if score is None:
            score = "mse" if targets.is_floating_point() else "accuracy"
        if score not in SCORES:
            raise unknown("score", score, SCORES)
        return SCORES[score]


def _over_samples(values: Tensor, valid: Tensor) -> Tensor:
    """The mean for each sequence of one value for each sequence, or one for each sample, `(batch, time)`."""
    if values.dim() == 1:
        return values
    known = valid & ~values.isnan()
    return torch.where(known, values, 0).sum(1) / known.sum(1)


def _hits(answers: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    return _over_samples((answers.argmax(-1) == y).double(), valid)


def _commonest(answers: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    known = y if y.dim() == 1 else y[valid]
    return _over_samples((y == known.mode().values).double(), valid)


def _aligned(answers: Tensor, y: Tensor) -> Tensor:
    """Targets in the shape of the answers; of a Gaussian read-out the first half of these are means."""
    return y.reshape(*answers.shape[:-1], -1)


def _squares(answers: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    y = _aligned(answers, y)
    return _over_samples((answers[..., : y.shape[-1]] - y).square().nanmean(-1), valid)


def _about_the_mean(answers: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    y = _aligned(answers, y)
    mean = (y if y.dim() == 2 else y[valid]).nanmean(0)
    return _over_samples((y - mean).square().nanmean(-1), valid)


SCORES: dict[str, Score] = {
    "accuracy": Score("accuracy", _hits, 1, _commonest),
    "mse": Score("mse", _squares, -1, _about_the_mean),
}

#: Quantile of the normal distribution of a two-sided interval of 95 %.
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Paired:
    """How two columns of scores of the same sequences differ on the mean.

    Attributes:
        difference: the mean of the second less the first.
        low, high: the interval of 95 % of that mean.
        count: sequences.
        p: probability of a difference as large by chance alone: of scores that are 0 or 1 by the exact test of
            McNemar, of others by the normal approximation.
    """

    difference: float
    low: float
    high: float
    count: int
    p: float

    @property
    def apart(self) -> bool:
        """Whether chance alone would hardly give it: p is below 0.01."""
        return self.p < 0.01

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> Paired:
        """Of two columns `(batch,)`; sequences of which either has no score do not count.

        Source: McNemar, Psychometrika 12 (1947), in its exact form, a binomial test on the sequences that differ.
        """
        gap = (second - first).double()
        gap = gap[~gap.isnan()]
        count = len(gap)
        mean = float(gap.mean()) if count else math.nan
        error = float(gap.std(unbiased=True)) / math.sqrt(count) if count > 1 else math.nan
        binary = bool(((gap == 0) | (gap.abs() == 1)).all()) and count > 0
        p = _binomial(int((gap > 0).sum()), int((gap < 0).sum())) if binary else _normal(mean, error)
        if binary and not gap.any():
            # Sequences that never differ say that a difference is rare, not that there is none: the rule of three.
            return cls(0.0, -3.0 / count, 3.0 / count, count, 1.0)
        return cls(mean, mean - Z95 * error, mean + Z95 * error, count, p)


def spread(values: Tensor) -> float:
    """The standard deviation of some values; NaN of one."""
    return float(values.std()) if len(values) > 1 else math.nan


def _binomial(ups: int, downs: int) -> float:
    """Probability of a split as uneven of ups + downs fair throws."""
    count, less = ups + downs, min(ups, downs)
    if not count:
        return 1.0
    tail = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(less + 1)]
    return min(1.0, 2 * math.fsum(math.exp(t - count * math.log(2)) for t in tail))


def _normal(mean: float, error: float) -> float:
    if not error > 0:
        return 1.0 if mean == 0 else 0.0 if error == 0 else math.nan
    return math.erfc(abs(mean) / error / math.sqrt(2))
