"""Results as tables for a terminal and as a page: what was reached beside what was published."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from experiments import tables
from experiments.reproduce import rows
from experiments.reproduce.results import Results
from experiments.reproduce.rows import Cell, Row
from experiments.tasks.metrics import METRICS, shown, summary

COMMAND = "python -m experiments reproduce"

PAGE = """# Results

Published results run again. `{command} --page docs/results.md` writes this page from the files in `results/`; each
row is a file of settings in `experiments/reproduce/rows/`. A figure is the mean over the runs of a cell, with the
standard deviation of a sample; one over divisions of the data is the mean over their means, with the deviation of
these. Figures are of the test set, with the weights that were best on the validation set, or those of the last epoch
where a row says so. Boosting is no network: gradient-boosted trees on statistics of each sequence
([irregular.md](irregular.md#training)), stopped by the loss on the validation set. Rows without runs wait for somebody
with the data or the time: their commands are ready.
"""

Grid = tuple[list[str], list[list[str]]]


def overview(folder: Path) -> Grid:
    """Every row: how much of it was run, how far, and how it compares."""
    lines = []
    for name in rows.names():
        row = rows.row(name)
        found = Results.every(folder, row)
        lines += [[name, row.title, *_extent(each), *_compared(each)] for each in found]
        if not found:
            cell = row.cells()[0]
            lines.append([name, row.title, f"0 of {_runs(row)}", str(cell.config.epochs), "", *_others(row)])
    return ["row", "what", "runs", "epochs", "ours", "published", "to reach"], lines


def cells(results: Results) -> Grid:
    """The table of a row: a line for every cell that ran, and what was published below."""
    row, metric = results.row, results.row.metric
    axes = list(row.axes) or [""]
    lines = []
    for cell in results.all_cells:
        runs = results.runs(cell)
        if runs:
            seconds = statistics.fmean(_seconds(run) for run in runs)
            figure = summary(metric, results.figures(cell))
            labels = list(cell.labels) or [cell.config.model]
            parameters = f"{runs[0]['parameters']:,}" if cell.network else ""
            lines.append([*labels, figure, str(len(runs)), f"{seconds:.0f} s", parameters])
    blank = [""] * (len(axes) - 1)
    for name, value in _guesses(results):
        lines.append([f"{name} (no network)", *blank, shown(metric, value), "", "", ""])
    for entry in row.published:
        figure = summary(metric, [entry.value], entry.deviation)
        lines.append([f"{entry.what} (published)", *blank, figure, "", "", ""])
    return [*axes, metric, "runs", "time a run", "parameters"], lines


def _seconds(run: dict[str, Any]) -> float:
    """Of a run and of the trainings that came before it."""
    return float(run["seconds"] + sum(stage["seconds"] for stage in run.get("stages", ())))


def means(results: Results) -> Grid | None:
    """The mean over the axis that is averaged over, of what has run on all of it; None where there is none."""
    row = results.row
    if not row.over:
        return None
    axes = [axis for axis in row.axes if axis != row.over]
    lines = [
        [*group.labels, summary(row.metric, found), str(sum(len(results.runs(cell)) for cell in group.cells))]
        for group in row.groups(results.epochs)
        if (found := results.of_group(group))
    ]
    return ([*axes, f"{row.metric}, mean over {row.over}", "runs"], lines) if lines else None


def loops(results: Results) -> Grid | None:
    """The training steps of an epoch beside those of the published loops; None where none were timed."""
    lines = []
    for cell in results.all_cells:
        if timed := results.loop(cell):
            size = ", ".join(str(timed[name]) for name in ("time", "batch", "hidden", "features"))
            loop, ours = (timed["steps"] * timed[name] for name in ("loop", "ours"))
            where = f"{timed['machine']}, {_count(timed['threads'])}"
            label = cell.name if cell.labels else cell.config.model
            lines.append([label, size, f"{ours:.0f} s", f"{loop:.0f} s", f"{loop / ours:.1f}", where])
    heads = ["network", "(time, batch, hidden, features)", "an epoch's steps", "in the published loop", "ratio", "on"]
    return (heads, lines) if lines else None


def curve(results: Results) -> Grid | None:
    """The validation metric after each epoch beside the published one; None where there is nothing to compare."""
    published = [entry for entry in results.row.published if entry.curve]
    ran = [(cell, found) for cell in results.all_cells if (found := results.curve(cell))]
    if not published or not ran:
        return None
    epochs = sorted({epoch for _, found in ran for epoch in found} | {e for entry in published for e in entry.curve})
    columns = [*(found for _, found in ran), *(entry.curve for entry in published)]
    heads = [
        *(cell.name if cell.labels else "ours" for cell, _ in ran),
        *(f"{entry.what} (published)" for entry in published),
    ]
    lines = [
        [str(epoch), *(shown(results.row.metric, found[epoch]) if epoch in found else "" for found in columns)]
        for epoch in epochs
    ]
    return ["epoch", *heads], lines


def table(title: str, grid: Grid) -> Table:
    """A grid for a terminal."""
    heads, lines = grid
    result = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for number, head in enumerate(heads):
        numeric = number and all(line[number][:1].isdigit() or not line[number] for line in lines)
        # The first is what a reader types.
        result.add_column(head, justify="right" if numeric else "left", overflow="fold", no_wrap=not number)
    for line in lines:
        result.add_row(*line)
    return result


def markdown(grid: Grid) -> str:
    """A grid as Markdown."""
    return tables.markdown(table("", grid))


def page(folder: Path) -> str:
    """The page of all results in a folder."""
    parts = [PAGE.format(command=COMMAND), markdown(overview(folder)), ""]
    for name in rows.names():
        row = rows.row(name)
        for results in Results.every(folder, row):
            parts += _section(results)
    return "\n".join(parts).rstrip() + "\n"


def _section(results: Results) -> Iterable[str]:
    row, epochs = results.row, results.epochs
    short = "" if epochs is None else f", {epochs} epoch{'s' * (epochs > 1)}"
    yield f"## {row.title}{short}\n"
    yield f"{row.source}. {row.note}".strip() + "\n"
    yield f"    {COMMAND} {row.name}{'' if epochs is None else f' --epochs {epochs}'}\n"
    if (found := means(results)) is not None:
        yield markdown(found) + "\n"
    yield markdown(cells(results)) + "\n"
    if (found := curve(results)) is not None:
        yield f"{METRICS[results.row.metric].title} of the validation set after each epoch:\n"
        yield markdown(found) + "\n"
    if (found := loops(results)) is not None:
        yield "Training steps (forward and backward) beside the published loop, measured in turns by `--loop`:\n"
        yield markdown(found) + "\n"
    for line in notices(results):
        yield f"{line[:1].upper()}{line[1:]}.\n"
    yield f"Run on {_machines(results)}.\n"


def notices(results: Results) -> list[str]:
    """What tasks had to say of the data of the runs, each once."""
    runs = [run for cell in results.all_cells for run in results.runs(cell)]
    return list(dict.fromkeys(line for run in runs for line in run.get("notices", [])))


def _machines(results: Results) -> str:
    runs = [run for cell in results.all_cells for run in results.runs(cell)]
    places = {f"{run['machine']}, {_count(run['threads'])}, {_software(run['versions'])}" for run in runs}
    return "; ".join(sorted(places))


def _software(versions: dict[str, str]) -> str:
    """What computed it: scikit-learn is kept where it did."""
    name = "scikit-learn" if "scikit-learn" in versions else "torch"
    return f"{name} {versions[name]}"


def _count(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads != 1)


def _guesses(results: Results) -> list[tuple[str, float]]:
    """Answers that need no network, of the first run that has them."""
    for cell in results.all_cells:
        for run in results.runs(cell):
            if found := run.get("baselines", {}):
                metric = results.row.metric
                return [(name, figures[metric]) for name, figures in found.items() if metric in figures]
    return []


def _runs(row: Row) -> int:
    return len(row.cells()) * len(row.seeds)


def _extent(results: Results) -> list[str]:
    done = sum(len(results.runs(cell)) for cell in results.all_cells)
    return [f"{done} of {_runs(results.row)}", _epochs(results.row, results.all_cells)]


def _epochs(row: Row, shown_cells: Sequence[Cell]) -> str:
    """Epochs of the runs, and of those of the row where they are fewer."""
    ran, whole = shown_cells[0].config.epochs, row.cells()[0].config.epochs
    return str(whole) if ran == whole else f"{ran} of {whole}"


def _compared(results: Results) -> list[str]:
    """The best figure, of networks and of what is none, beside what there is to compare it with."""
    shown_groups = []
    for best in (results.best(), results.best(network=False)):
        if best is not None:
            group, _ = best
            which = f" ({group.name})" if group.labels else ""
            shown_groups.append(summary(results.row.metric, results.of_group(group)) + which)
    return ["; ".join(shown_groups), *_others(results.row, results.epochs)]


def _others(row: Row, epochs: int | None = None) -> list[str]:
    """The first published figure, also that after as many epochs where they are fewer, and what is to be reached."""
    metric = row.metric
    first = row.published[0] if row.published else None
    published = "" if first is None else f"{summary(metric, [first.value], first.deviation)} ({first.what})"
    if first is not None and epochs is not None and epochs in first.curve:
        published += f"; {shown(metric, first.curve[epochs])} after {epochs}"
    better = "at least" if METRICS[metric].larger else "at most"
    return [published, "" if row.reach is None else f"{better} {shown(metric, row.reach)}"]
