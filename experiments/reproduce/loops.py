"""A training step of the published network's own loop beside the library's, at the size of a row."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from experiments.bench import suite, training
from experiments.bench.cases import COMPILED, LOOP, Shape, beside_loop
from experiments.machines import processor
from experiments.reproduce.rows import Cell
from experiments.tasks.series import batch_of
from experiments.train.model import build, make_task
from solvers.errors import InputError

ROUNDS = 3


@dataclass(frozen=True)
class Beside:
    """What a training step takes, in the loop of the paper and in the library, measured in turns.

    Forward and backward over one batch of the task's size in float32, without optimizer and read-out.

    Attributes:
        time, batch, hidden, features: of the step.
        steps: of an epoch.
        loop, ours: seconds of a step, the shortest of the rounds.
        rounds: how often the slower one was timed.
        threads: of the processor that computed.
        machine: which one.
    """

    time: int
    batch: int
    hidden: int
    features: int
    steps: int
    loop: float
    ours: float
    rounds: int
    threads: int
    machine: str


def beside(cell: Cell, data_dir: str | None = None, threads: int = 0) -> Beside:
    """Time a training step of a cell, and that of the published loop of its network.

    Raises:
        InputError: there is no loop of such a network, or the data are missing.
        NumericalError: the two do not compute the same.
    """
    config = dataclasses.replace(cell.config, data_dir=data_dir)
    task = make_task(config)
    rnn = build(config, task).rnn
    layers = rnn.num_layers
    cases = beside_loop(config.model, layers)
    if not cases or rnn.bidirectional:
        raise InputError(
            f"--loop: of {cell.name!r} ({config.model}, {layers} layers) there is no published loop here: those of "
            "coRNN, LEM and the Lipschitz RNN of one layer and of UnICORNN are"
        )
    data = task.splits(config.seed)[0]
    time = batch_of(data, slice(0, 1)).x.shape[1]
    shape = Shape(cell.name, time, config.batch_size, rnn.hidden_size, rnn.input_size)
    with suite.threads(threads):
        count = suite.machine()["threads"]
        timings = {timing.case.what: timing for timing in training.measure(shape, ROUNDS, todo=cases)}
    loop, ours = timings[LOOP], timings[COMPILED]
    steps = math.ceil(len(data) / config.batch_size)  # type: ignore[arg-type]
    rounds = min(len(loop.seconds), len(ours.seconds))
    size = (shape.time, shape.batch, shape.hidden, shape.features)
    return Beside(*size, steps, loop.minimum, ours.minimum, rounds, count, processor())
