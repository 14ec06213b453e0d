"""What a sweep has found: the best network or the front as table, picture and configuration files; what mattered."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.files import write_atomically
from experiments.sweep.costs import Objective
from experiments.sweep.plan import Plan, SweepFolder
from experiments.sweep.running import chosen, finished, quiet
from experiments.sweep.trials import CONFIG, FIGURES, HOST, REASON, RUN, runs_of, summary
from experiments.tasks.metrics import METRICS, shown
from experiments.train.config import RunConfig, save_yaml
from experiments.train.runs import RunFolder
from neuralosc.analysis import drawing
from solvers.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Trials with figures below which nothing is said of importances.
FEWEST = 10


def publish(study: optuna.Study, plan: Plan, folder: SweepFolder, out: Console) -> None:
    """Print what was found, and write it into the folder: trials, front, importances, configurations, a picture."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    count = {state: states.count(state) for state in TrialState}
    out.print(
        f"\n{count[TrialState.COMPLETE]} trials with figures, {count[TrialState.PRUNED]} left out or ended early, "
        f"{count[TrialState.FAIL]} killed or interrupted, {count[TrialState.RUNNING] + count[TrialState.WAITING]} open",
        soft_wrap=True,
    )
    paths = [folder.path / "trials.csv"]
    write_atomically(paths[0], trials(study, plan).to_csv(index=False).encode())
    best = chosen(study)
    if best:
        out.print()
        out.print(table(best, plan, title(study, plan)))
        paths += _configurations(best, plan, folder)
        paths.append(folder.path / "front.png")
        write_atomically(paths[-1], drawing.png(picture(study, plan)))
        found = importances(study, plan)
        if found:
            out.print(importance_table(found))
        _tell_test(best, plan, folder, out)
    out.print("\nWritten:")
    for path in paths:
        out.print(Text(f"  {path}"), soft_wrap=True)


def title(study: optuna.Study, plan: Plan) -> str:
    """What the table shows."""
    if len(plan.objectives) == 1:
        return f"{study.study_name}: the best of {len(finished(study))} by {plan.objectives[0].name} (validation set)"
    asked = ", ".join(one.name for one in plan.objectives)
    return f"{study.study_name}: the Pareto front of {len(finished(study))} by {asked} (validation set)"


def table(best: Sequence[FrozenTrial], plan: Plan, heading: str) -> Table:
    """Trials with their figures, ordered by the first objective."""
    result = Table(title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("trial", justify="right")
    columns = _columns(plan)
    for one in columns:
        result.add_column(one.name, justify="right", no_wrap=True)
    result.add_column("configuration")
    sign = -1 if plan.objectives[0].larger else 1
    for trial in sorted(best, key=lambda trial: sign * trial.values[0]):
        figures = trial.user_attrs[FIGURES]
        cells = [one.shown(figures[one.name]) if one.name in figures else "-" for one in columns]
        result.add_row(str(trial.number), *cells, summary(trial, plan))
    return result


def _columns(plan: Plan) -> list[Objective]:
    """The objectives, and what else is known of every trial."""
    others = [plan.metric, *(Objective(name, False) for name in ("parameters", "seconds", "memory"))]
    return [*plan.objectives, *(one for one in others if one not in plan.objectives)]


def trials(study: optuna.Study, plan: Plan) -> pd.DataFrame:
    """Every trial in a row: state, figures, numbers and what they stand for, its run, and why it was left out."""
    rows: list[dict[str, Any]] = []
    for trial in study.get_trials(deepcopy=False):
        config = trial.user_attrs.get(CONFIG) or {}
        drawn = {**config.get("model_options", {}), "lr": config.get("lr")}
        drawn["model"] = config.get("field") or config.get("model")
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                **{name: trial.user_attrs.get(FIGURES, {}).get(name) for name in (one.name for one in _columns(plan))},
                **{name: drawn.get(name) for name in ("model", "solver", "gradient", "control", "hidden_size", "lr")},
                **{name: drawn.get(name) for name in ("dt", *plan.space.coefficients)},
                **{f"number_{name}": trial.params.get(name) for name in plan.space.numbers},
                "run": trial.user_attrs.get(RUN),
                "host": trial.user_attrs.get(HOST),
                "reason": trial.user_attrs.get(REASON),
            }
        )
    return pd.DataFrame(rows)


def _configurations(best: Sequence[FrozenTrial], plan: Plan, folder: SweepFolder) -> list[Path]:
    """The configurations as files that `train --config` takes; those of an earlier front are taken away."""
    for old in folder.path.glob("front-*.yaml"):
        old.unlink()
    paths = []
    for trial in best:
        alone = len(plan.objectives) == 1
        paths.append(folder.path / ("best.yaml" if alone else f"front-{trial.number:04d}.yaml"))
        save_yaml(RunConfig.from_dict(trial.user_attrs[CONFIG]), paths[-1])
    return paths


