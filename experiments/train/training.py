"""Training, resuming and evaluating: what the command line calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

import neuralosc
import solvers
from experiments import own, tasks
from experiments.tasks import Task
from experiments.train import checkpoints, feeding, history, initial, networks, probes, processes, trackers
from experiments.train.checkpoints import MOVABLE, PROBE, Keeper, load_checkpoint, newest, put_weights, require_same
from experiments.train.config import RunConfig
from experiments.train.guessing import guessed
from experiments.train.model import (
    HIDDEN_SIZE,
    blank,
    build,
    load_saved,
    make_task,
    parameter_count,
    save_model,
    swappable,
)
from experiments.train.outcome import RunResult, ended
from experiments.train.profiling import Profile
from experiments.train.progress import AfterEpoch, Reporter, Stopped, Teller
from experiments.train.runs import RunFolder
from experiments.train.scoring import Scoring
from experiments.train.trackers import Trackers
from experiments.train.trainer import TrainingLoop, evaluation_batches, fit, measure
from neuralosc import SequenceModel
from neuralosc.arguments import MISSING
from solvers.compiled.passes import denormals
from solvers.errors import InputError, unknown

__all__ = ["RunResult", "SequenceModel", "build", "evaluate", "load_model", "make_task", "resume", "train"]

SPLITS = ("train", "validation", "test")


def train(
    config: RunConfig,
    root: str | Path = "runs",
    name: str | None = None,
    progress: bool = True,
    after_epoch: AfterEpoch | None = None,
    profile: Profile | None = None,
) -> RunResult:
    """Train a network and keep everything about it in a new folder.

    Args:
        config: what to train, on what, how.
        root: folder of the run folders.
        name: name of the run folder, the task and the network with a number if left out.
        progress: whether to show the progress on standard output.
        after_epoch: called after every epoch; may raise `Stopped`.
        profile: what keeps where the time of the epochs goes.

    Raises:
        InputError: the configuration, the data or the name cannot be used; no folder is made then.
        NumericalError: the training broke down; the checkpoints and logs stay.
        KeyboardInterrupt: it was interrupted; the message says how to go on.
        Stopped: by `after_epoch`.
    """
    with processes.joined(), contextlib.ExitStack() as held:
        device, task, model = processes.together(lambda: _made(config))
        held.enter_context(threads(config))
        loop = processes.together(lambda: _begun(model, resolved(config, task, model), task))
        for line in task.notices:
            checkpoints.notice(line)
        prefix = f"{own.short(config.task)}-{own.short(config.network)}"

        def opened() -> RunFolder:
            folder = RunFolder.create(root, name, prefix=prefix)
            held.enter_context(folder.locked())
            folder.write_config(loop.config, device)
            return folder

        return _run(processes.first(opened), loop, device, None, progress, after_epoch, profile)


def _made(config: RunConfig) -> tuple[str, Task, SequenceModel]:
    """The device, the task and the model of a new run."""
    device = device_of(config)
    trackers.require(config.loggers)
    task = make_task(config)
    model = build(config, task)
    chosen = feeding.missing(config, task).get("missing")
    if chosen is not None:
        what = f"{chosen} ({MISSING[chosen]})"
        checkpoints.notice(f"task {config.task!r} has missing values, shown as --missing {what}")
    return device, task, model


def _begun(model: SequenceModel, config: RunConfig, task: Task) -> TrainingLoop:
    """The loop of a run before its first epoch."""
    initial.begin(model, config, task, load_model)
    return TrainingLoop(model, config, task)


def resume(
    path: str | Path, progress: bool = True, after_epoch: AfterEpoch | None = None, profile: Profile | None = None
) -> RunResult:
    """Go on with a run that was interrupted, to the same weights as if it had not been.

    A run that has finished is left as it is, and its result returned. One whose last checkpoint is damaged goes on from
    the one before, and says so.

    Raises:
        InputError: `path` is no run, another process is training in it, its configuration was changed, or all of its
            checkpoints are damaged.
        NumericalError, KeyboardInterrupt, Stopped: as for `train`.
    """
    with processes.joined(), contextlib.ExitStack() as held:

        def opened() -> tuple[RunFolder, RunConfig, dict[str, Any] | None, RunResult | None]:
            folder = RunFolder.open(path)
            held.enter_context(folder.locked())
            config, result = folder.config(), folder.result()
            if result is not None and result["status"] == "finished":
                return folder, config, None, ended(folder, result)
            device_of(config)
            checkpoint = newest(folder)
            if checkpoint is not None:
                require_same(folder, config, checkpoint)
            if folder.processes() != processes.count():
                begun, now = folder.processes(), processes.count()
                checkpoints.notice(f"run {folder.path} began with {begun} processes and goes on with {now}")
            return folder, config, checkpoint, None

        folder, config, checkpoint, stored = processes.first(opened)
        if stored is not None:
            if progress and processes.leads():
                print(f"run {folder.path} has finished after {stored.epochs} epochs: nothing is left to do")
            return stored
        device, loop = processes.together(lambda: _restored(folder, config, checkpoint))
        with threads(config):
            return _run(folder, loop, device, checkpoint, progress, after_epoch, profile)


def _restored(folder: RunFolder, config: RunConfig, checkpoint: dict[str, Any] | None) -> tuple[str, TrainingLoop]:
    """The device and what happens in an epoch of a run that goes on."""
    device = device_of(config)
    require_same_arguments(config)
    task = make_task(config)
    model = build(config, task)
    if checkpoint is None:
        return device, _begun(model, config, task)
    put_weights(model, checkpoint, folder.last)
    probe = checkpoint.get(PROBE)
    probes.require_same_answers(model, config, probe, str(folder.path))
    probes.require_same_data(task, config, probe, str(folder.path))
    return device, TrainingLoop(model, config, task, first_epoch=checkpoint["epochs"])


def evaluate(
    run: str | Path | RunFolder,
    split: str = "test",
    solver: str | None = None,
    substeps: int | None = None,
    *,
    dt: float | None = None,
    gradient: str | None = None,
    control: str | None = None,
    solver_options: dict[str, Any] | None = None,
    device: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Loss and metrics of the weights a run kept, under the solver they were trained with or another.

    Args:
        run: the run or its folder.
        split: "train", "validation" or "test".
        solver, substeps, dt, gradient, control: as for `ContinuousRNN.with_solver`; None keeps the run's.
        solver_options: options of the solver: rtol, atol, max_steps, implicit.
        device: as in the configuration; None keeps the run's.
        limit: batches at most, 0 for all; None keeps the run's.

    Returns:
        run, task, model, split, samples, solver (None of a baseline), loss, the metrics of the task, seconds, and
        baselines: loss and metrics of what needs no network, by name, where the task has such.

    Raises:
        InputError: no run, no such split, or a solver that does not fit.
        NumericalError: the solver broke down.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if limit is not None and limit < 0:
        raise InputError(f"limit is {limit}: expected a number of batches, or 0 for all")
    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    model, config, task = load_model(folder)
    swaps: dict[str, Any] = {"substeps": substeps, "dt": dt, "gradient": gradient, "control": control}
    if solver or solver_options or any(value is not None for value in swaps.values()):
        rnn = model.rnn if isinstance(model.rnn, neuralosc.LinOSSNetwork) else swappable(model)
        chosen: Any = solver or rnn.solver
        if solver_options:
            chosen = solvers.get(solver or rnn.solver.name, **solver_options)
        model = model.with_solver(chosen, **swaps)
    where = device_of(config if device is None else replace(config, device=device))
    require_same_data(folder, config, task)
    sets = task.splits(config.seed)
    batches = evaluation_batches(sets[SPLITS.index(split)], config, task, limit)
    scoring = Scoring.of(task, config, sets[0], model)
    started = time.perf_counter()
    with threads(config):
        figures = measure(model.to(where), batches, scoring, where)
    return {
        "run": str(folder.path),
        "task": config.task,
        "model": config.network,
        "split": split,
        "samples": min(batches.samples, len(batches) * batches.size),
        "solver": getattr(getattr(model.rnn, "solver", None), "name", None),
        **figures,
        "seconds": time.perf_counter() - started,
        "baselines": guessed(
            task, SPLITS.index(split), scoring, model, batches, evaluation_batches(sets[0], config, task, limit)
        ),
    }


def load_model(run: str | Path | RunFolder) -> tuple[SequenceModel, RunConfig, Task]:
    """The weights a run kept, its configuration and its task; nothing that the files hold is executed.

    Raises:
        InputError: no run, no weights yet, or damaged files.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    config = folder.config()
    require_same_arguments(config)
    task = make_task(config)
    best = _best(folder)
    if best is not None:
        require_same(folder, config, best, (*MOVABLE, "threads", "limit_evaluation_batches"))
    if folder.model_file.is_file():
        _require_unchanged(folder)
        model = load_saved(folder, blank(config, task) if own.is_own(config.network) else None)
    elif folder.best.is_file():
        model = build(config, task)
        put_weights(model, best or load_checkpoint(folder.best), folder.best)
    else:
        raise InputError(f"run {folder.path} has no weights yet: it has not finished its first epoch")
    if task.measured and model.input_scaler is model.embedding is None:
        raise InputError(
            f"run {folder.path} is of a version that scaled the values of task {config.task!r} before the model, which "
            "has no scales: train it again"
        )
    if own.is_own(config.network):
        probe = _probe(folder, config.network, best)
        probes.require_same_answers(model, config, probe, str(folder.path))
    return model.eval(), config, task


