"""Tasks and their data, training, studies and the command line; used from a checkout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from experiments.tasks import Task
    from experiments.tasks.base import Splits
    from experiments.train.config import RunConfig
    from neuralosc import SequenceModel


@dataclass(frozen=True)
class Loaded:
    """A run, to go on with in Python.

    Attributes:
        model: scaling, network and read-out with the weights that were kept, in evaluation mode.
        config: the configuration.
        task: the task.
    """

    model: SequenceModel
    config: RunConfig
    task: Task

    @property
    def rnn(self) -> nn.Module:
        """The network."""
        return self.model.rnn

    @property
    def readout(self) -> nn.Module:
        """From the outputs of the network to answers."""
        return self.model.readout

    @cached_property
    def splits(self) -> Splits:
        """The (training, validation, test) sets that the run has."""
        return self.task.splits(self.config.seed)


def load(run: str | Path) -> Loaded:
    """The network, read-out, task and data of a run.

    Args:
        run: its folder.

    Raises:
        InputError: it is no run, has no weights yet, or its files are damaged.
    """
    from experiments.train import training

    return Loaded(*training.load_model(run))
