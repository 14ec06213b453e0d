"""`train`, `evaluate`, `predict` and `export`: what is done with one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.command import options
from experiments.command.app import RootOption, RunArgument, SplitOption, app, console, number_option
from experiments.command.failures import PROGRAM
from experiments.command.options import has_settings
from solvers.errors import InputError


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
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of the epochs went.", rich_help_panel="Output")
    ] = False,
    **values: Any,
) -> None:
    """Train a network on a task and keep everything about it in a new folder.

    Every option that is left out has the default of the task, the model or the solver that was chosen.
    """
    from experiments.compare import reports
    from experiments.train import networks, processes, training
    from experiments.train.profiling import Profile

    kept = Profile() if profile else None
    if resume is not None:
        extra = [*options.given(values), *(["config"] if config else []), *(["name"] if name else [])]
        if extra:
            raise InputError(f"--resume goes on with the run's own configuration: leave out {options.flags(extra)}")
        result = training.resume(resume, profile=kept)
    else:
        settings = options.resolve(options.read_base(config), values)
        result = training.train(settings, root=root, name=name, profile=kept)
    if not processes.leads():
        return
    out = console()
    out.print(reports.result_table(result))
    if kept is not None:
        out.print(kept.table())
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
        number_option("--length", "Samples of a series, for networks whose ONNX file must have a fixed length."),
    ] = None,
) -> None:
    """Write the trained model of a run as one file: scaling, network, read-out and unit of time."""
    from experiments.train import serving

    written = serving.export(run, path, onnx, length)
    console().print(f"Written: {written}", soft_wrap=True, markup=False)