def require_same_arguments(config: RunConfig) -> None:
    """Refuse a run whose task, field or model is a class that takes other arguments than in its training.

    Raises:
        InputError: it does.
    """
    networks.require_same(config)
    if own.is_own(config.task):
        now = {name: default for name, default in tasks.defaults(config.task).items() if name != "data_dir"}
        own.require_arguments("task", config.task, now, config.task_options, ("data_dir",))


def require_same_data(run: str | Path | RunFolder, config: RunConfig, task: Task) -> None:
    """Refuse a task that gives other data than in the training of a run, before it is measured on them; see `probes`.

    Raises:
        InputError: it does.
    """
    if probes.watched(config, task):
        folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
        probes.require_same_data(task, config, _probe(folder, config.task, _best(folder)), str(folder.path))


def _best(folder: RunFolder) -> dict[str, Any] | None:
    """The checkpoint of the epoch that was kept; None where it is lost."""
    with contextlib.suppress(InputError):
        return load_checkpoint(folder.best)
    return None


def _probe(folder: RunFolder, name: str, checkpoint: dict[str, Any] | None) -> probes.Probe | None:
    """What code of one's own did in training; that nothing is left of it is said."""
    probe: probes.Probe | None = (checkpoint or {}).get(PROBE)
    if probe is None:
        checkpoints.notice(f"run {folder.path} has no checkpoint left that says whether {name} is what it was then")
    return probe


