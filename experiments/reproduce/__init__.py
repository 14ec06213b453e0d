"""Published results, run again: each a file of settings, run by one command, kept with its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.files import write_atomically
from experiments.reproduce import rows, running, showing
from experiments.reproduce.results import Results
from solvers.errors import InputError


def run(name: str, results: Path, root: Path, count: int | None = None, **settings: Any) -> Results:
    """Run what is lacking of a row, of its first `count` seeds or of all; see `running.reproduce`.

    Raises:
        InputError: there is no such row, or fewer seeds.
    """
    row = rows.row(name)
    if count is not None and not 0 < count <= len(row.seeds):
        raise InputError(f"--seeds {count}: {name} has {len(row.seeds)}, {', '.join(map(str, row.seeds))}")
    return running.reproduce(row, results, root, seeds=row.seeds[:count], **settings)


def publish(results: Results, out: Console) -> None:
    """Print the table of a row, and its curve where one was published."""
    out.print(showing.table(results.row.title, showing.cells(results)))
    if (means := showing.means(results)) is not None:
        out.print(showing.table("in the mean", means))
    if (curve := showing.curve(results)) is not None:
        out.print(showing.table("after each epoch, on the validation set", curve))
    if (loops := showing.loops(results)) is not None:
        out.print(showing.table("training steps beside those of the published loop, measured in turns", loops))
    if results.row.note:
        out.print(results.row.note, markup=False)
    for line in showing.notices(results):
        out.print(line, markup=False)
    out.print(f"Kept: {results.path}", soft_wrap=True, markup=False)


def overview(folder: Path) -> Table:
    """Every row, how much of it was run, and how it compares."""
    return showing.table("published results and ours", showing.overview(folder))


def write_page(folder: Path, path: Path) -> None:
    """Write the page of all results."""
    write_atomically(path, showing.page(folder).encode())
