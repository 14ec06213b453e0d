"""The runs of a study: what they were trained under, their data, and the trainings that are missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import solvers
from experiments import Loaded, load, own
from experiments.tasks.series import batch_of
from experiments.train import training
from experiments.train.feeding import told
from experiments.train.runs import RunFolder
from neuralosc import SequenceModel
from neuralosc.analysis.samples import Samples
from solvers.errors import InputError


@dataclass(frozen=True)
class Studied:
    """The runs of a study.

    Attributes:
        runs: the first is the one whose parts are looked at.
        paths: their folders.
    """

    runs: tuple[Loaded, ...]
    paths: tuple[Path, ...]

    @property
    def first(self) -> Loaded:
        """The run whose parts are looked at."""
        return self.runs[0]

    @property
    def model(self) -> SequenceModel:
        """Its model."""
        return self.first.model

    def samples(self, split: str) -> Samples:
        """A split of its data, as its model is given them."""
        data = self.first.splits[training.SPLITS.index(split)]
        batch = told(batch_of(data, slice(None)), self.first.config.time)
        return Samples(*batch)

    @property
    def rows(self) -> dict[str, list[SequenceModel]]:
        """The models of a transfer matrix: rows by what they were trained under, in each one model for each seed."""
        found: dict[str, list[SequenceModel]] = {}
        for run in self.runs:
            found.setdefault(_trained_under(run), []).append(run.model)
        return found


def opened(paths: Sequence[Path]) -> Studied:
    """The runs in these folders.

    Raises:
        InputError: no run, or runs of which the data are not the same.
    """
    runs = tuple(load(path) for path in paths)
    for path, run in zip(paths, runs, strict=True):
        training.require_same_data(path, run.config, run.task)
        for name in ("task", "task_options", "time"):
            one, other = (getattr(r.config, name) for r in (runs[0], run))
            if one != other:
                raise InputError(
                    f"run {path} has {name} {other!r}, and run {paths[0]} {one!r}: a study is of runs on the same data"
                )
        # What one of them was tested on another may have been trained on: only of tasks here is that known not to be.
        if own.is_own(run.config.task) and run.config.seed != runs[0].config.seed:
            raise InputError(
                f"run {path} has seed {run.config.seed}, and run {paths[0]} {runs[0].config.seed}: of a task of one's "
                "own it is not known whether the seed divides its data"
            )
    return Studied(runs, tuple(paths))


def _trained_under(run: Loaded) -> str:
    """The solver with its steps; what else a run differs in stands before it."""
    choices = getattr(run.rnn, "choices", None)
    if choices is None:
        return run.config.network
    chosen = choices()
    name = solvers.get(chosen["solver"]).name
    return name if chosen["substeps"] == 1 else f"{name} x{chosen['substeps']}"


def with_missing(studied: Studied, names: Sequence[str], seeds: int, report: Callable[[str], None]) -> Studied:
    """The runs, and those that must still be trained: the first one under each of these solvers, with so many seeds.

    The new folders lie beside the first. A run that is there already from another study is used again.

    Raises:
        InputError: an unknown solver, or seeds below 1.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: expected a whole number of at least 1")
    config, root = studied.first.config, studied.paths[0].absolute().parent
    trained = _trained_under(studied.first)
    wanted = list(dict.fromkeys([trained, *(solvers.get(name).name for name in names)]))
    have = {(_trained_under(run), run.config.seed) for run in studied.runs}
    runs, paths = list(studied.runs), list(studied.paths)
    for name in wanted:
        for number in range(seeds):
            seed = config.seed + number
            if (name, seed) in have:
                continue
            path = root / f"{studied.paths[0].name}-under-{name.replace(' ', '-')}-seed-{seed}"
            options = config.model_options if name == trained else {**config.model_options, "solver": name}
            changed = dataclasses.replace(config, model_options=options, seed=seed)
            if not _finished(path):
                report(f"training under {name}, seed {seed}")
                training.train(changed, root=root, name=path.name, progress=False)
            runs.append(load(path))
            paths.append(path)
    return Studied(tuple(runs), tuple(paths))


def _finished(path: Path) -> bool:
    if not path.exists():
        return False
    result = RunFolder.open(path).result()
    if result is None or result["status"] != "finished":
        raise InputError(f"run {path} is there and is not finished: `train --resume {path}` first, or remove it")
    return True