def device_of(config: RunConfig) -> str:
    """The kind of device a configuration asks for: "cpu", "cuda" or "mps".

    Raises:
        InputError: it asks for one that is not there.
    """
    # Apple's devices have no float64.
    mps = torch.backends.mps.is_available() and config.precision != "64"
    there = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    available = [name for name in there if there[name]]
    here = processes.on_this_machine()
    if available[0] == "cuda" and config.device in ("auto", "cuda") and here > torch.cuda.device_count():
        raise InputError(
            f"{here} processes on a machine with {torch.cuda.device_count()} GPUs: start as many as there are, or give"
            " --device cpu"
        )
    if config.device == "auto":
        return available[0]
    if config.device not in available:
        raise InputError(
            f"device {config.device!r} is not available here with precision {config.precision}:"
            f" use auto or one of {', '.join(available)}"
        )
    return config.device


def resolved(config: RunConfig, task: Task, model: SequenceModel) -> RunConfig:
    """The configuration with everything written out that was left to defaults or to the machine."""
    rnn = model.rnn
    solver = rnn.solver if isinstance(rnn, neuralosc.ContinuousRNN) else None
    if rnn.config is None:
        given = {"hidden_size": HIDDEN_SIZE, **config.model_options, **feeding.missing(config, task)}
        chosen = networks.chosen(config, given, rnn)
    else:
        chosen = {name: value for name, value in rnn.config.items() if name not in ("model", "input_size")}
        if solver is not None:
            chosen["solver"] = solver.name
    options = {**tasks.defaults(config.task), **config.task_options}
    options.pop("data_dir", None)
    if not own.is_own(config.task):
        options = {name: getattr(task, name) for name in options}
    folder = config.task_options.get("data_dir", config.data_dir)
    return replace(
        config,
        readout=model.readout.kind,
        task_options=options,
        model_options=chosen,
        solver_options=solver.options if solver is not None and "solver" in chosen else {},
        threads=torch.get_num_threads(),
        data_dir=None if folder is None else _full(folder),
        initial_weights=_full(config.initial_weights) if config.initial_weights else "",
    )


def _full(path: str) -> str:
    """A path that is the same from everywhere."""
    return str(Path(path).expanduser().resolve())


@contextlib.contextmanager
def threads(config: RunConfig) -> Iterator[None]:
    """Compute with the threads a configuration asks for, in which what vanishes is zero."""
    before = torch.get_num_threads()
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        with denormals.flushed():
            yield
    finally:
        torch.set_num_threads(before)


