"""What the commands share: the application, where results are printed, and options that many have."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.command import parsers

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 120},
    help="Recurrent networks as ODEs: train one, swap its solver, see what changes.",
)


def console() -> Console:
    """Where results are printed: as wide as the terminal, 120 columns elsewhere; colours in a terminal only."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    # With a height too: rich takes a width alone for a wish, and falls back to 80 where TERM is dumb.
    columns = os.environ.get("COLUMNS", "")
    return Console(width=int(columns) if columns.isdigit() else 120, height=40, highlight=False)


@contextmanager
def progress_of(out: Console, what: str) -> Iterator[Callable[[str, float], None]]:
    """A bar for work that reports what it is doing and the fraction done; silent outside a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda doing, done: bar.update(task, description=doing, completed=done)


def names_option(flag: str, text: str) -> Any:
    """An option of names, separated by commas."""
    return typer.Option(flag, parser=parsers.names, metavar="NAME[,...]", help=text)


def number_option(flag: str, text: str) -> Any:
    """An option of a whole number."""
    return typer.Option(flag, parser=parsers.whole_number, metavar="N", help=text)


def numbers_option(flag: str, text: str) -> Any:
    """An option of whole numbers, separated by commas."""
    return typer.Option(flag, parser=parsers.whole_numbers, metavar="N[,...]", help=text)


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/digits-cornn-001.")]
RootOption = Annotated[
    Path, typer.Option("--root", metavar="PATH", help="Folder of the run folders.", rich_help_panel="Output")
]
SplitOption = Annotated[str, typer.Option("--split", metavar="NAME", help="train, validation or test.")]
