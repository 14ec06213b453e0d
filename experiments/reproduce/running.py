"""Running what a row lacks: one run for every cell and seed, each kept as soon as it has finished."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reproduce.loops import beside
from experiments.reproduce.results import Results
from experiments.reproduce.rows import Cell, Row
from experiments.train import boosting, training
from experiments.train.boosting import Boosted
from experiments.train.config import RunConfig
from experiments.train.runs import RunFolder
from experiments.train.training import RunResult
from solvers.errors import InputError


def reproduce(
    row: Row,
    results: Path,
    root: Path,
    data_dir: str | None = None,
    seeds: Sequence[int] = (),
    epochs: int | None = None,
    only: str = "",
    threads: int = 0,
    loop: bool = False,
) -> Results:
    """Run what is not there yet, and return all there is.

    A run that was interrupted, however it ended, goes on where it stopped.

    Args:
        row: what to run.
        results: folder of the results.
        root: folder of the run folders.
        data_dir: folder with the data files, for tasks that need them.
        seeds: those to run, of the row's; all of them if left out.
        epochs: instead of those of the row. Such runs are kept apart.
        only: run the cells alone that have this in their name.
        threads: CPU threads, 0 for PyTorch's choice.
        loop: also time a training step beside one of the published network's own loop, after the runs of a cell.

    Raises:
        InputError: no cell has such a name, the data are missing, or results lie there that had other settings.
        NumericalError: a training broke down.
    """
    cells = [cell for cell in row.cells(epochs) if only in cell.name]
    if not cells:
        raise InputError(f"no cell of {row.name} has {only!r} in its name: expected a part of {_listed(row)}")
    results.mkdir(parents=True, exist_ok=True)
    kept = Results.read(results, row, epochs)
    for cell in cells:
        done = {run["seed"] for run in kept.runs(cell)}
        for seed in seeds or row.seeds:
            if seed not in done:
                here: dict[str, Any] = {"seed": seed, "data_dir": data_dir, "threads": threads}
                if cell.network:
                    *before, run = _staged(cell, here, root, _folder(kept, cell, seed))
                    kept.add(cell, seed, run, before)
                else:
                    kept.add(cell, seed, _boosted(dataclasses.replace(cell.config, **here)))
        if loop and cell.network and not kept.loop(cell):
            kept.add_loop(cell, dataclasses.asdict(beside(cell, data_dir, threads)))
    return kept


def _staged(cell: Cell, here: dict[str, Any], root: Path, name: str) -> list[RunResult]:
    """The trainings of a cell, one after the other, of which the last is its own."""
    done: list[RunResult] = []
    for number, stage in enumerate((*cell.stages, cell.config), 1):
        begun = str(done[-1].folder.path) if done else ""
        folder = name if stage is cell.config else f"{name}-stage-{number}"
        done.append(_run(dataclasses.replace(stage, **here, initial_weights=begun), root, folder))
    return done


def _run(config: RunConfig, root: Path, name: str) -> RunResult:
    if not (root / name / "config.yaml").is_file():
        return training.train(config, root=root, name=name)
    stored = RunFolder.open(root / name).config().to_dict()
    for key, value in config.to_dict().items():
        # What was left to defaults or to the machine is written out in a run.
        if key not in ("data_dir", "device", "threads", "readout", "initial_weights") and not _agree(
            value, stored[key]
        ):
            raise InputError(
                f"run {root / name} has {key} {stored[key]!r}, the row {value!r}: remove its folder, or give --root "
                "another one"
            )
    return training.resume(root / name)


def _boosted(config: RunConfig) -> Boosted:
    """Of so few seconds that nothing of it is kept before its end."""
    result = boosting.train(config)
    print(f"boosting  {result.best_epoch} iterations of {result.epochs}  {result.seconds:.1f} s")
    return result


def _agree(given: Any, stored: Any) -> bool:
    if isinstance(given, dict) and isinstance(stored, dict):
        return all(key in stored and _agree(value, stored[key]) for key, value in given.items())
    return bool(given == stored)


def _folder(kept: Results, cell: Cell, seed: int) -> str:
    """The name of the folder of a run."""
    words = [kept.path.stem, *cell.labels, f"seed {seed}"]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")


def _listed(row: Row) -> str:
    return "; ".join(cell.name for cell in row.cells())
