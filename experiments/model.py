"""What is trained: a recurrent network with a linear read-out of its last output."""

from __future__ import annotations

from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import neuralosc
import solvers
from experiments import tasks
from experiments.config import RunConfig
from experiments.files import write_atomically
from experiments.runs import RunFolder
from experiments.tasks import Task
from solvers.errors import InputError

HIDDEN_SIZE = 128


class SequenceModel(nn.Module):
    """Answer = W h + b, where h is the output of the network after the last valid sample.

    Args:
        rnn: the recurrent network.
        readout: the linear map (hidden) -> (output).
    """

    def __init__(self, rnn: neuralosc.ContinuousRNN, readout: nn.Linear) -> None:
        super().__init__()
        self.rnn = rnn
        self.readout = readout

    def forward(self, x: Tensor, timespans: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Answers (batch, output) for sequences x (batch, time, input).

        Args:
            x: the sequences.
            timespans: as for the network.
            lengths: valid samples of each sequence (batch,); the answer is read off after the last of them.
        """
        output, _ = self.rnn(x, timespans=timespans, lengths=lengths)
        if lengths is None:
            return self.readout(output[:, -1])
        last = torch.as_tensor(lengths, device=output.device) - 1
        return self.readout(output[torch.arange(len(output), device=output.device), last])


def make_task(config: RunConfig) -> Task:
    """The task of a configuration, told where the data files are if it needs any."""
    options = dict(config.task_options)
    if config.data_dir is not None and "data_dir" in tasks.options(config.task):
        options.setdefault("data_dir", config.data_dir)
    return tasks.get(config.task, **options)


def build(config: RunConfig, task: Task) -> SequenceModel:
    """The model of a configuration, with initial weights that depend on its seed alone.

    Raises:
        InputError: a name or a hyperparameter that the network or the solver does not take.
        PairingError: a network, solver and gradient that cannot work together.
    """
    options: dict[str, Any] = {"hidden_size": HIDDEN_SIZE, **config.model_options}
    if "input_size" in options:
        raise InputError("model_options.input_size is given: the task decides it, leave it out")
    if config.solver_options:
        name = options.get("solver", neuralosc.model(config.model).solver)
        options["solver"] = solvers.get(name, **config.solver_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, 0))
        rnn = neuralosc.make(config.model, input_size=task.input_size, **options)
        readout = nn.Linear(rnn.hidden_size, task.output_size)
    return SequenceModel(rnn, readout).to(dtype(config))


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
    """Write the weights into the folder: the network as `neuralosc.load` reads it, the read-out beside it."""
    neuralosc.save(model.rnn, folder.model_file)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.readout.state_dict().items()}
    write_atomically(folder.readout_file, safetensors.torch.save(weights))


def load_saved(folder: RunFolder) -> SequenceModel:
    """The model that `save_model` wrote.

    Raises:
        InputError: a file is missing, damaged, or holds something else.
    """
    rnn = neuralosc.load(folder.model_file)
    try:
        weights = safetensors.torch.load(folder.readout_file.read_bytes())
        weight, bias = weights["weight"], weights["bias"]
    except OSError as error:
        raise InputError(f"read-out {folder.readout_file} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError) as error:
        raise InputError(
            f"{folder.readout_file} holds no read-out ({error}): resume the run to write it anew"
        ) from error
    if weight.ndim != 2 or weight.shape[1] != rnn.hidden_size or bias.shape != weight.shape[:1]:
        raise InputError(
            f"{folder.readout_file} holds a read-out of shape {tuple(weight.shape)}:"
            f" expected (output, {rnn.hidden_size})"
        )
    readout = nn.Linear(rnn.hidden_size, len(weight), dtype=weight.dtype)
    readout.load_state_dict(weights)
    return SequenceModel(rnn, readout)
