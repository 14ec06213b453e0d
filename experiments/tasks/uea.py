"""Labelled series of the UEA and UCR archives, whole or with samples left out at random."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from experiments.tasks import columns
from experiments.tasks.base import Splits, Task, names, positive, stratified
from experiments.tasks.columns import Layout, Recorded
from experiments.tasks.series import Series, collated
from experiments.tasks.subsets import kept
from experiments.tasks.ts_files import PARTS, Labelled, files, read_ts
from neuralosc import Collator
from solvers.errors import InputError, listed, unknown

VALIDATION_SHARE = 0.2
#: How a set is divided: as its archive has it, or as in the papers on state-space models, by the seed of the run.
ARCHIVE, POOLED = "archive", "70/15/15"
#: Where the validation and the test part begin, of all series.
BOUNDS = (0.7, 0.85)
#: Columns of tables of series.
SERIES, TIME, CLASS = "series", "time", "class"


class UEA(Task):
    """Series of one set of the UEA or UCR archive; asked is their class. Lengths may differ, values be missing (NaN).

    The test set is the published one. One in five of the published training series of each class are the validation
    set, chosen once by a fixed seed; the rest is trained on. Values are as measured: the scales of the model are those
    of what the training set has left.

    With `drop` p, floor(p n) of the n samples of each series are removed, in all three sets. Which ones depends on
    `drop_seed`, on the number of the series and on n alone, so that every network and every seed of a run sees the
    same; what goes at one fraction is gone at every larger one. Timespans are then the true gaps in units of the
    original step: 3 where two samples in between were removed. That of the first sample left is 1, whatever went before
    it. Without `drop` samples are one step apart, and there are no timespans.

    Under the protocol "70/15/15" all series are pooled, those that are there twice once, and the seed of a run permutes
    and divides them, without regard to their classes; values are shown as they are. So the papers on neural controlled
    differential equations and state-space models have it (B. Walker et al., Log neural controlled differential
    equations, ICML 2024; T. K. Rusch and D. Rus, LinOSS, ICLR 2025), by the seeds 2345, 3456, 4567, 5678 and 6789.
    Theirs are permutations of JAX's generator, which are not reproduced: compare the means over the seeds.

    Source: A. Bagnall et al., The UEA multivariate time series classification archive, arXiv:1811.00075 (2018);
    H. A. Dau et al., The UCR time series archive, IEEE/CAA J. Autom. Sinica 6 (2019). Samples removed at random as by
    P. Kidger, J. Morrill, J. Foster, T. Lyons, Neural controlled differential equations, NeurIPS 2020.

    Args:
        dataset: name of the set in the archive. Some come with aeon, JapaneseVowels, BasicMotions and
            PickupGestureWiimoteZ among them.
        drop: fraction of the samples of each series that is removed, at least 0 and less than 1.
        drop_seed: chooses which samples are removed.
        classes: the classes in their order, separated by commas; if left out as the files name them.
        protocol: "archive", or "70/15/15".
        clock: a first channel that goes from 0 to 1 over a series, as in the same papers.
        data_dir: folder with NAME/NAME_TRAIN.ts and NAME/NAME_TEST.ts; None for the sets that come with aeon.

    Attributes:
        classes: the labels of the classes, in the order of their numbers.
    """

    name = "uea"
    description = "a set of the UEA or UCR archive by its name, whole or with samples removed at random; needs aeon"
    kind = "classification"
    baseline = "the share of the largest class"
    counted: ClassVar[bool] = True

    def __init__(
        self,
        dataset: str = "JapaneseVowels",
        drop: float = 0.0,
        drop_seed: int = 0,
        classes: str = "",
        protocol: str = ARCHIVE,
        clock: bool = False,
        data_dir: str | None = None,
    ) -> None:
        if not isinstance(dataset, str) or not dataset:
            raise InputError(f"task {self.name!r}: option 'dataset' is {dataset!r}: expected the name of a set")
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1:
            raise InputError(f"task {self.name!r}: option 'drop' is {drop!r}: expected a fraction from 0 to below 1")
        if protocol not in (ARCHIVE, POOLED):
            raise unknown(f"protocol of task {self.name!r}", protocol, (ARCHIVE, POOLED))
        if clock and drop:
            raise InputError(
                f"task {self.name!r}: option 'clock' with samples removed: leave it out, they have timespans"
            )
        self.dataset, self.drop, self.data_dir = dataset, drop, data_dir
        self.protocol, self.clock = protocol, clock
        self.drop_seed = positive(self.name, "drop_seed", drop_seed, least=0)
        self.given_classes = tuple(names("classes", classes))
        self.irregular = drop > 0
        # Numbers of samples are the times.
        self.collator = Collator(unit=1.0, first=1.0) if self.irregular else None

    @functools.cached_property
    def _parts(self) -> tuple[Labelled, Labelled]:
        """The published training and test series."""
        paths = files(self.name, self.data_dir, self.dataset)
        train, test = (read_ts(self.name, path) for path in paths)
        if set(train.classes) != set(test.classes):
            said = f"{listed(train.classes)} and {listed(test.classes)}"
            raise InputError(f"{paths[0]} and {paths[1]} name different classes in their headers: {said}")
        if self.given_classes and set(self.given_classes) != set(train.classes):
            raise InputError(f"--classes are {listed(self.given_classes)}, those of {paths[0]} {listed(train.classes)}")
        expected = train.series[0].shape[1]
        for part, path in zip((train, test), paths, strict=True):
            for one in part.series:
                if one.shape[1] != expected:
                    raise InputError(f"{path} has series of {one.shape[1]} channels: {paths[0]} begins with {expected}")
        return train, test

    @property
    def measured(self) -> bool:  # type: ignore[override]
        """Whether the model has scales."""
        return self.protocol == ARCHIVE

    # mypy takes what is cached for what cannot be set.
    @functools.cached_property
    def input_size(self) -> int:  # type: ignore[override]
        """Channels of the set, and that of the time."""
        return self._parts[0].series[0].shape[1] + self.clock

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
        return self.given_classes or self._parts[0].classes

    def splits(self, seed: int = 0) -> Splits:
        """The three sets, of the archive the same for every `seed`.

        Raises:
            InputError: there is no aeon or no such set, a file is damaged, or there are too few series for a validation
                set.
        """
        labels = np.array([self.classes.index(label) for part in self._parts for label in part.labels])
        published = len(self._parts[0].series)
        if self.protocol == POOLED:
            sets = self.batch(self._kept(), torch.from_numpy(labels)).parts(*self._pooled(seed))
            return sets[0], sets[1], sets[2]
        train, validation, _ = stratified(labels[:published], VALIDATION_SHARE, 0)
        if not len(validation):
            raise InputError(
                f"task {self.name!r}: {self.dataset!r} has no class with three training series or more, and so none is "
                "left for validation: use another set"
            )
        data = self.batch(self._kept(), torch.from_numpy(labels))
        sets = data.parts(train, validation, torch.arange(published, len(data)))
        return sets[0], sets[1], sets[2]

    def _pooled(self, seed: int) -> list[torch.Tensor]:
        """The numbers of the series of each set, of all that differ."""
        every = [one for part in self._parts for one in part.series]
        # As a dictionary keeps the last of a key, the first series of several is that of the reverse order.
        first = {(one.shape, one.tobytes()): number for number, one in reversed(list(enumerate(every)))}
        order = np.random.RandomState(seed).permutation(sorted(first.values()))
        parts = np.split(order, [int(bound * len(order)) for bound in BOUNDS])
        if not all(map(len, parts)):
            raise InputError(
                f"task {self.name!r}: {self.dataset!r} has {len(order)} series that differ, too few for {POOLED}"
            )
        return [torch.from_numpy(part) for part in parts]

    def batch(self, pieces: Sequence[Any], y: torch.Tensor) -> Series:
        """Series with their targets, padded, in double precision."""
        data = collated(pieces, y, self.collator, self.irregular)
        x, lengths = data.whole.x, data.whole.lengths
        whole = lengths is not None and bool((lengths == x.shape[1]).all())
        return Series(*data.whole._replace(lengths=None)) if whole else data

    def read(self, paths: Sequence[Path], channels: int, say: columns.Say) -> list[Recorded]:
        """Series to be answered: of .ts files, whose classes are not looked at, or of tables.

        A table has one row a sample, a column `series` that names its series, the channels in their order and, where
        samples were removed, a column `time`, in steps; without it they are one step apart. A column `class` is left
        out.

        Raises:
            InputError: a file that cannot be used, or another number of channels.
        """
        channels -= self.clock
        tables = [path for path in paths if path.suffix.lower() != ".ts"]
        found = [one for path in paths if path not in tables for one in self._read_ts(path, len(paths) > 1)]
        for path in tables:
            if SERIES not in columns.frames([path], Layout())[0].columns:
                raise InputError(f"{path} has no column {SERIES!r}: expected one that says of which series a row is")
            (table,) = columns.frames([path], Layout(id=SERIES))
            time = TIME if self.irregular and TIME in table.columns else ""
            layout = Layout(id=SERIES, time=time)
            inputs = columns.input_columns(table, dataclasses.replace(layout, targets=(CLASS,)), say)
            if len(inputs) != channels:
                raise InputError(
                    f"{path} has the channels {listed(inputs)}: expected {channels} of them, as in training"
                )
            found += columns.recorded([path], [table], dataclasses.replace(layout, inputs=inputs), say)
        for one in found:
            if one.values.shape[1] != channels:
                raise InputError(f"series {one.name!r} has {one.values.shape[1]} channels: expected {channels}")
        return [dataclasses.replace(one, values=self._timed(one.values)) for one in found]

    def _read_ts(self, path: Path, several: bool) -> list[Recorded]:
        """The series of a file by their numbers, from 1, where there are several files with its name before."""
        begin = f"{path.stem} " if several else ""
        return [
            Recorded(f"{begin}{number}", np.arange(len(one)), one, np.zeros((len(one), 0)))
            for number, one in enumerate(read_ts(self.name, path, labelled=False).series, start=1)
        ]

    def _kept(self) -> list[dict[str, Any]]:
        """What is left of each series, the test series last: the numbers of its samples, and their values."""
        whole = [
            (one, kept(len(one), self.drop, (self.drop_seed, part, number)))
            for part in range(len(PARTS))
            for number, one in enumerate(self._parts[part].series)
        ]
        return [{"times": places, "values": self._timed(one[places])} for one, places in whole]

    def _timed(self, values: np.ndarray) -> np.ndarray:
        """A whole series `(samples, channels)` as it is shown."""
        if not self.clock:
            return values
        return np.column_stack((np.arange(len(values)) / len(values), values))
