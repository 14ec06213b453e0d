"""`list` and `table`: what there is, and what goes with what."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from experiments.command.app import app, console, names_option, progress_of


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[WHAT]", help="tasks, models, solvers, gradients or controls; all if left out."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, to be put into a page.")] = False,
) -> None:
    """Show what there is: tasks, models, solvers, gradients, controls."""
    from experiments import tables
    from experiments.command import listing

    out = console()
    for table in listing.tables(what):
        if markdown:
            out.print(tables.markdown(table), soft_wrap=True, markup=False)
        else:
            out.print(table)
        out.print()


@app.command("table")
def table_(
    solvers: Annotated[
        Any,
        names_option(
            "--solvers",
            "Columns, or all; if left out the solvers of published networks, rk4, stormer_verlet and dopri5.",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, to be put into a page.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Run every cell that works: forward, backward, to dopri5 and back, one step that lowers a loss.",
        ),
    ] = False,
) -> None:
    """Show the periodic table: which field works under which solver, and what the pairing is called."""
    from experiments.command import table

    out = console()
    if markdown:
        out.print(table.markdown(solvers), soft_wrap=True, markup=False)
    else:
        parts, notes = table.tables(solvers, out.width)
        for part in parts:
            out.print(part)
        out.print("\n".join(notes), markup=False)
    if not verify:
        return
    failures: list[str] = []
    cells = 0
    with progress_of(out, "verifying") as report:
        for name, count, failed in table.verified(solvers, report):
            out.print(f"{name}: {count - len(failed)} of {count} cells", soft_wrap=True, markup=False)
            failures, cells = failures + failed, cells + count
    for line in failures:
        out.print(line, soft_wrap=True, markup=False)
    out.print(
        f"{cells - len(failures)} of {cells} cells go forward, backward, to dopri5 and back, and lower the loss of the "
        "adding problem by a step",
        soft_wrap=True,
    )
    if failures:
        raise typer.Exit(1)
