"""Training, resuming and evaluating: what the command line calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

import neuralosc
import solvers
from experiments import tasks
from experiments.tasks import Task
from experiments.train import history
from experiments.train.checkpoints import Keeper, load_checkpoint
from experiments.train.config import RunConfig
from experiments.train.model import SequenceModel, build, load_saved, make_task, parameter_count, save_model
from experiments.train.progress import Reporter
from experiments.train.runs import RunFolder
from experiments.train.trainer import TrainingLoop, evaluation_batches, fit, measure
from solvers.compiled.passes import denormals
from solvers.errors import InputError, unknown

__all__ = ["RunResult", "SequenceModel", "build", "evaluate", "load_model", "make_task", "resume", "train"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: where everything about it lies.
        validation: {"loss", and "accuracy" or "mse"} of the best weights on the validation set.
        test: the same on the test set.
        best_epoch: the epoch, counted from 1, whose weights were kept.
        epochs: epochs done.
        seconds: time spent in epochs.
        parameters: numbers that were trained.
    """

    folder: RunFolder
    validation: dict[str, float]
    test: dict[str, float]
    best_epoch: int
    epochs: int
    seconds: float
    parameters: int


def train(config: RunConfig, root: str | Path = "runs", name: str | None = None, progress: bool = True) -> RunResult:
    """Train a network and keep everything about it in a new folder.

    Args:
        config: what to train, on what, how.
        root: folder of the run folders.
        name: name of the run folder, the task and the network with a number if left out.
        progress: whether to show the progress on standard output.

    Raises:
        InputError: the configuration, the data or the name cannot be used; no folder is made then.
        NumericalError: the training broke down; the checkpoints and logs stay.
        KeyboardInterrupt: it was interrupted; the message says how to go on.
    """
    device = device_of(config)
    task = make_task(config)
    model = build(config, task)
    with threads(config):
        config = resolved(config, task, model)
        loop = TrainingLoop(model, config, task)
        folder = RunFolder.create(root, name, prefix=f"{config.task}-{config.model}")
        with folder.locked():
            folder.write_config(config, device)
            return _run(folder, loop, device, None, progress)


def resume(path: str | Path, progress: bool = True) -> RunResult:
    """Go on with a run that was interrupted, to the same weights as if it had not been.

    A run that has finished is left as it is, and its result returned.

    Raises:
        InputError: `path` is no run, another process is training in it, or its checkpoint is damaged.
        NumericalError, KeyboardInterrupt: as for `train`.
    """
    folder = RunFolder.open(path)
    with folder.locked():
        config = folder.config()
        result = folder.result()
        if result is not None and result["status"] == "finished":
            if progress:
                print(f"run {folder.path} has finished after {result['epochs']} epochs: nothing is left to do")
            return _stored(folder, result)
        device = device_of(config)
        checkpoint = load_checkpoint(folder.last) if folder.last.is_file() else None
        task = make_task(config)
        model = build(config, task)
        if checkpoint is not None:
            _load_weights(model, checkpoint, folder.last)
        loop = TrainingLoop(model, config, task, first_epoch=checkpoint["epochs"] if checkpoint else 0)
        for outdated in (folder.result_file, folder.model_file, folder.readout_file):
            outdated.unlink(missing_ok=True)
        with threads(config):
            return _run(folder, loop, device, checkpoint, progress)


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
    """Loss and metric of a run's best weights, under the solver they were trained with or another.

    Args:
        run: the run or its folder.
        split: "train", "validation" or "test".
        solver, substeps, dt, gradient, control: as for `ContinuousRNN.with_solver`; None keeps the run's.
        solver_options: options of the solver: rtol, atol, max_steps, implicit.
        device: as in the configuration; None keeps the run's.
        limit: batches at most, 0 for all; None keeps the run's.

    Returns:
        run, task, model, split, samples, solver (None of a baseline), loss, accuracy or mse, seconds.

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
        rnn = model.rnn if isinstance(model.rnn, neuralosc.LinOSSNetwork) else model.swappable
        chosen: Any = solver or rnn.solver
        if solver_options:
            chosen = solvers.get(solver or rnn.solver.name, **solver_options)
        model = SequenceModel(rnn.with_solver(chosen, **swaps), model.readout)
    where = device_of(config if device is None else replace(config, device=device))
    data = task.splits(config.seed)[SPLITS.index(split)]
    batches = evaluation_batches(data, config, limit=limit)
    started = time.perf_counter()
    with threads(config):
        figures = measure(model.to(where), batches, task.kind, where)
    return {
        "run": str(folder.path),
        "task": config.task,
        "model": config.model,
        "split": split,
        "samples": min(batches.samples, len(batches) * batches.size),
        "solver": getattr(getattr(model.rnn, "solver", None), "name", None),
        **figures,
        "seconds": time.perf_counter() - started,
    }


def load_model(run: str | Path | RunFolder) -> tuple[SequenceModel, RunConfig, Task]:
    """The best weights of a run, its configuration and its task; nothing that the files hold is executed.

    Raises:
        InputError: no run, no weights yet, or damaged files.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    config = folder.config()
    task = make_task(config)
    if folder.model_file.is_file():
        model = load_saved(folder)
    elif folder.best.is_file():
        model = build(config, task)
        _load_weights(model, load_checkpoint(folder.best), folder.best)
    else:
        raise InputError(f"run {folder.path} has no weights yet: it has not finished its first epoch")
    return model.eval(), config, task