def _run(
    folder: RunFolder,
    loop: TrainingLoop,
    device: str,
    checkpoint: dict[str, Any] | None,
    progress: bool,
    after_epoch: AfterEpoch | None,
    profile: Profile | None,
) -> RunResult:
    """Train what is left of a run, evaluate it and write how it ended."""
    keeper = Keeper(folder, loop.config, checkpoint)
    followers = [Trackers(folder, loop.config, keeper)] if processes.leads() else []
    # Not before it is sure that there are checkpoints to make them from again.
    if processes.leads():
        for outdated in (folder.result_file, folder.model_file, folder.readout_file):
            outdated.unlink(missing_ok=True)
    progress = progress and processes.leads()
    try:
        if not history.is_over(loop.config, keeper.history):
            shown = [Reporter(keeper)] if progress else []
            told = [Teller(keeper, after_epoch)] if after_epoch else []
            fit(loop, device, [keeper, *followers, *shown, *told], profile)
        result = _finish(folder, loop, keeper, device)
        for tracker in followers:
            tracker.close("success", result.test)
    except KeyboardInterrupt:
        advice = f"go on with: python -m experiments train --resume {folder.path}"
        _give_up(folder, loop, keeper, status="interrupted", message=advice)
        raise KeyboardInterrupt(f"interrupted after {len(keeper.history)} epochs; {advice}") from None
    except Exception as error:
        said = processes.explained(error)
        _give_up(folder, loop, keeper, status="stopped" if isinstance(error, Stopped) else "failed", message=str(said))
        if said is error:
            raise
        raise said from error
    finally:
        # Of a run that has ended well they are closed.
        for tracker in followers:
            tracker.close("failed")
        keeper.draw()
    return result


def _finish(folder: RunFolder, loop: TrainingLoop, keeper: Keeper, device: str) -> RunResult:
    """Save and evaluate the weights that are kept."""
    config, task, model = loop.config, loop.task, loop.model
    best = processes.first(lambda: load_checkpoint(folder.best))
    best_epoch = int(history.kept_record(config, keeper.history)["epoch"])
    if best["epochs"] != best_epoch:
        raise InputError(f"checkpoint {folder.best} is of epoch {best['epochs']}: {config.keep} is {best_epoch}")
    put_weights(model, best, folder.best)
    processes.first(lambda: save_model(model, folder))
    train, validation, test = loop.splits
    model.to(device)
    tested = evaluation_batches(test, config, task)
    result = RunResult(
        folder=folder,
        validation=measure(model, evaluation_batches(validation, config, task), loop.scoring, device),
        test=measure(model, tested, loop.scoring, device),
        best_epoch=best_epoch,
        epochs=len(keeper.history),
        seconds=sum(record["seconds"] for record in keeper.history),
        parameters=parameter_count(model),
        baselines=processes.first(
            lambda: guessed(task, 2, loop.scoring, model, tested, evaluation_batches(train, config, task))
        ),
        notices=list(task.notices),
    )
    values = {field.name: getattr(result, field.name) for field in fields(result)[1:]}
    named = {"task": config.task, "model": config.network, "metric": task.metric_name}
    processes.first(lambda: folder.write_result(status="finished", **named, **values, checksums=folder.checksums()))
    return result


def _require_unchanged(folder: RunFolder) -> None:
    """Refuse weights that are not those that the run wrote."""
    written = (folder.result() or {}).get("checksums")
    for name, checksum in folder.checksums().items():
        if isinstance(written, dict) and written.get(name) != checksum:
            raise InputError(
                f"{folder.path / name} is not what the run wrote: its checksum in {folder.result_file.name} is"
                f" another; remove {folder.result_file.name} and resume the run to write it anew"
            )


def _give_up(folder: RunFolder, loop: TrainingLoop, keeper: Keeper, *, status: str, message: str) -> None:
    """Write why a run ended early, and the weights it kept, if any; that this fails, too, is not what is told."""
    if not processes.leads():
        return
    config = loop.config
    with contextlib.suppress(InputError, OSError):
        if folder.best.is_file():
            put_weights(loop.model.cpu(), load_checkpoint(folder.best), folder.best)
            save_model(loop.model, folder)
    with contextlib.suppress(InputError, OSError):
        named = {"task": config.task, "model": config.network, "epochs": len(keeper.history)}
        folder.write_result(status=status, message=message, **named, checksums=folder.checksums())