def importances(study: optuna.Study, plan: Plan) -> dict[str, dict[str, float]]:
    """How much each number decided of each objective, of the sum 1; nothing of fewer than `FEWEST` trials."""
    done = finished(study)
    if len(done) < FEWEST:
        return {}
    found = {}
    for place, one in enumerate(plan.objectives):
        if len({trial.values[place] for trial in done}) < 2:
            continue

        def target(trial: FrozenTrial, place: int = place) -> float:
            return float(trial.values[place])

        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=plan.seed)
        with quiet():
            found[one.name] = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
    return found


def importance_table(found: dict[str, dict[str, float]]) -> Table:
    """The importances, numbers in rows."""
    result = Table(
        title="How much each number decided (fANOVA)",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    result.add_column("number")
    for name in found:
        result.add_column(name, justify="right")
    first = next(iter(found.values()))
    for number in first:
        result.add_row(number, *(f"{values.get(number, 0.0):.2f}" for values in found.values()))
    return result


def picture(study: optuna.Study, plan: Plan) -> Figure:
    """The best value so far of one objective; of several the front, the first against each of the others."""
    done, front = finished(study), {trial.number for trial in chosen(study)}
    others = plan.objectives[1:]

    def draw(figure: Figure) -> None:
        if not others:
            _so_far(figure.subplots(), done, plan.objectives[0])
            return
        best = [trial for trial in done if trial.number in front]
        # One look for each network in all panels.
        networks = drawing.looks(_network(trial) for trial in best)
        for place, axes in enumerate(figure.subplots(1, len(others), squeeze=False)[0], 1):
            _front(axes, done, best, networks, plan.objectives, place)

    return drawing.figure(draw, (5.2 * max(1, len(others)), 4.0))


def _so_far(axes: Axes, done: Sequence[FrozenTrial], one: Objective) -> None:
    values = [float(trial.values[0]) for trial in done]
    best = list(itertools.accumulate(values, max if one.larger else min))
    axes.plot([trial.number for trial in done], values, "o", color=drawing.GREY, label="trials")
    axes.step([trial.number for trial in done], best, where="post", color=drawing.PALETTE[0], label="best so far")
    axes.set(xlabel="trial", ylabel=_labelled(one))
    axes.legend()


def _network(trial: FrozenTrial) -> str:
    return str(trial.user_attrs[CONFIG]["field"] or trial.user_attrs[CONFIG]["model"])


def _front(
    axes: Axes,
    done: Sequence[FrozenTrial],
    best: Sequence[FrozenTrial],
    networks: dict[str, dict[str, Any]],
    objectives: Sequence[Objective],
    place: int,
) -> None:
    """Trials by two of the objectives; those of the front of all objectives stand out, by their networks."""

    def marks(shown: Sequence[FrozenTrial], **look: Any) -> None:
        across, up = ([float(trial.values[i]) for trial in shown] for i in (place, 0))
        axes.plot(across, up, **look)

    marks(done, marker="o", linestyle="", color=drawing.GREY, label="others")
    for name, look in networks.items():
        marks([trial for trial in best if _network(trial) == name], linestyle="", label=name, **look)
    if len(objectives) == 2:
        marks(sorted(best, key=lambda t: float(t.values[place])), color=drawing.INK, linewidth=0.7, zorder=0)
    values = [float(trial.values[place]) for trial in done]
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=_labelled(objectives[place]), ylabel=_labelled(objectives[0]))
    axes.legend(fontsize=8)


def _labelled(one: Objective) -> str:
    units = {"seconds": "seconds of a training step", "memory": "bytes of a training step"}
    return units.get(one.name, f"{one.name}, validation set" if one.name in METRICS else one.name)


def _tell_test(best: Sequence[FrozenTrial], plan: Plan, folder: SweepFolder, out: Console) -> None:
    """The test figure of the one that is best by the metric of the validation set: nothing was chosen by it."""
    metric = plan.metric
    sign = 1 if metric.larger else -1
    trial = max(best, key=lambda trial: sign * float(trial.user_attrs[FIGURES][metric.name]))
    paths = runs_of(trial, plan, folder)
    try:
        of_each = [(RunFolder.open(path).result() or {})["test"][metric.name] for path in paths]
    except (InputError, KeyError):
        host = trial.user_attrs.get(HOST)
        out.print(f"The run of trial {trial.number} lies on {host}, not in {paths[0]}", soft_wrap=True)
        return
    value = trial.user_attrs[FIGURES][metric.name]
    how = f" in the mean of {len(paths)} trainings" if len(paths) > 1 else ""
    out.print(
        f"Trial {trial.number} on the test set{how}, by which nothing was chosen: {metric.name} "
        f"{shown(metric.name, statistics.fmean(of_each))} (validation set: {shown(metric.name, value)})",
        soft_wrap=True,
    )
