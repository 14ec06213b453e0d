"""The runs of a report: what is in their folders, which are left out and why, and which differ in their seed alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments import own
from experiments.train import history, outcome
from experiments.train.checkpoints import MOVABLE, flat
from experiments.train.config import ENVIRONMENT, RunConfig, read_yaml
from experiments.train.history import Record
from experiments.train.outcome import RunResult
from experiments.train.runs import RunFolder
from solvers.errors import InputError

#: What makes no other experiment of a run: its seed, and where it ran.
ALIKE = ("seed", "threads", *MOVABLE)
#: What decides on which samples figures were measured.
DATA = ("task", "task_options", "limit_evaluation_batches")
#: What decides what the loss is.
LOSS = ("class_weights", "likelihood")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        path: its folder.
        config: its configuration, with all that was left to defaults written out.
        ran_on: versions, device, time and command line of its start.
        history: the figures of every epoch.
        result: how it ended; None of one that has not finished.
        why: why it has no result; empty if it has.
    """

    path: Path
    config: RunConfig
    ran_on: Mapping[str, Any]
    history: list[Record]
    result: RunResult | None
    why: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its name."""
        return flat(self.config)

    @property
    def kind(self) -> tuple[tuple[str, str], ...]:
        """All settings but those in which runs of one kind may differ."""
        return tuple((name, repr(value)) for name, value in self.settings.items() if name not in ALIKE)


@dataclass(frozen=True)
class Left:
    """A run that is not in the report, or not in all of it, and why."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        label: in what they differ from others.
        runs: by seed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> dict[int, RunResult]:
        """The results of those that have finished, by seed."""
        return {run.config.seed: run.result for run in self.runs if run.result is not None}

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Mean, and standard deviation of a sample, of a figure after each epoch that all finished runs have."""
        columns = [[record[name] for record in run.history] for run in self.runs if run.result is not None]
        each = list(zip(*columns, strict=False))
        return [statistics.fmean(values) for values in each], [deviation(values) for values in each]


@dataclass(frozen=True)
class Reported:
    """What a report is of.

    Attributes:
        groups: runs on the same data, in the order in which they were given.
        left: what is left out of all or part of it.
    """

    groups: tuple[Group, ...]
    left: tuple[Left, ...]

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for group in self.groups for run in group.runs]

    @property
    def metric(self) -> str:
        """The figure by which epochs and runs are judged."""
        return history.judged_by(self.runs[0].history[0])

    @property
    def one_loss(self) -> bool:
        """Whether the loss of all of them is the same function."""
        return len({tuple(getattr(run.config, name) for name in LOSS) for run in self.runs}) == 1


def opened(paths: Sequence[Path]) -> Reported:
    """The runs in these folders.

    Raises:
        InputError: nothing is left of them that a report could be of.
    """
    runs: list[Run] = []
    left: list[Left] = []
    for path in paths:
        try:
            run = _read(path)
            _require_fitting(run, runs)
        except InputError as error:
            left.append(Left(path, str(error)))
            continue
        runs.append(run)
    runs, doubled = _once(runs)
    left += doubled
    if not runs:
        raise InputError(f"none of these can be reported: {'; '.join(map(str, left))}")
    left += [Left(run.path, run.why) for run in runs if run.result is None]
    return Reported(tuple(_grouped(runs)), tuple(left))


def _read(path: Path) -> Run:
    folder = RunFolder.open(path)
    config, ran_on = folder.config(), read_yaml(folder.config_file).get(ENVIRONMENT)
    if not folder.metrics_file.is_file():
        raise InputError(f"it has no {folder.metrics_file.name}: no epoch was finished")
    records, ended = history.read(folder.metrics_file), folder.result()
    result, why = None, ""
    if ended is not None and ended["status"] == "finished":
        result = outcome.ended(folder, ended)
        if result.epochs != len(records):
            raise InputError(f"{folder.metrics_file.name} has {len(records)} epochs, and its result {result.epochs}")
    else:
        state = "killed, or still running," if ended is None else ended["status"]
        why = f"{state} after epoch {len(records)} of {config.epochs}: its curve is shown, and in no mean or table"
    return Run(path, config, ran_on if isinstance(ran_on, dict) else {}, records, result, why)


def _require_fitting(run: Run, others: Sequence[Run]) -> None:
    """Refuse a run on other data than those before it, or one that is among them."""
    if not others:
        return
    first = others[0]
    for name in DATA:
        here, there = getattr(run.config, name), getattr(first.config, name)
        if here != there:
            raise InputError(
                f"it has {name} {here!r}, and {first.name} {there!r}: a report is of runs on the same data"
            )
    if any(run.path.resolve() == other.path.resolve() for other in others):
        raise InputError("it is given twice")


def _once(runs: Sequence[Run]) -> tuple[list[Run], list[Left]]:
    """Runs without repetitions, which would make a spread over seeds smaller than it is; finished ones stay."""
    kept: dict[Any, Run] = {}
    left = []
    for run in runs:
        key = (run.kind, run.config.seed)
        other = kept.get(key)
        if other is None:
            kept[key] = run
            continue
        stays, goes = (run, other) if other.result is None and run.result is not None else (other, run)
        kept[key] = stays
        left.append(Left(goes.path, f"it has the settings and the seed of {stays.name}: such are counted once"))
    return list(kept.values()), left


def _grouped(runs: Sequence[Run]) -> list[Group]:
    kinds: dict[Any, list[Run]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    labels = _labels([members[0] for members in kinds.values()])
    return [
        Group(label, tuple(sorted(members, key=lambda run: run.config.seed)))
        for label, members in zip(labels, kinds.values(), strict=True)
    ]


def _labels(firsts: Sequence[Run]) -> list[str]:
    """The network of each, and of what else differs as much as tells them apart."""
    labels = [own.short(run.config.network) for run in firsts]
    for name in differing(run.settings for run in firsts):
        if len(set(labels)) == len(labels):
            break
        if name in ("model", "field", *ALIKE):
            continue
        more = [
            f"{label}, {name.rpartition('.')[2]} {run.settings[name]}" if name in run.settings else label
            for label, run in zip(labels, firsts, strict=True)
        ]
        if len(set(more)) > len(set(labels)):
            labels = more
    return [label if labels.count(label) == 1 else f"{label} ({number})" for number, label in enumerate(labels, 1)]


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; NaN of one value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def differing(all_of_them: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of values that are not the same in all, or that not all have."""
    several = list(all_of_them)
    names = dict.fromkeys(name for values in several for name in values)
    texts = [{name: repr(value) for name, value in values.items()} for values in several]
    return [name for name in names if len({values.get(name) for values in texts}) > 1]
