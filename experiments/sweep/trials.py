"""One trial of a sweep: a point becomes a configuration, that a run of the one training, and the run figures."""

from __future__ import annotations

import contextlib
import math
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from experiments.sweep import costs
from experiments.sweep.plan import Plan, SweepFolder
from experiments.train import training
from experiments.train.checkpoints import load_checkpoint
from experiments.train.config import RunConfig
from experiments.train.history import Record, kept_record
from experiments.train.progress import Stopped
from experiments.train.runs import RunFolder
from experiments.train.training import RunResult
from solvers.errors import InputError, NumericalError

#: What is kept with a trial.
CONFIG, CURVE, FIGURES, RUN, HOST, REASON = "config", "curve", "figures", "run", "host", "reason"
#: The record of the epoch that was kept, of each of its trainings; `CURVE` is of the first.
KEPT = "kept"


class OutOfTime(Stopped):
    """The time of the sweep is up."""


class Pruned(Stopped):
    """The training is not worth its end."""


class LeftOut(Exception):
    """A configuration that has no figures, and why."""


class Trials:
    """The function that Optuna optimises: a point of the cube becomes a configuration, and that a run.

    Args:
        plan: what is done.
        folder: where the runs go.
        deadline: when the time is up, as `time.monotonic` counts.

    Attributes:
        number: of the trial that was begun last, -1 where none was.
    """

    def __init__(self, plan: Plan, folder: SweepFolder, deadline: float = math.inf) -> None:
        self.plan, self.folder, self.deadline = plan, folder, deadline
        self.number = -1
        # What concerns every trial is found before the first.
        plan.task.splits(plan.first_seed)

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """The values of the objectives."""
        self.number = trial.number
        point = {name: trial.suggest_float(name, 0.0, 1.0) for name in self.plan.space.numbers}
        trial.set_user_attr(HOST, platform.node())
        try:
            figures = self._figures(trial, point)
        except (LeftOut, Pruned) as reason:
            trial.set_user_attr(REASON, str(reason))
            raise optuna.TrialPruned(str(reason)) from None
        return [figures[one.name] for one in self.plan.objectives]

    def _figures(self, trial: optuna.Trial, point: dict[str, float]) -> dict[str, float]:
        with _reasons(InputError):
            config = self.plan.space.config(point)
            trial.set_user_attr(CONFIG, config.to_dict())
            figures = costs.before(config, self.plan.task)
        trial.set_user_attr(FIGURES, figures)
        self._within(trial, figures)
        # One that is tried again has the runs of the first attempt.
        trial.set_user_attr(RUN, trial.user_attrs.get(RUN, f"trial-{trial.number:04d}"))
        trainings = zip(self.plan.repeated(config), runs_of(trial, self.plan, self.folder), strict=True)
        with _reasons():
            results = [self._train(trial, one, path) for one, path in trainings]
        histories = [load_checkpoint(result.folder.last)["history"] for result in results]
        trial.set_user_attr(CURVE, histories[0])
        trial.set_user_attr(KEPT, [kept_record(config, history) for history in histories])
        trial.set_user_attr(CONFIG, results[0].folder.config().to_dict())
        metric = self.plan.metric.name
        figures[metric] = statistics.fmean(result.validation[metric] for result in results)
        with _reasons(InputError):
            if any(one.name in costs.AFTER for one in self.plan.objectives):
                figures["deviation"] = statistics.fmean(costs.deviation(result.folder) for result in results)
            # The machine may have been busy the first time, or the second.
            figures["seconds"] = min(figures["seconds"], costs.before(config, self.plan.task)["seconds"])
        trial.set_user_attr(FIGURES, figures)
        for one in self.plan.objectives:
            if not math.isfinite(figures[one.name]):
                raise LeftOut(f"its {one.name} is {figures[one.name]}")
        return figures

    def _within(self, trial: optuna.Trial, figures: dict[str, float]) -> None:
        """Leave out what costs more than it may, and have the sampler know by how much."""
        over = ""
        for name, most in self.plan.at_most.items():
            trial.set_constraint(name, figures[name] / most - 1)
            if figures[name] > most:
                shown = costs.Objective(name, False).shown
                over = over or f"{name} {shown(figures[name])}, at most {shown(most)}"
        if over:
            raise LeftOut(over)

    def _train(self, trial: optuna.Trial, config: RunConfig, path: Path) -> RunResult:
        # Of several trainings the first is compared with the first of others.
        judged = self.plan.prunes and config.seed == self.plan.first_seed
        told = 0

        def after_epoch(history: list[Record]) -> None:
            nonlocal told
            if judged:
                for record in history[told:]:
                    trial.report(record[f"validation_{self.plan.metric.name}"], int(record["epoch"]))
                told = len(history)
                if len(history) < config.epochs and trial.should_prune():
                    trial.set_user_attr(CURVE, history)
                    raise Pruned(f"ended after epoch {len(history)}: the {self.plan.metric.name} of others was better")
            if time.monotonic() >= self.deadline and len(history) < config.epochs:
                raise OutOfTime("the time of the sweep was up")

        if RunFolder(path).config_file.is_file():
            try:
                with RunFolder(path).locked():
                    pass
            except InputError as error:
                raise LeftOut(str(error)) from error
            return training.resume(path, progress=False, after_epoch=after_epoch)
        if path.is_dir():
            # Killed between the folder and its first file.
            shutil.rmtree(path)
        return training.train(config, self.folder.path, path.name, progress=False, after_epoch=after_epoch)


@contextlib.contextmanager
def _reasons(*more: type[Exception]) -> Iterator[None]:
    """Make a failure of this configuration a reason to leave it out; what would fail every other is none."""
    try:
        yield
    except (NumericalError, MemoryError, torch.OutOfMemoryError, *more) as failure:  # type: ignore[misc]
        raise LeftOut(" ".join(str(failure).split()) or "there is not enough memory for it") from failure


def line(trial: FrozenTrial, plan: Plan) -> str:
    """A trial in one line."""
    return f"trial {trial.number}: {outcome(trial, plan)}  {summary(trial, plan)}".rstrip()


def outcome(trial: FrozenTrial, plan: Plan) -> str:
    """What came out of a trial: its figures, or why there are none."""
    if trial.state == TrialState.COMPLETE:
        values = zip(plan.objectives, trial.values, strict=True)
        return "  ".join(f"{one.name} {one.shown(value)}" for one, value in values)
    return f"left out, {trial.user_attrs.get(REASON, trial.state.name.lower())}"


def summary(trial: FrozenTrial, plan: Plan) -> str:
    """The configuration of a trial in short: network, solver, and every number that was drawn."""
    config = trial.user_attrs.get(CONFIG)
    if config is None:
        return ""
    options = config["model_options"]
    drawn = [name for name in plan.space.numbers if name in options and name not in ("solver", "gradient", "control")]
    also = [str(options[name]) for name in ("gradient", "control") if name in plan.space.numbers]
    words = [config["field"] or config["model"], options["solver"], *also]
    words += [f"{name} {options[name]:g}" for name in drawn]
    return " ".join([*words, *([f"lr {config['lr']:g}"] if "lr" in plan.space.numbers else [])])


def runs_of(trial: FrozenTrial | optuna.Trial, plan: Plan, folder: SweepFolder) -> list[Path]:
    """The runs of a trial, one for each seed; they may lie on another machine."""
    first = str(trial.user_attrs.get(RUN, ""))
    others = range(plan.first_seed + 1, plan.first_seed + plan.repeats)
    return [folder.path / name for name in (first, *(f"{first}-seed-{seed}" for seed in others))]
