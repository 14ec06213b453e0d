"""What runs of a row gave: kept in one file, which every finished run is added to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.files import locked, write_atomically
from experiments.reproduce.rows import Cell, Group, Row
from experiments.tasks.metrics import METRICS
from experiments.train import boosting, history
from experiments.train.boosting import Boosted
from experiments.train.config import RunConfig
from experiments.train.runs import environment
from experiments.train.training import RunResult, device_of
from solvers.errors import InputError

#: Where a run runs, who follows it, and what else is not a setting of its cell.
_ELSEWHERE = ("seed", "data_dir", "device", "threads", "loggers", "initial_weights")


@dataclass(frozen=True)
class Results:
    """The finished runs of a row.

    Attributes:
        path: the file.
        row: what they are runs of.
        epochs: of shortened runs, None where they are as long as the row says.
        cells: by the name of a cell, {"settings", "runs"}; a run is {"seed", "test", "validation", "curve", ..}.
    """

    path: Path
    row: Row
    epochs: int | None
    cells: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path, row: Row, epochs: int | None = None) -> Results:
        """Those in a folder; none where there is no file. Shortened runs have a file of their own.

        Raises:
            InputError: the file is damaged, or of other settings than the row has now.
        """
        path = folder / (f"{row.name}.json" if epochs is None else f"{row.name}-{epochs}-epochs.json")
        if not path.is_file():
            return cls(path, row, epochs, {})
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            cells = values["cells"]
            assert all(isinstance(run["test"][row.metric], float) for cell in cells.values() for run in cell["runs"])
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise InputError(f"{path} holds no results of {row.name}: move it away ({error})") from error
        return cls(path, row, epochs, cells)

    @classmethod
    def every(cls, folder: Path, row: Row) -> list[Results]:
        """All of a row that lie in a folder, the whole runs first."""
        short = []
        for path in folder.glob(f"{row.name}-*-epochs.json"):
            number = path.name.removeprefix(f"{row.name}-").removesuffix("-epochs.json")
            short += [int(number)] if number.isdigit() else []
        whole = [None] if (folder / f"{row.name}.json").is_file() else []
        return [cls.read(folder, row, epochs) for epochs in (*whole, *sorted(short))]

    @cached_property
    def all_cells(self) -> list[Cell]:
        """Those that the row has, run or not."""
        return self.row.cells(self.epochs)

    def runs(self, cell: Cell) -> list[dict[str, Any]]:
        """The runs of a cell, by seed.

        Raises:
            InputError: they had other settings than the cell has now.
        """
        found = self.cells.get(cell.name)
        if found is None:
            return []
        before = _written_out(found["settings"])
        different = [key for key, value in {"stages": [], **settings(cell)}.items() if before[key] != value]
        if different:
            raise InputError(
                f"{self.path}: runs of {cell.name!r} had other settings ({', '.join(different)}): move the file away, "
                "or give --results another folder"
            )
        runs: list[dict[str, Any]] = found["runs"]
        return runs

    def add(self, cell: Cell, seed: int, result: RunResult | Boosted, stages: Sequence[RunResult] = ()) -> None:
        """Add a finished run and write the file, with what other processes have added meanwhile.

        Args:
            cell: which it is of.
            seed: of it.
            result: what it gave.
            stages: what the trainings gave that came before it.
        """
        entry = _entry(cell, seed, result) | ({"stages": [_stage(stage) for stage in stages]} if stages else {})
        with locked(self.path.with_name(f".{self.path.name}.lock"), wait=True):
            self.cells.update(Results.read(self.path.parent, self.row, self.epochs).cells)
            runs = [run for run in self.runs(cell) if run["seed"] != seed] + [entry]
            ran = {"settings": settings(cell), "runs": sorted(runs, key=lambda run: run["seed"])}
            self.cells[cell.name] = {**self.cells.get(cell.name, {}), **ran}
            self._write()

    def loop(self, cell: Cell) -> dict[str, Any]:
        """What a training step of a cell took beside one of the published loop, empty where none was timed."""
        timed: dict[str, Any] = self.cells.get(cell.name, {}).get("loop", {})
        return timed

    def add_loop(self, cell: Cell, timed: dict[str, Any]) -> None:
        """Add such times to a cell that has run, and write the file."""
        with locked(self.path.with_name(f".{self.path.name}.lock"), wait=True):
            self.cells.update(Results.read(self.path.parent, self.row, self.epochs).cells)
            self.cells[cell.name]["loop"] = timed
            self._write()

    def _write(self) -> None:
        values = {"title": self.row.title, "source": self.row.source, "metric": self.row.metric}
        write_atomically(self.path, (json.dumps(values | {"cells": self.cells}, indent=1) + "\n").encode())

    def figures(self, cell: Cell) -> list[float]:
        """The compared figure of each run of a cell."""
        return [run["test"][self.row.metric] for run in self.runs(cell)]

    def curve(self, cell: Cell) -> dict[int, float]:
        """The validation metric after each epoch, a mean over the runs."""
        by_epoch: dict[int, list[float]] = {}
        for run in self.runs(cell):
            for epoch, value in enumerate(run["curve"], 1):
                by_epoch.setdefault(epoch, []).append(value)
        return {epoch: statistics.fmean(values) for epoch, values in by_epoch.items()}

    def of_group(self, group: Group) -> list[float]:
        """What the figure of a group is the mean of: the runs of its cell, or of several cells the means of their runs.

        A group of which a cell has not run has none: a mean over some of the cells is another figure.
        """
        if not self.row.over:
            return self.figures(group.cells[0])
        cells = [self.figures(cell) for cell in group.cells]
        return [statistics.fmean(runs) for runs in cells] if all(cells) else []

    def best(self, network: bool = True) -> tuple[Group, float] | None:
        """The group of networks, or of what is none, with the best mean, and this; None where none has run."""
        groups = [group for group in self.row.groups(self.epochs) if group.network == network]
        means = [(group, statistics.fmean(found)) for group in groups if (found := self.of_group(group))]
        sign = 1 if METRICS[self.row.metric].larger else -1
        return max(means, key=lambda each: sign * each[1], default=None)


def settings(cell: Cell) -> dict[str, Any]:
    """What decides a run besides its seed, where it runs and who follows it."""
    if not cell.network:
        return boosting.settings(cell.config)
    ran, *stages = (
        {key: value for key, value in config.to_dict().items() if key not in _ELSEWHERE}
        for config in (cell.config, *cell.stages)
    )
    return ran | ({"stages": stages} if stages else {})


def _written_out(found: dict[str, Any]) -> dict[str, Any]:
    """Settings that were kept, and those that came later: such a one was its default before."""
    standard = {key: value for key, value in RunConfig().to_dict().items() if key not in _ELSEWHERE}
    return {**standard, **found, "stages": [{**standard, **stage} for stage in found.get("stages", [])]}


def _stage(result: RunResult) -> dict[str, Any]:
    """What a training that came before gave."""
    return {"epochs": result.epochs, "seconds": round(result.seconds, 2), "validation": result.validation}


def _entry(cell: Cell, seed: int, result: RunResult | Boosted) -> dict[str, Any]:
    device = "cpu" if isinstance(result, Boosted) else device_of(cell.config)
    ran_on = environment(device)
    # A run has written down what it ran with; PyTorch's own number is in force again.
    threads = result.threads if isinstance(result, Boosted) else result.folder.config().threads
    return {
        "seed": seed,
        "test": result.test,
        "validation": result.validation,
        "baselines": result.baselines,
        "notices": result.notices,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 2),
        "parameters": result.parameters,
        "curve": [] if isinstance(result, Boosted) else _curve(result),
        "machine": ran_on["device"]["name"],
        "threads": threads,
        "started": ran_on["started"],
        "versions": ran_on["versions"] | (result.versions if isinstance(result, Boosted) else {}),
    }


def _curve(result: RunResult) -> list[float]:
    """The first metric of the validation set after each epoch."""
    records = history.read(result.folder.metrics_file)
    name = f"validation_{history.judged_by(records[0])}"
    return [round(record[name], 6) for record in records]
