"""A comparison as a table to read, as files to work with and as figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.compare import figures
from experiments.compare.comparison import CONFIRMED_SAMPLES, Comparison, Measurement
from experiments.files import numbered_folder, write_atomically
from experiments.tasks.metrics import parted
from experiments.tasks.metrics import shown as number
from experiments.train.training import RunResult
from neuralosc.analysis.results import plain

COLUMNS = (
    "part",
    "solver",
    "substeps",
    "options",
    "role",
    "metric",
    "half_width",
    "deviation",
    "order",
    "evaluations",
    "seconds",
    "samples",
    "reason",
)


def publish(comparison: Comparison, folder: Path, out: Console, draw: bool = True) -> list[Path]:
    """Print the table, what could not run and what follows; write files and figures into `folder`.

    Args:
        comparison: what to show.
        folder: an existing folder.
        out: where to print.
        draw: whether to draw the figures.

    Returns:
        The paths of what was written.
    """
    out.print()
    out.print(table(comparison))
    notes = [f"{row.contender.label} did not run: {row.reason}" for row in comparison.rows if row.reason]
    for note in (*notes, finding(comparison)):
        if note:
            out.print(Text(note), soft_wrap=True)
    return [*write(comparison, folder), *(figures.draw(comparison, folder) if draw else ())]


def new_folder(run: Path) -> Path:
    """A new folder in the run for one comparison; earlier ones stay."""
    return numbered_folder(run, "comparison")


def table(comparison: Comparison) -> Table:
    """The solvers, one a row, and the reference at the end."""
    c = comparison
    result = Table(
        title=f"{c.model} on {c.task}: the trained weights under each solver",
        caption=caption(c),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    result.add_column("solver", no_wrap=True)
    result.add_column("substeps or rtol", justify="right")
    for heading in (c.metric_name, "states off", "order", "evaluations", "time"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("", no_wrap=True)
    for row in c.rows:
        result.add_row(*_cells(row, c.metric_name), row.contender.role, style="bold" if row.contender.role else "")
    result.add_section()
    result.add_row(*_cells(c.reference, c.metric_name), "reference", style="dim")
    return result


def caption(comparison: Comparison) -> str:
    """What the columns of the table mean."""
    c = comparison
    which = f"all {c.samples} {c.split} samples"
    if c.samples < c.available:
        which = f"{c.samples} of {c.available} {c.split} samples, drawn at random"
    reference = f"{c.reference.contender.label}, checked on {CONFIRMED_SAMPLES} samples"
    return (
        f"On {which}, in float64. States off: from those of the reference solution ({reference}), relative RMS. Order: "
        "observed between this step and half of it. Evaluations: of the right-hand side, per sequence. Time: for all "
        "samples."
    )


def finding(comparison: Comparison) -> str:
    """What the comparison says in a sentence: whether an equation was learnt, or a step."""
    return str(comparison.verdict)


def _cells(row: Measurement, metric_name: str) -> list[str]:
    name = [row.contender.solver, row.contender.steps]
    if row.reason:
        return [*name, "-", "-", "-", "-", "-"]
    assert row.metric is not None
    assert row.evaluations is not None and row.seconds is not None
    return [
        *name,
        number(metric_name, row.metric),
        "-" if row.deviation is None else f"{row.deviation:.1e}",
        "-" if row.order is None else f"{row.order:.2f}",
        f"{row.evaluations:,.0f}",
        f"{row.seconds:.2f} s",
    ]


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every measurement as CSV and JSON."""
    parts = (("table", comparison.rows), ("sweep", comparison.sweep), ("reference", (comparison.reference,)))
    records = [{"part": part, **_record(row)} for part, rows in parts for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({**record, "options": json.dumps(record["options"])})
    about = {key: value for key, value in vars(comparison).items() if isinstance(value, str | int | float | None)}
    about["verdict"] = plain(comparison.verdict)
    paths = [folder / "comparison.csv", folder / "comparison.json"]
    write_atomically(paths[0], text.getvalue().encode())
    write_atomically(paths[1], (json.dumps({**about, "measurements": records}, indent=2) + "\n").encode())
    return paths


def _record(row: Measurement) -> dict[str, Any]:
    values = asdict(row)
    contender = values.pop("contender")
    return {**contender, **values}


def result_table(result: RunResult) -> Table:
    """How a training run ended."""
    grid = _pairs(f"run {result.folder.path}")
    grid.add_row("kept epoch", f"{result.best_epoch} of {result.epochs}")
    grid.add_row("validation", _figures(_whole(result.validation)))
    _add_parted(grid, "test", result.test)
    for name, values in result.baselines.items():
        _add_parted(grid, f"  {name}", values)
    grid.add_row("parameters", f"{result.parameters:,}")
    grid.add_row("time", f"{result.seconds:.1f} s")
    return grid


def _figures(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {number(name, value)}" for name, value in values.items())


def _whole(values: Mapping[str, float]) -> dict[str, float]:
    """The figures of all outputs."""
    return {name: value for name, value in values.items() if not parted(name)[1]}


def _of_each(values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of single outputs, by output."""
    found: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        metric, output = parted(name)
        if output:
            found.setdefault(output, {})[metric] = value
    return found


def _add_parted(grid: Table, label: str, values: Mapping[str, float]) -> None:
    """A row with the figures of all outputs, and one for each single output."""
    grid.add_row(label, _figures(_whole(values)))
    indent = " " * (len(label) - len(label.lstrip()) + 2)
    for output, figures_ in _of_each(values).items():
        grid.add_row(f"{indent}{output}", _figures(figures_))


def figures_table(values: Mapping[str, Any]) -> Table:
    """What an evaluation found."""
    grid = _pairs("evaluation")
    single = _of_each(values)
    for name, value in values.items():
        if value is None or parted(name)[1]:
            continue
        if name == "seconds":
            for output, figures_ in single.items():
                grid.add_row(f"  {output}", _figures(figures_))
        if isinstance(value, Mapping):
            for what, figures_ in value.items():
                _add_parted(grid, f"  {what}", figures_)
            continue
        shown = (
            f"{value:.1f} s" if name == "seconds" else number(name, value) if isinstance(value, float) else str(value)
        )
        grid.add_row(name, shown)
    return grid


def _pairs(title: str) -> Table:
    grid = Table(title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    return grid


def print_paths(out: Console, paths: Sequence[Path]) -> None:
    """Print paths, one a line, unbroken so that they can be copied."""
    for path in paths:
        out.print(Text(f"  {path}"), soft_wrap=True)
