"""`sweep`: searching over networks, solvers and their numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.command import options, parsers
from experiments.command.app import RootOption, app, console, names_option, number_option
from experiments.command.failures import PROGRAM
from experiments.command.options import has_settings
from solvers.errors import InputError

PANEL = "Sweep"


def _names(flag: str, text: str) -> Any:
    option = names_option(flag, text)
    option.rich_help_panel = PANEL
    return option


def _number(flag: str, text: str) -> Any:
    option = number_option(flag, text)
    option.rich_help_panel = PANEL
    return option


@app.command()
@has_settings()
def sweep(
    models: Annotated[Any, _names("--models", "Networks to draw from; all with a field if left out.")] = None,
    solvers: Annotated[
        Any,
        _names(
            "--solvers", "Solvers to draw from; if left out those of fixed steps without noise or Newton iteration."
        ),
    ] = None,
    gradients: Annotated[Any, _names("--gradients", "Gradients to draw from; backprop if left out.")] = None,
    controls: Annotated[Any, _names("--controls", "Controls to draw from; hold and linear if left out.")] = None,
    ranges: Annotated[
        Any,
        typer.Option(
            "--range",
            parser=parsers.named_ranges,
            metavar="NAME=LOW:HIGH[,...]",
            help="Where a number lies, such as lr=0.001:0.02.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    objectives: Annotated[
        Any,
        _names(
            "--objectives",
            "The task's metric, seconds (of a training step), parameters, memory, deviation (from the continuous "
            "solution); the metric if left out. Of several a front is sought.",
        ),
    ] = None,
    at_most: Annotated[
        Any,
        typer.Option(
            "--at-most",
            parser=parsers.named_numbers,
            metavar="COST=NUMBER[,...]",
            help="What costs more is not trained: parameters, seconds, memory (bytes).",
            rich_help_panel=PANEL,
        ),
    ] = None,
    sampler: Annotated[
        str, typer.Option("--sampler", metavar="NAME", help="tpe, nsga2 or random.", rich_help_panel=PANEL)
    ] = "tpe",
    sampler_seed: Annotated[int, _number("--sampler-seed", "Of what is proposed; --seed is of each training.")] = 0,
    pruner: Annotated[
        str,
        typer.Option(
            "--pruner",
            metavar="NAME",
            help="median, hyperband or none: who ends trainings early, by the validation metric; median if left out "
            "and that is the one objective.",
            rich_help_panel=PANEL,
        ),
    ] = "",
    repeats: Annotated[
        int,
        _number(
            "--repeats",
            "Trainings of each configuration, from --seed and the seeds after it: their mean counts.",
        ),
    ] = 1,
    trials: Annotated[
        int | None, _number("--trials", "How many there are to be in all; 100 if left out, or any within --minutes.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="NUMBER",
            help="Time of this process; a training that has begun is stopped, and goes on in the next call.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Address of a database that machines share, as Optuna takes it; a file in the folder if left out.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="YAML file; what it says is fixed, as what is given here.", rich_help_panel="Output"
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="SWEEP",
            help="Go on with a sweep, or take part in one that runs, by its folder.",
            rich_help_panel="Output",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name of the folder and of the study; who gives the same takes part.",
            rich_help_panel="Output",
        ),
    ] = None,
    root: RootOption = Path("runs"),
    **values: Any,
) -> None:
    """Search over networks, solvers, steps and coefficients: the best one, or a front, by one objective or several.

    Every option of train that is given is fixed; the rest is drawn.
    """
    from experiments.sweep import beginning, running, showing
    from experiments.sweep.plan import Plan
    from experiments.sweep.space import Space

    fixed = options.given(values)
    asked = {"models": models, "solvers": solvers, "gradients": gradients, "controls": controls, "range": ranges}
    asked |= {"objectives": objectives, "at-most": at_most, "pruner": pruner, "config": config, "name": name}
    asked |= {"repeats": repeats if repeats != 1 else None}
    if resume is not None:
        extra = [*fixed, *(key for key, value in asked.items() if value)]
        if extra or sampler != "tpe" or sampler_seed:
            what = options.flags(extra or ["sampler" if sampler != "tpe" else "sampler-seed"])
            raise InputError(f"--resume goes on with the sweep's own settings: leave out {what}")
        begun = beginning.resumed(resume, storage)
    else:
        names = {key: tuple(asked[key] or ()) for key in ("models", "solvers", "gradients", "controls")}
        settings = options.put(beginning.settings_in(config), options.settings(), values) | options.implied(values)
        space = Space(settings, ranges=ranges or {}, **names)
        plan = Plan(space, tuple(objectives or ()), sampler, sampler_seed, pruner, at_most or {}, repeats)
        begun = beginning.begun(plan, root, name, storage)
    out = console()
    for line in beginning.about(begun.plan):
        out.print(line, soft_wrap=True, markup=False)
    out.print(
        f"Go on, or take part, with: {PROGRAM} sweep --resume {begun.folder.path}\n", soft_wrap=True, markup=False
    )
    wanted = trials if trials is not None else 100 if minutes is None else 10**9
    try:
        running.run(
            begun.study,
            begun.plan,
            begun.folder,
            wanted,
            math.inf if minutes is None else minutes,
            lambda text: out.print(text, soft_wrap=True, markup=False),
        )
    finally:
        showing.publish(begun.study, begun.plan, begun.folder, out)
