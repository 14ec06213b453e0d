"""The command line: `python -m experiments list | train | evaluate | predict | compare | ..`.

Exit codes: 0 fine, 1 numerical failure, 2 bad input, 130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import own
from experiments.command import failures, options, parsers
from experiments.command.failures import PROGRAM
from experiments.command.options import has_settings
from solvers.errors import InputError

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


def _names(flag: str, text: str) -> Any:
    return typer.Option(flag, parser=parsers.names, metavar="NAME[,...]", help=text)


def _number(flag: str, text: str) -> Any:
    return typer.Option(flag, parser=parsers.whole_number, metavar="N", help=text)


def _numbers(flag: str, text: str) -> Any:
    return typer.Option(flag, parser=parsers.whole_numbers, metavar="N[,...]", help=text)


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/digits-cornn-001.")]
RootOption = Annotated[
    Path, typer.Option("--root", metavar="PATH", help="Folder of the run folders.", rich_help_panel="Output")
]
SplitOption = Annotated[str, typer.Option("--split", metavar="NAME", help="train, validation or test.")]


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
        _names(
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


@app.command()
@has_settings()
def train(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="YAML file; options given on the command line override it.", rich_help_panel="Output"
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.", rich_help_panel="Output"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the run folder; must be new.", rich_help_panel="Output"),
    ] = None,
    root: RootOption = Path("runs"),
    **values: Any,
) -> None:
    """Train a network on a task and keep everything about it in a new folder.

    Every option that is left out has the default of the task, the model or the solver that was chosen.
    """
    from experiments.compare import reports
    from experiments.train import networks, training

    if resume is not None:
        extra = [*options.given(values), *(["config"] if config else []), *(["name"] if name else [])]
        if extra:
            raise InputError(f"--resume goes on with the run's own configuration: leave out {options.flags(extra)}")
        result = training.resume(resume)
    else:
        settings = options.resolve(options.read_base(config), values)
        result = training.train(settings, root=root, name=name)
    out = console()
    out.print(reports.result_table(result))
    if networks.card(result.folder.config()).solver is not None:
        out.print("\nSwap its solver:")
        out.print(f"  {PROGRAM} compare {result.folder.path}", soft_wrap=True, markup=False)


@app.command()
@has_settings(lambda setting: setting.panel == "Solver" or setting.key in ("dt", "device"))
def evaluate(run: RunArgument, split: SplitOption = "test", **values: Any) -> None:
    """Loss and accuracy (or mean squared error) of a run, under its own solver or another."""
    from experiments.compare import reports
    from experiments.train import training

    settings = options.given(values)
    chosen = {key: settings.pop(key) for key in options.solver_option_names() if key in settings}
    figures = training.evaluate(run, split, solver_options=chosen or None, **settings)
    console().print(reports.figures_table(figures))


@app.command()
def predict(
    run: RunArgument,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Tables with the columns of the training, or .ts files.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="PATH", help="The CSV to write; standard output if left out."),
    ] = None,
) -> None:
    """The answers of a run on a file of your own (train --csv), or on `uea`, to the series of other files, as CSV."""
    from experiments.files import write_atomically
    from experiments.train import checkpoints, serving

    if output is not None and output.exists():
        raise InputError(f"--output {output} exists already: give another name")
    text = serving.predict(run, files, checkpoints.notice).to_csv(index=False)
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text.encode())
        console().print(f"Written: {output}", soft_wrap=True, markup=False)


@app.command()
def export(
    run: RunArgument,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write; must be new.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="As an ONNX file; else as neuralosc.load reads it.")] = False,
    length: Annotated[
        int | None,
        _number("--length", "Samples of a series, for networks whose ONNX file must have a fixed length."),
    ] = None,
) -> None:
    """Write the trained model of a run as one file: scaling, network, read-out and unit of time."""
    from experiments.train import serving

    written = serving.export(run, path, onnx, length)
    console().print(f"Written: {written}", soft_wrap=True, markup=False)


@app.command()
@has_settings(lambda setting: setting.section == "solver_options")
def compare(
    run: RunArgument,
    solvers: Annotated[
        Any,
        _names(
            "--solvers",
            "Solvers to compare; if left out the run's own, the published step, imex_euler, stormer_verlet, rk4 "
            "and dopri5.",
        ),
    ] = None,
    substeps: Annotated[
        Any,
        _numbers("--substeps", "Substeps per sample; if left out the run's own."),
    ] = None,
    split: SplitOption = "test",
    samples: Annotated[
        int | None,
        _number("--samples", "How many samples; if left out as many as take a moment."),
    ] = None,
    seed: Annotated[
        int,
        _number("--seed", "Chooses the samples, if not all are used."),
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
    parts: Annotated[Any, _names("--parts", "Which parts; all but gradient_gap if left out.")] = None,
    budget: Annotated[
        float,
        typer.Option("--budget", metavar="SECONDS", help="Time for all parts; trainings are not in it."),
    ] = 120.0,
    train_under: Annotated[
        Any, _names("--train-under", "Solvers to train the first run under too, for the rows that are missing.")
    ] = None,
    seeds: Annotated[int, _number("--seeds", "Trainings of each row, which give its spread.")] = 1,
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
        _number("--repeats", "Timed rounds, every case once in each."),
    ] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes only, less than a minute.")] = False,
    shapes: Annotated[
        Any,
        _names("--shapes", "S1 to S5 and L1; all if left out."),
    ] = None,
    parts: Annotated[
        Any,
        _names("--parts", "training, cost, solving or gpu; what can run if left out."),
    ] = None,
    threads: Annotated[
        int,
        _number("--threads", "CPU threads; 0: PyTorch's choice."),
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
    epochs: Annotated[int | None, _number("--epochs", "Instead of the row's; such runs are kept apart.")] = None,
    seeds: Annotated[int | None, _number("--seeds", "How many of the row's seeds; all if left out.")] = None,
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="The cells that have this in their name.")] = "",
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", metavar="PATH", help="Folder with the data files of the task.")
    ] = None,
    threads: Annotated[int, _number("--threads", "CPU threads; 0: PyTorch's choice.")] = 0,
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
        settings = {"epochs": epochs, "only": only, "data_dir": data_dir, "threads": threads}
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
        _numbers("--series", "Numbers of the test series to draw, 0 and up; the first three if left out."),
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of this process if left out) and return its exit code.

    This is the one place where a failure becomes a message: `error:` and one line on standard error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A process may be started without one of them: then nobody reads what would be written to it.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        command = typer.main.get_command(_application(arguments))
        with command.make_context(PROGRAM, arguments or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except (Exception, KeyboardInterrupt, SystemExit) as failure:
        code, message = failures.verdict(failure)
        if message:
            try:
                print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
            except OSError:
                failures.silence(sys.stderr)
        return code


def _application(arguments: Sequence[str]) -> typer.Typer:
    """The commands, of which `train` has options for the arguments of what is one's own on this command line."""
    names = options.named_in(arguments[1:]) if arguments[:1] == ["train"] else {}
    if not any(map(own.is_own, names.values())):
        return app
    wider = copy.copy(app)
    known = functools.partial(options.settings_with, names)
    wider.registered_commands = [
        copy.copy(command) for command in app.registered_commands if command.callback is not train
    ]
    wider.command("train")(options.has_settings(known=known)(inspect.unwrap(train)))
    return wider
