"""`report`: what runs gave, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.command.app import app, console, number_option, progress_of


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs on the same data.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="The folder to write; must be new. In the first run if left out."),
    ] = None,
    samples: Annotated[
        int, number_option("--samples", "Test sequences by which runs are compared one by one; 0 for none.")
    ] = 500,
) -> None:
    """Put runs together on one page: curves, tables over seeds, paired comparisons, settings, commands to repeat."""
    from experiments.compare import reports
    from experiments.report.writing import report as put_together

    screen = console()
    with progress_of(screen, "reporting") as progress:
        reported, compared, paths = put_together(runs, out, samples, progress)
    for one in reported.left:
        screen.print(f"left out: {one}", soft_wrap=True, markup=False)
    for pair in compared:
        difference = f"{pair.figure} of {pair.second} less {pair.first}, by {pair.by}: {pair.paired.difference:.4g}"
        screen.print(f"{difference} ({pair.said})", soft_wrap=True, markup=False)
    screen.print("\nWritten:")
    reports.print_paths(screen, paths)