def device_of(config: RunConfig) -> str:
    """The kind of device a configuration asks for: "cpu", "cuda" or "mps".

    Raises:
        InputError: it asks for one that is not there.
    """
    # Apple's devices have no float64.
    mps = torch.backends.mps.is_available() and config.precision != "64"
    there = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    available = [name for name in there if there[name]]
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
    assert rnn.config is not None
    chosen = {name: value for name, value in rnn.config.items() if name not in ("model", "input_size")}
    solver = rnn.solver if isinstance(rnn, neuralosc.ContinuousRNN) else None
    if solver is not None:
        chosen["solver"] = solver.name
    options = {name: getattr(task, name) for name in tasks.options(config.task) if name != "data_dir"}
    folder = config.task_options.get("data_dir", config.data_dir)
    return replace(
        config,
        task_options=options,
        model_options=chosen,
        solver_options={} if solver is None else solver.options,
        threads=torch.get_num_threads(),
        data_dir=None if folder is None else str(Path(folder).expanduser().resolve()),
    )


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
    folder: RunFolder, loop: TrainingLoop, device: str, checkpoint: dict[str, Any] | None, progress: bool
) -> RunResult:
    """Train what is left of a run, evaluate it and write how it ended."""
    keeper = Keeper(folder, loop.config, checkpoint)
    try:
        if not history.is_over(loop.config, keeper.history):
            fit(loop, device, [keeper, Reporter(keeper)] if progress else [keeper])
        result = _finish(folder, loop, keeper, device)
    except KeyboardInterrupt:
        advice = f"go on with: python -m experiments train --resume {folder.path}"
        _give_up(folder, loop, keeper, status="interrupted", message=advice)
        raise KeyboardInterrupt(f"interrupted after {len(keeper.history)} epochs; {advice}") from None
    except Exception as error:
        _give_up(folder, loop, keeper, status="failed", message=str(error))
        raise
    finally:
        keeper.close()
    return result


def _finish(folder: RunFolder, loop: TrainingLoop, keeper: Keeper, device: str) -> RunResult:
    """Save and evaluate the best weights."""
    config, task, model = loop.config, loop.task, loop.model
    _load_weights(model, load_checkpoint(folder.best), folder.best)
    save_model(model, folder)
    _, validation, test = loop.splits
    model.to(device)
    result = RunResult(
        folder=folder,
        validation=measure(model, evaluation_batches(validation, config), task.kind, device),
        test=measure(model, evaluation_batches(test, config), task.kind, device),
        best_epoch=int(history.best_record(keeper.history)["epoch"]),
        epochs=len(keeper.history),
        seconds=sum(record["seconds"] for record in keeper.history),
        parameters=parameter_count(model),
    )
    values = {field.name: getattr(result, field.name) for field in fields(result)[1:]}
    folder.write_result(status="finished", task=config.task, model=config.model, metric=task.metric_name, **values)
    return result


def _stored(folder: RunFolder, result: dict[str, Any]) -> RunResult:
    """The result of a finished run, from its file."""
    try:
        return RunResult(folder, **{field.name: result[field.name] for field in fields(RunResult)[1:]})
    except KeyError as error:
        raise InputError(f"{folder.result_file} has no {error}: remove it and resume the run") from error


def _give_up(folder: RunFolder, loop: TrainingLoop, keeper: Keeper, *, status: str, message: str) -> None:
    """Write why a run ended early, and the best weights it had, if any."""
    if folder.best.is_file():
        _load_weights(loop.model.cpu(), load_checkpoint(folder.best), folder.best)
        save_model(loop.model, folder)
    config = loop.config
    folder.write_result(
        status=status, message=message, task=config.task, model=config.model, epochs=len(keeper.history)
    )


def _load_weights(model: SequenceModel, checkpoint: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise InputError(f"checkpoint {path} does not fit the configuration of its run") from error
