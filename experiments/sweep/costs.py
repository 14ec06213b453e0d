"""What a sweep asks of a configuration: its objectives, and how each is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from experiments.bench.timing import interleaved
from experiments.tasks import Task
from experiments.tasks.metrics import METRICS, shown
from experiments.tasks.series import batch_of
from experiments.train.config import RunConfig
from experiments.train.feeding import told
from experiments.train.model import build, parameter_count
from experiments.train.runs import RunFolder
from experiments.train.streams import Pass
from experiments.train.trainer import TrainingLoop, optimizer
from experiments.train.training import device_of, load_model, threads
from neuralosc.analysis import subject
from neuralosc.analysis.samples import Samples
from solvers.errors import InputError, unknown
from solvers.run.audit import PeakMemory

#: Of a configuration before it is trained, and of its trained weights.
BEFORE, AFTER = ("parameters", "seconds", "memory"), ("deviation",)

#: What they are, in a sentence each.
MEANINGS = {
    "parameters": "numbers that are trained",
    "seconds": "of a training step: forward, backward and the change of the weights, the shortest of many",
    "memory": "bytes of tensors alive at once in a training step, besides weights and data",
    "deviation": "of the trained states from the continuous solution, relative RMS",
}

# A training step is timed alone if it takes so long, else in a row of several; and how many such rounds there are at
# least and at most, or as many as fit into the time.
_ROUND, _ROUNDS, _TIMED = 0.002, (5, 50), 0.5


@dataclass(frozen=True)
class Objective:
    """One figure that is to be large or small.

    Attributes:
        name: of the metric of the task, or of a cost.
        larger: whether it is to be large.
    """

    name: str
    larger: bool

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """The direction, in Optuna's words."""
        return "maximize" if self.larger else "minimize"

    def shown(self, value: float) -> str:
        """A figure as it is printed."""
        if self.name == "seconds":
            return f"{1e3 * value:.3g} ms"
        if self.name == "memory":
            return f"{value / 2**20:.2f} MiB"
        return f"{value:,.0f}" if self.name == "parameters" else shown(self.name, value)


def objectives(names: Sequence[str], task: Task) -> tuple[Objective, ...]:
    """The objectives of these names; the first metric of the task where none are given.

    Raises:
        InputError: a name that is none, or that is given twice.
    """
    known = (task.metric_name, *BEFORE, *AFTER)
    for name in names:
        if name not in known:
            raise unknown("objective", name, known)
    if len(set(names)) < len(names):
        raise InputError(f"--objectives {','.join(names)} names one of them twice: leave it out")
    return tuple(Objective(n, n in METRICS and METRICS[n].larger) for n in names or (task.metric_name,))


def before(config: RunConfig, task: Task) -> dict[str, float]:
    """The costs of a configuration that are known before it is trained, on its first training batch.

    Raises:
        InputError: it cannot be built, or does not take the data.
        NumericalError: its first steps fail.
    """
    model, device = build(config, task), device_of(config)
    with threads(config):
        loop = TrainingLoop(model, config, task)
        batch = next(iter(loop.train_batches)).to(device)
        model.to(device)
        change = optimizer(model, config)
        for group in change.param_groups:
            # It is the time of a change that is asked for: many on one batch might end where no training does.
            group["lr"] = 0.0

        def step() -> None:
            change.zero_grad(set_to_none=True)
            loss = Pass(loop.scoring, task.streams).answered(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip or torch.inf)
            change.step()
            # The number is waited for, as training does.
            float(loss.detach())

        with loop.paths():
            # The first step compiles, and makes the moments of the optimizer.
            step()
            with PeakMemory() as memory:
                step()
            seconds = _shortest(step, clock_of(device))
        return {"parameters": float(parameter_count(model)), "memory": float(memory.peak), "seconds": seconds}


def clock_of(device: str) -> Callable[[], float]:
    """The clock of a training step: of one thread the time that it had of the processor, whoever else wants it."""
    return time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _shortest(step: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of a step, the shortest of many: what else a machine does makes steps longer, and none shorter."""
    (first,) = interleaved({"": step}, 1, clock=clock)[""]
    count = max(1, int(_ROUND / max(first, 1e-6)))
    rounds = min(_ROUNDS[1], max(_ROUNDS[0], int(_TIMED / (count * max(first, 1e-6)))))
    return min(interleaved({"": step}, rounds, counts={"": count}, clock=clock)[""])


def deviation(folder: RunFolder) -> float:
    """How far the trained states are from those of the continuous solution, on the first validation sequences.

    As `compare` has it: the relative RMS difference in the layer where it is largest, from a solution that a second
    method confirms.

    Raises:
        InputError: the network has no solver, or its solution is not confirmed.
        NumericalError: its own solver fails in float64.
    """
    model, config, task = load_model(folder)
    few = told(batch_of(task.splits(config.seed)[1], slice(subject.CONFIRMED)), config.time).floating(torch.float64)
    samples = Samples(few.x, None, few.timespans, few.lengths)
    with threads(config):
        copy = subject.precise(model)
        found = subject.settled(copy, samples)
        if found.run is None or found.why:
            raise InputError(f"there is no deviation: {found.why}")
        return subject.distance(subject.run(copy, samples), found.run, samples)
