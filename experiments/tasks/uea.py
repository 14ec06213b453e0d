"""Labelled series of the UEA and UCR archives, whole or with samples left out at random."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from experiments.tasks.base import Splits, Task, positive, stratified
from experiments.tasks.series import Series
from experiments.tasks.ts_files import PARTS, Labelled, files, read_ts
from neuralosc import Collator, Scaler
from solvers.errors import InputError, listed

VALIDATION_SHARE = 0.2


class UEA(Task):
    """Series of one set of the UEA or UCR archive; asked is their class. Lengths may differ, values be missing (NaN).

    The test set is the published one. One in five of the published training series of each class are the validation
    set, chosen once by a fixed seed; the rest is trained on. Channels are standardized by mean and deviation of what
    the training set has left of them.

    With `drop` p, floor(p n) of the n samples of each series are removed, in all three sets. Which ones depends on
    `drop_seed`, on the number of the series and on n alone, so that every network and every seed of a run sees the
    same; what goes at one fraction is gone at every larger one. Timespans are then the true gaps in units of the
    original step: 3 where two samples in between were removed. That of the first sample left is 1, whatever went before
    it. Without `drop` samples are one step apart, and there are no timespans.

    Source: A. Bagnall et al., The UEA multivariate time series classification archive, arXiv:1811.00075 (2018);
    H. A. Dau et al., The UCR time series archive, IEEE/CAA J. Autom. Sinica 6 (2019). Samples removed at random as by
    P. Kidger, J. Morrill, J. Foster, T. Lyons, Neural controlled differential equations, NeurIPS 2020.

    Args:
        dataset: name of the set in the archive. Some come with aeon, JapaneseVowels, BasicMotions and
            PickupGestureWiimoteZ among them.
        drop: fraction of the samples of each series that is removed, at least 0 and less than 1.
        drop_seed: chooses which samples are removed.
        data_dir: folder with NAME/NAME_TRAIN.ts and NAME/NAME_TEST.ts; None for the sets that come with aeon.

    Attributes:
        classes: the labels of the classes, in the order of their numbers.
    """

    name = "uea"
    description = "a set of the UEA or UCR archive by its name, whole or with samples removed at random; needs aeon"
    kind = "classification"
    baseline = "the share of the largest class"

    def __init__(
        self, dataset: str = "JapaneseVowels", drop: float = 0.0, drop_seed: int = 0, data_dir: str | None = None
    ) -> None:
        if not isinstance(dataset, str) or not dataset:
            raise InputError(f"task {self.name!r}: option 'dataset' is {dataset!r}: expected the name of a set")
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1:
            raise InputError(f"task {self.name!r}: option 'drop' is {drop!r}: expected a fraction from 0 to below 1")
        self.dataset, self.drop, self.data_dir = dataset, drop, data_dir
        self.drop_seed = positive(self.name, "drop_seed", drop_seed, least=0)
        self.irregular = drop > 0

    @functools.cached_property
    def _parts(self) -> tuple[Labelled, Labelled]:
        """The published training and test series."""
        paths = files(self.name, self.data_dir, self.dataset)
        train, test = (read_ts(self.name, path) for path in paths)
        if set(train.classes) != set(test.classes):
            said = f"{listed(train.classes)} and {listed(test.classes)}"
            raise InputError(f"{paths[0]} and {paths[1]} name different classes in their headers: {said}")
        expected = train.series[0].shape[1]
        for part, path in zip((train, test), paths, strict=True):
            for one in part.series:
                if one.shape[1] != expected:
                    raise InputError(f"{path} has series of {one.shape[1]} channels: {paths[0]} begins with {expected}")
        return train, test

    # mypy takes what is cached for what cannot be set.
    @functools.cached_property
    def input_size(self) -> int:  # type: ignore[override]
        """Channels of the set."""
        return self._parts[0].series[0].shape[1]

    @functools.cached_property
    def output_size(self) -> int:  # type: ignore[override]
        """Classes of the set."""
        return len(self.classes)

    @functools.cached_property
    def gaps(self) -> bool:  # type: ignore[override]
        """Whether values of the set are missing."""
        return any(bool(np.isnan(one).any()) for part in self._parts for one in part.series)

    @functools.cached_property
    def length(self) -> int:  # type: ignore[override]
        """Samples of the longest series, removed ones included."""
        return max(len(one) for part in self._parts for one in part.series)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels of the classes, in the order of their numbers."""
        return self._parts[0].classes

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, the same for every `seed`.

        Raises:
            InputError: there is no aeon or no such set, a file is damaged, or there are too few series for a validation
                set.
        """
        labels = np.array([self.classes.index(label) for part in self._parts for label in part.labels])
        published = len(self._parts[0].series)
        train, validation, _ = stratified(labels[:published], VALIDATION_SHARE, 0)
        if not len(validation):
            raise InputError(
                f"task {self.name!r}: {self.dataset!r} has no class with three training series or more, and so none is "
                "left for validation: use another set"
            )
        batch = Collator(first=1.0, dtype=torch.float64)(self._kept())
        lengths = None if bool((batch.lengths == batch.x.shape[1]).all()) else batch.lengths
        scaler = Scaler(self.input_size).double().fit(batch.x[train], batch.lengths[train])
        valid = torch.arange(batch.x.shape[1]) < batch.lengths.unsqueeze(-1)
        data = Series(
            scaler(batch.x).masked_fill(~valid.unsqueeze(-1), 0).float(),
            torch.from_numpy(labels),
            batch.timespans.float() if self.irregular else None,
            lengths,
        )
        sets = data.parts(train, validation, torch.arange(published, len(data)))
        return sets[0], sets[1], sets[2]

    def _kept(self) -> list[dict[str, Any]]:
        """What is left of each series, the test series last: the numbers of its samples, and their values."""
        whole = [
            (one, kept(len(one), self.drop, (self.drop_seed, part, number)))
            for part in range(len(PARTS))
            for number, one in enumerate(self._parts[part].series)
        ]
        return [{"times": places, "values": one[places]} for one, places in whole]


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
