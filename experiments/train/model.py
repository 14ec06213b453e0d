"""What is trained: a recurrent network with a read-out."""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from torch import nn

import neuralosc
import solvers
from experiments import tasks
from experiments.tasks import Task
from experiments.tasks.metrics import CLASSIFICATION
from experiments.train import feeding, networks, streams
from experiments.train.config import RunConfig
from experiments.train.runs import RunFolder
from neuralosc import SequenceModel
from solvers.errors import InputError

HIDDEN_SIZE = 128


def swappable(model: SequenceModel) -> neuralosc.ContinuousRNN:
    """The network of a model, which must have a solver.

    Raises:
        InputError: it is a baseline, which has none, or a stack of blocks with several.
    """
    if isinstance(model.rnn, neuralosc.LinOSSNetwork):
        raise InputError("a stack of blocks has layers between its recurrences: compare a network without blocks")
    if not isinstance(model.rnn, neuralosc.ContinuousRNN):
        name = (model.rnn.config or {}).get("model", getattr(model.rnn, "name", type(model.rnn).__name__))
        raise InputError(f"model {name!r} is a baseline without a solver: there is none to choose or to compare")
    return model.rnn


def make_task(config: RunConfig) -> Task:
    """The task of a configuration, told where the data files are if it needs any, with what is to be measured.

    Raises:
        InputError: an option that the task cannot use, or a likelihood of classes.
    """
    options = dict(config.task_options)
    if config.data_dir is not None and "data_dir" in tasks.options(config.task):
        options.setdefault("data_dir", config.data_dir)
    task = tasks.get(config.task, **options)
    if config.likelihood != "none":
        if task.kind == CLASSIFICATION:
            raise InputError(f"likelihood is given, and task {task.name!r} has classes, not numbers: leave it out")
        task.metrics = ("crps", *task.metrics)
    return task


def build(config: RunConfig, task: Task) -> SequenceModel:
    """The model of a configuration, with initial weights that depend on its seed alone.

    Raises:
        InputError: a name or a hyperparameter that the network or the solver does not take.
        PairingError: a network, solver and gradient that cannot work together.
    """
    model = _assembled(config, task, feeding.missing(config, task))
    feeding.check_lengths(model.rnn, config, task)
    feeding.fit(model, config, task)
    if task.echoed and model.readout.weight.shape == (task.output_size,) * 2:
        # A network whose state is what is asked for begins with answers that are its state.
        nn.init.eye_(model.readout.weight)
        nn.init.zeros_(model.readout.bias)
    if model.embedding is not None:
        with torch.no_grad():
            model.embedding.weight.copy_(task.embedded(model.embedding.weight))
    return model


def blank(config: RunConfig, task: Task) -> SequenceModel:
    """The model of a run's configuration, to load its weights and scales into: no data are read.

    Raises:
        InputError, PairingError: see `build`.
    """
    model = _assembled(config, task, {})
    feeding.scale(model, task)
    return model


def _assembled(config: RunConfig, task: Task, more: dict[str, Any]) -> SequenceModel:
    """Network, read-out and unit of time, without scales; `more` are options of the network."""
    options: dict[str, Any] = {"hidden_size": HIDDEN_SIZE, **config.model_options}
    if "input_size" in options:
        raise InputError("model_options.input_size is given: the task decides it, leave it out")
    if config.solver_options:
        name = options.get("solver") or networks.card(config).solver
        if name is None:
            raise InputError(f"solver_options are given, and model {config.network!r} has no solver: leave them out")
        options["solver"] = solvers.get(name, **config.solver_options)
    options |= more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, 0))
        rnn = networks.make(config, feeding.features(config, task), options)
        kind = feeding.readout(config, task)
        readout = neuralosc.Readout(
            rnn.output_size, task.output_size, kind, rnn.bidirectional, likelihood=config.likelihood
        )
        embedding = feeding.embedding(task)
    feeding.check(rnn, config, task)
    streams.check(rnn, config, task)
    # A network that is not told the time has no unit of it.
    collator = task.collator if config.time == "true" else None
    return SequenceModel(rnn, readout, collator, embedding=embedding).to(dtype(config))


def dtype(config: RunConfig) -> torch.dtype:
    """The type of the weights and of the data."""
    return torch.float64 if config.precision == "64" else torch.float32


def seed_of(*numbers: int) -> int:
    """One seed from several numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def parameter_count(model: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def save_model(model: SequenceModel, folder: RunFolder) -> None:
    """Write the model into the folder, as `neuralosc.load` reads it."""
    neuralosc.save(model, folder.model_file)
    # Of a run that was begun by a version that wrote two files.
    folder.readout_file.unlink(missing_ok=True)


def load_saved(folder: RunFolder, into: SequenceModel | None = None) -> SequenceModel:
    """The model that `save_model` wrote, also of runs from before, whose read-out has a file of its own.

    Args:
        folder: the run.
        into: what the weights are loaded into, of a network of one's own: see `blank`.

    Raises:
        InputError: a file is missing, damaged, or holds something else.
    """
    stored = neuralosc.load(folder.model_file, into)
    return stored if isinstance(stored, SequenceModel) else SequenceModel(stored, _readout_of_before(folder, stored))


def _readout_of_before(folder: RunFolder, rnn: neuralosc.RecurrentLayer) -> neuralosc.Readout:
    """The read-out in its own file, for the network beside it."""
    path = folder.readout_file
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kind = (file.metadata() or {}).get("kind", "last")
        answers, features = weights["weight"].shape
        with torch.random.fork_rng(devices=[]):
            readout = neuralosc.Readout(features, answers, kind, rnn.bidirectional).to(weights["weight"].dtype)
        readout.load_state_dict(weights)
    except OSError as error:
        raise InputError(f"read-out {path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} holds no read-out ({reason}): resume the run to write it anew") from error
    if features != rnn.output_size:
        raise InputError(
            f"{path} holds a read-out of shape {(answers, features)}: expected (output, {rnn.output_size})"
        )
    return readout
