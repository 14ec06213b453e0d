"""The study of a sweep: trials one by one, kept in a database that several processes and machines may share."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from experiments.sweep.plan import EARLIER, Plan, SweepFolder
from experiments.sweep.trials import CONFIG, CURVE, KEPT, OutOfTime, Trials, line
from experiments.train.config import RunConfig
from experiments.train.history import kept_record, merit
from experiments.train.model import seed_of
from solvers.errors import InputError

#: Seconds between two signs of life of a trial, after how many without one it counts as killed, and how often a
#: configuration is tried again that was.
HEARTBEAT, GRACE, RETRIES = 5, 60, 3
#: Seconds between two looks at what other processes do, and for which they may keep a database of one file locked.
POLL, LOCKED = 1.0, 60.0

#: What is kept with a study.
PLAN = "plan"

Say = Callable[[str], None]


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
    theirs = mine if known is None else {**EARLIER, **known}
    if theirs != mine:
        other = next(key for key in mine if theirs.get(key) != mine[key])
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


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have figures."""
    return list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def chosen(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial, or those of the front, by the validation set and the costs alone; none where none has figures."""
    if not finished(study):
        return []
    best = sorted(study.best_trials, key=lambda trial: trial.number)
    if len(study.directions) > 1:
        return best

    def of_runs(trial: FrozenTrial) -> tuple[float, ...]:
        # Trials of an earlier version have one curve alone.
        config, attributes = RunConfig.from_dict(trial.user_attrs[CONFIG]), trial.user_attrs
        records = attributes.get(KEPT) or [kept_record(config, attributes[CURVE])]
        return tuple(statistics.fmean(figures) for figures in zip(*map(merit, records), strict=True))

    # As the best epoch of a run: among equals by the validation loss, then the first.
    return [max(best, key=of_runs)]
