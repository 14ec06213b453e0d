"""The study of a sweep: trials one by one, kept in a database that several processes and machines may share."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from experiments.sweep import costs
from experiments.sweep.plan import Plan, SweepFolder
from experiments.train import training
from experiments.train.checkpoints import load_checkpoint
from experiments.train.config import RunConfig
from experiments.train.history import Record
from experiments.train.model import seed_of
from experiments.train.progress import Stopped
from experiments.train.runs import RunFolder
from experiments.train.training import RunResult
from solvers.errors import InputError, NumericalError

#: Seconds between two signs of life of a trial, after how many without one it counts as killed, and how often a
#: configuration is tried again that was.
HEARTBEAT, GRACE, RETRIES = 5, 60, 3
#: Seconds between two looks at what other processes do, and for which they may keep a database of one file locked.
POLL, LOCKED = 1.0, 60.0

#: What is kept with a trial.
CONFIG, CURVE, FIGURES, RUN, HOST, REASON = "config", "curve", "figures", "run", "host", "reason"
#: What is kept with a study.
PLAN = "plan"

Say = Callable[[str], None]


class OutOfTime(Stopped):
    """The time of the sweep is up."""


class Pruned(Stopped):
    """The training is not worth its end."""


class LeftOut(Exception):
    """A configuration that has no figures, and why."""


class Numbered(BaseSampler):
    """A sampler that begins anew at every trial, from the seed of the plan and the number of the trial.

    So proposals follow from these and from the trials before, whichever process asks, and however often a sweep was
    interrupted; and no two processes that begin together propose the same.

    Args:
        plan: says which sampler, and the seed.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.inner = plan.optunas_sampler(plan.seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin anew."""
        self.inner = self.plan.optunas_sampler(seed_of(self.plan.seed, trial.number) % 2**32)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Any:
        """As the sampler does."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> Any:
        """As the sampler does."""
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, distribution: Any) -> Any:
        """As the sampler does."""
        return self.inner.sample_independent(study, trial, param_name, distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """As the sampler does."""
        self.inner.after_trial(study, trial, state, values)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what Optuna says of trials, which is said otherwise, and of what may change in it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def study_of(plan: Plan, folder: SweepFolder, storage: str | None) -> optuna.Study:
    """The study of a folder, made where there is none yet.

    Args:
        plan: what is done; that of a study that is there must be the same.
        folder: its name is that of the study.
        storage: the address of a database, as Optuna takes it; None for a file in the folder.

    Raises:
        InputError: there is no such database, or a study of that name with another plan.
    """
    url = storage or f"sqlite:///{folder.database.absolute()}"
    engine = {"connect_args": {"timeout": LOCKED}} if url.startswith("sqlite") else {}
    try:
        with quiet():
            kept = optuna.storages.RDBStorage(
                url,
                engine,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=again(),
            )
            study = optuna.create_study(
                storage=kept,
                study_name=folder.path.name,
                sampler=Numbered(plan),
                pruner=plan.optunas_pruner(),
                directions=[one.direction for one in plan.objectives],
                load_if_exists=True,
            )
            known = study.user_attrs.get(PLAN)
            if known is None:
                study.set_user_attr(PLAN, plan.to_dict())
    except Exception as error:
        # Whatever the driver of a database stumbles over.
        reason = " ".join(str(error).split())
        where = str(folder.database) if storage is None else "the database of --storage"
        raise InputError(f"{where} cannot be used ({type(error).__name__}: {reason:.160})") from error
    mine = json.loads(json.dumps(plan.to_dict()))
    if known is not None and known != mine:
        other = next(key for key in mine if known.get(key) != mine[key])
        raise InputError(
            f"there is a study {folder.path.name!r} already, with another {other}: give --name another name, or the "
            "same options to take part in it"
        )
    return study


def again() -> Callable[[optuna.Study, FrozenTrial], None]:
    """What has the configuration of a trial that was killed, or interrupted, tried again."""
    with quiet():
        return optuna.storages.RetryHeartbeatStaleTrialCallback(RETRIES)


def run(
    study: optuna.Study, plan: Plan, folder: SweepFolder, trials: int, minutes: float, say: Say = lambda line: None
) -> None:
    """Try configurations until there are so many, or the time is up; others may take part in the same study.

    Args:
        study: from `study_of`.
        plan: what is done.
        folder: where the runs go.
        trials: how many there are to be in the study, of all processes, those left out or ended early included.
        minutes: time of this process. A training that has begun is stopped after an epoch, and goes on in the next
            call.
        say: called with a line for every trial.

    Raises:
        InputError: the data are missing, or nothing can be written.
        KeyboardInterrupt: it was interrupted; the message says how to go on.
    """
    deadline = time.monotonic() + 60 * minutes
    objective = Trials(plan, folder, deadline)
    waited = False
    with quiet():
        while time.monotonic() < deadline:
            optuna.storages.fail_stale_trials(study)
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            done = states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED)
            if done >= trials:
                break
            if done + states.count(TrialState.RUNNING) >= trials and TrialState.WAITING not in states:
                if not waited:
                    open_ = states.count(TrialState.RUNNING)
                    say(f"waiting for {open_} open trials: other processes run them, or were killed")
                waited = True
                time.sleep(POLL)
                continue
            if not _one(study, objective, say):
                break


def _one(study: optuna.Study, objective: Trials, say: Say) -> bool:
    """One trial; false when it was stopped because the time is up."""
    objective.number = -1
    try:
        study.optimize(objective, n_trials=1)
    except OutOfTime:
        again()(study, study.trials[objective.number])
        return False
    except optuna.exceptions.UpdateFinishedTrialError:
        say(f"trial {objective.number} gave no sign of life for {GRACE} s, and is tried again by whoever comes first")
        return True
    except KeyboardInterrupt:
        if objective.number >= 0 and study.trials[objective.number].state == TrialState.FAIL:
            again()(study, study.trials[objective.number])
        raise KeyboardInterrupt(
            f"interrupted; go on with: python -m experiments sweep --resume {objective.folder.path}"
        ) from None
    say(line(study.trials[objective.number], objective.plan))
    return True


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
        plan.task.splits(int(plan.space.settings.get("seed", 0)))

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
        with _reasons():
            result = self._train(trial, config)
        history = load_checkpoint(result.folder.last)["history"]
        trial.set_user_attr(CURVE, history)
        trial.set_user_attr(CONFIG, result.folder.config().to_dict())
        figures[self.plan.metric.name] = result.validation[self.plan.metric.name]
        with _reasons(InputError):
            if any(one.name in costs.AFTER for one in self.plan.objectives):
                figures["deviation"] = costs.deviation(result.folder)
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

    def _train(self, trial: optuna.Trial, config: RunConfig) -> RunResult:
        # One that is tried again has the run of the first attempt.
        path = self.folder.path / trial.user_attrs.get(RUN, f"trial-{trial.number:04d}")
        trial.set_user_attr(RUN, path.name)
        told = 0

        def after_epoch(history: list[Record]) -> None:
            nonlocal told
            if self.plan.prunes:
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


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have figures."""
    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def chosen(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial, or those of the front, by the validation set and the costs alone; none where none has figures."""
    if not finished(study):
        return []
    best = sorted(study.best_trials, key=lambda trial: trial.number)
    return best if len(study.directions) > 1 else best[:1]


def run_of(trial: FrozenTrial, folder: SweepFolder) -> Path:
    """The run of a trial; it may lie on another machine."""
    return folder.path / str(trial.user_attrs.get(RUN, ""))
