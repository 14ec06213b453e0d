"""`compare`, `study`, `bench`, `reproduce` and their like: what is learnt from runs, or without one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.command import options
from experiments.command.app import (
    RootOption,
    RunArgument,
    SplitOption,
    app,
    console,
    names_option,
    number_option,
    numbers_option,
    progress_of,
)
from experiments.command.options import has_settings
from solvers.errors import InputError


@app.command()
@has_settings(lambda setting: setting.section == "solver_options")
def compare(
    run: RunArgument,
    solvers: Annotated[
        Any,
        names_option(
            "--solvers",
            "Solvers to compare; if left out the run's own, the published step, imex_euler, stormer_verlet, rk4 "
            "and dopri5.",
        ),
    ] = None,
    substeps: Annotated[
        Any,
        numbers_option("--substeps", "Substeps per sample; if left out the run's own."),
    ] = None,
    split: SplitOption = "test",
    samples: Annotated[
        int | None,
        number_option("--samples", "How many samples; if left out as many as take a moment."),
    ] = None,
    seed: Annotated[
        int,
        number_option("--seed", "Chooses the samples, if not all are used."),
    ] = 0,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Also measure other step sizes and tolerances, and draw.")
    ] = True,
    **values: Any,
) -> None:
    """Swap the integrator of a trained run: accuracy, state deviation, evaluations and time of each solver."""
    from experiments.compare import reports
    from experiments.compare.comparison import compare as swap

    out = console()
    with progress_of(out, "comparing") as report:
        comparison = swap(
            run,
            solvers or (),
            substeps or (),
            options.given(values),
            split=split,
            samples=samples,
            seed=seed,
            sweep=figures,
            report=report,
        )
    paths = reports.publish(comparison, reports.new_folder(run), out, draw=figures)
    out.print("\nWritten:")
    reports.print_paths(out, paths)


@app.command()
def study(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs on the same data.")],
    parts: Annotated[Any, names_option("--parts", "Which parts; all but gradient_gap if left out.")] = None,
    budget: Annotated[
        float,
        typer.Option("--budget", metavar="SECONDS", help="Time for all parts; trainings are not in it."),
    ] = 120.0,
    train_under: Annotated[
        Any, names_option("--train-under", "Solvers to train the first run under too, for the rows that are missing.")
    ] = None,
    seeds: Annotated[int, number_option("--seeds", "Trainings of each row, which give its spread.")] = 1,
) -> None:
    """Study trained runs: whether an equation was learnt or a step, stability, gradients, exponents, on one page."""
    from experiments.compare import reports
    from experiments.study import running
    from experiments.study.runs import opened, with_missing

    out = console()
    studied = opened(runs)
    if train_under or seeds > 1:
        studied = with_missing(studied, train_under or (), seeds, lambda what: out.print(what, soft_wrap=True))
    with progress_of(out, "studying") as report:
        done = running.study(studied, parts or (), budget, report)
    for one in done:
        said = one.why if one.result is None else str(one.result.verdict)
        out.print(f"\n{one.name}: {said}", soft_wrap=True, markup=False)
        for note in () if one.result is None else one.result.notes():
            out.print(f"  {note}", soft_wrap=True, markup=False)
    out.print("\nWritten:")
    reports.print_paths(out, running.write(done, studied, running.new_folder(runs[0])))


@app.command()
def demo(root: RootOption = Path("runs")) -> None:
    """Train a coRNN on handwritten digits, then swap its integrator: two to three minutes."""
    from experiments.command import demo as demonstration

    out = console()
    demonstration.demo(root, out, lambda what: progress_of(out, what))


@app.command()
def bench(
    repeats: Annotated[
        int,
        number_option("--repeats", "Timed rounds, every case once in each."),
    ] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes only, less than a minute.")] = False,
    shapes: Annotated[
        Any,
        names_option("--shapes", "S1 to S5 and L1; all if left out."),
    ] = None,
    parts: Annotated[
        Any,
        names_option("--parts", "training, cost, solving or gpu; what can run if left out."),
    ] = None,
    threads: Annotated[
        int,
        number_option("--threads", "CPU threads; 0: PyTorch's choice."),
    ] = 0,
    json: Annotated[Path | None, typer.Option("--json", metavar="PATH", help="Also write all times to a file.")] = None,
) -> None:
    """Time training steps in units of their matrix products, what else they cost, and solving alone."""
    from experiments.bench import suite

    if json is not None and not json.absolute().parent.is_dir():
        raise InputError(f"--json {json}: there is no folder {json.absolute().parent}, make it first")
    chosen, wanted = suite.shapes_of(shapes, quick), suite.parts_of(parts)
    out = console()
    with suite.threads(threads), progress_of(out, "benchmark") as report:
        values, tables = suite.run(chosen, repeats, wanted, quick, report)
    for table in tables:
        out.print(table)
    if json is not None:
        suite.write_json(values, json)
        out.print(f"Written: {json}", soft_wrap=True, markup=False)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="[ROW]", help="What to run; see --list.")] = None,
    overview: Annotated[
        bool, typer.Option("--list", help="Show every row, how much was run, how it compares.")
    ] = False,
    epochs: Annotated[int | None, number_option("--epochs", "Instead of the row's; such runs are kept apart.")] = None,
    seeds: Annotated[int | None, number_option("--seeds", "How many of the row's seeds; all if left out.")] = None,
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="The cells that have this in their name.")] = "",
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", metavar="PATH", help="Folder with the data files of the task.")
    ] = None,
    threads: Annotated[int, number_option("--threads", "CPU threads; 0: PyTorch's choice.")] = 0,
    loop: Annotated[
        bool, typer.Option("--loop", help="Also time training steps beside those of the published network's loop.")
    ] = False,
    results: Annotated[Path, typer.Option("--results", metavar="PATH", help="Folder of the results.")] = Path(
        "results"
    ),
    page: Annotated[
        Path | None, typer.Option("--page", metavar="PATH", help="Also write all results as a page.")
    ] = None,
    root: RootOption = Path("runs/reproduce"),
) -> None:
    """Run a published result again, and put what comes out beside what was published."""
    from experiments import reproduce as again

    if name is None and not overview and page is None:
        raise InputError("reproduce what? Give a row, or --list to see which there are")
    out = console()
    if name is not None:
        settings = {"epochs": epochs, "only": only, "data_dir": data_dir, "threads": threads, "loop": loop}
        again.publish(again.run(name, results, root, seeds, **settings), out)
    if overview:
        out.print(again.overview(results))
    if page is not None:
        again.write_page(results, page)
        out.print(f"Written: {page}", soft_wrap=True, markup=False)


@app.command("work-precision")
def work_precision(
    to: Annotated[Path, typer.Option("--out", metavar="PATH", help="The picture to write.")] = Path(
        "work-precision.png"
    ),
) -> None:
    """Draw the error of solvers against their evaluations, on an oscillator and on a stiff one: a minute or two."""
    from experiments.compare import work_precision as diagram

    if not to.absolute().parent.is_dir():
        raise InputError(f"--out {to}: there is no folder {to.absolute().parent}, make it first")
    out = console()
    with progress_of(out, "work-precision") as report:
        panels = diagram.measure(report=report)
    diagram.draw(panels, to)
    out.print(diagram.table(panels))
    out.print(f"Written: {to}", soft_wrap=True, markup=False)


@app.command("forecast-figure")
def forecast_figure(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--out", metavar="PATH", help="The picture to write.")] = Path("forecast.png"),
    series: Annotated[
        Any,
        numbers_option("--series", "Numbers of the test series to draw, 0 and up; the first three if left out."),
    ] = None,
) -> None:
    """Draw what a run with --likelihood gaussian says of paths of oscillators (--ask): samples, mean and band."""
    from experiments.compare import forecasts

    if not to.absolute().parent.is_dir():
        raise InputError(f"--out {to}: there is no folder {to.absolute().parent}, make it first")
    found = forecasts.forecasts(run, series or (0, 1, 2))
    forecasts.draw(found, to)
    out = console()
    for one in found:
        share = (
            f"at {one.inside:.0%} of the times after the last sample the path lies in the {forecasts.WITHIN:.0%} band"
        )
        out.print(f"series {one.number}: {share}", soft_wrap=True)
    out.print(f"Written: {to}", soft_wrap=True, markup=False)
