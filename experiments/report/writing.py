"""Putting a report together, and writing it: a page, its numbers, and its figures as PDF and PNG."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import figures
from experiments.files import numbered_folder, write_atomically
from experiments.report import drawings
from experiments.report.page import command, page, title
from experiments.report.pairs import SAMPLES, Comparison, comparisons
from experiments.report.runs import Reported, opened
from neuralosc.analysis.results import plain
from solvers.errors import InputError


def report(
    paths: Sequence[Path],
    to: Path | None = None,
    samples: int = SAMPLES,
    progress: Callable[[str, float], None] = lambda what, done: None,
) -> tuple[Reported, list[Comparison], list[Path]]:
    """Report runs.

    Args:
        paths: their folders.
        to: the folder to write, which must be new; a new one in the first run if left out.
        samples: test sequences that are looked at to compare runs by sample; 0 for none.
        progress: called with what is being done and the fraction that is done.

    Returns:
        What the report is of, the comparisons, and the files.

    Raises:
        InputError: no run is left, or the folder cannot be made.
    """
    if to is not None and to.exists():
        raise InputError(f"--out {to} exists already: give another name")
    reported = opened(paths)
    compared, notes = comparisons(reported, samples, progress)
    folder = numbered_folder(reported.runs[0].path, "report") if to is None else _made(to)
    return reported, compared, write(reported, compared, notes, folder)


def _made(to: Path) -> Path:
    try:
        to.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {to} cannot be made: {error.strerror or error}") from error
    return to


def write(reported: Reported, compared: Sequence[Comparison], notes: Sequence[str], folder: Path) -> list[Path]:
    """Write `report.html`, `report.json` and every figure as PNG and PDF into a folder."""
    shown: dict[str, tuple[bytes, str]] = {}
    paths = [folder / "report.html", folder / "report.json"]
    for name, (drawing, about) in drawings.drawings(reported).items():
        found = figures.files(drawing, "png", "pdf")
        shown[name] = found["png"], about
        for kind, content in found.items():
            paths.append(folder / f"{name}.{kind}")
            write_atomically(paths[-1], content)
    write_atomically(paths[0], page(reported, compared, notes, shown).encode())
    write_atomically(paths[1], (json.dumps(plain(_values(reported, compared)), indent=1) + "\n").encode())
    return paths


def _values(reported: Reported, compared: Sequence[Comparison]) -> dict[str, object]:
    groups = [
        {
            "label": group.label,
            "runs": [
                {
                    "run": str(run.path),
                    "seed": run.config.seed,
                    "test": None if run.result is None else run.result.test,
                    "validation": None if run.result is None else run.result.validation,
                    "epochs": len(run.history),
                    "why": run.why,
                    "settings": run.config.to_dict(),
                    "ran_on": run.ran_on,
                    "command": command(run),
                }
                for run in group.runs
            ],
        }
        for group in reported.groups
    ]
    left = [{"run": str(one.path), "why": one.why} for one in reported.left]
    return {"title": title(reported), "metric": reported.metric, "groups": groups, "pairs": compared, "left_out": left}
