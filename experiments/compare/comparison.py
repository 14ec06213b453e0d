"""Swapping the integrator of trained weights: what each solver does to accuracy, states, work and time.

Every solver integrates the same weights over the same samples in float64, so that what is measured is the solver and
not rounding, and is compared with a reference solution that a second method has confirmed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import solvers
from experiments import own
from experiments.compare.contenders import CONFIRMATION, REFERENCE, Contender, contenders, sweep_of
from experiments.tasks import Task
from experiments.tasks.series import Batch, batch_of
from experiments.train.feeding import shown, told
from experiments.train.model import swappable
from experiments.train.networks import card
from experiments.train.scoring import Scoring
from experiments.train.training import SPLITS, load_model, require_same_data, threads
from neuralosc import SequenceModel
from solvers.errors import InputError, NumericalError, unknown

# Samples times length that a table takes where nobody says how many samples, and a sweep at most; and the fewest then.
TABLE_WORK, SWEEP_WORK = 32_768, 4_096
FEWEST_SAMPLES = 32

# Bytes of states that a solve may keep: more samples are solved in chunks.
STATE_BYTES = 256 * 2**20

# How many samples the second method confirms.
CONFIRMED_SAMPLES = 4

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Measurement:
    """What one contender did on the samples.

    Attributes:
        contender: who.
        metric: the first metric of the task.
        deviation: largest absolute difference from the reference over samples, times, layers, components and channels.
        evaluations: right-hand-side evaluations of each sequence.
        seconds: time for all samples.
        samples: how many.
        reason: why there are no figures, empty if there are.
    """

    contender: Contender
    metric: float | None = None
    deviation: float | None = None
    evaluations: float | None = None
    seconds: float | None = None
    samples: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Trajectories:
    """States (time, components, hidden) of one sample in the last layer: the reference's and each contender's."""

    reference: Tensor
    contenders: tuple[tuple[Contender, Tensor], ...]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        run, model, task, split: what was compared.
        metric_name: the first metric of the task.
        samples, available: samples used, and samples in the split.
        dt: step size of one substep per sample, None if it differs between layers.
        reference: the reference solution; its deviation is the largest from a second method, on a few samples.
        rows: the table.
        sweep: every solver of the table at other step sizes and tolerances, on fewer samples.
        sweep_metric: the reference's metric on those samples, None without a sweep.
        trajectories: a sample to look at.
    """

    run: str
    model: str
    task: str
    split: str
    metric_name: str
    samples: int
    available: int
    dt: float | None
    reference: Measurement
    rows: tuple[Measurement, ...]
    sweep: tuple[Measurement, ...]
    sweep_metric: float | None
    trajectories: Trajectories


def compare(
    path: str | Path,
    names: Sequence[str] = (),
    substeps: Sequence[int] = (),
    options: Mapping[str, Any] | None = None,
    *,
    split: str = "test",
    samples: int | None = None,
    seed: int = 0,
    sweep: bool = True,
    report: Report = lambda what, done: None,
) -> Comparison:
    """Compare solvers on the best weights of the run at `path`.

    Args:
        path: the run's folder.
        names, substeps, options: as for `contenders`.
        split: "train", "validation" or "test".
        samples: how many samples, chosen by `seed`; None for as many as take a moment.
        seed: chooses the samples.
        sweep: also measure the step sizes and tolerances of the figures.
        report: called with what is being done and the fraction that is done.

    Raises:
        InputError: no such run, split or solver, or an option that cannot be used.
        NumericalError: the reference solution itself fails.
    """
    model, config, task = load_model(path)
    rnn = swappable(model)
    # A field of one's own has no step that was published.
    published = None if own.is_own(config.network) else solvers.get(card(config).solver or rnn.solver).name
    trained = Contender(rnn.solver.name, rnn.substeps, rnn.solver.options)
    table = contenders(trained, published, names, substeps, options)
    require_same_data(path, config, task)
    batch, available = select(task, config.seed, split, samples, seed)
    swept = sweep_of(table) if sweep else []
    race = _Race(copy.deepcopy(model).double().eval(), task, table, swept)
    with threads(config):
        race.run(shown(race.model, told(batch, config.time)), report)
    return Comparison(
        run=str(path),
        model=config.network,
        task=task.name,
        split=split,
        metric_name=task.metric_name,
        samples=len(batch.x),
        available=available,
        dt=rnn.dt if isinstance(rnn.dt, float) else None,
        reference=race.reference.result(),
        rows=tuple(tally.result() for tally in race.table),
        sweep=tuple(tally.result() for tally in race.sweep),
        sweep_metric=race.sweep_totals.result()[task.metric_name] if sweep else None,
        trajectories=race.trajectories(),
    )


def select(task: Task, task_seed: int, split: str, samples: int | None, seed: int) -> tuple[Batch, int]:
    """`samples` samples of a split, chosen by `seed`, in float64, and how many the split has."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if samples is not None and samples < 1:
        raise InputError(f"samples is {samples}: expected a whole number of at least 1")
    data = task.splits(task_seed)[SPLITS.index(split)]
    available = len(data)  # type: ignore[arg-type]
    wanted = samples or max(FEWEST_SAMPLES, TABLE_WORK // task.length)
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:wanted]
    return batch_of(data, chosen.sort().values).floating(torch.float64), available


class _Tally:
    """The figures of one contender, added up over chunks of samples."""

    def __init__(self, contender: Contender, task: Task, model: SequenceModel) -> None:
        self.contender, self.metric_name = contender, task.metric_name
        self.totals = Scoring.of(task, model=model).totals()
        self.deviation = self.seconds = 0.0
        self.evaluations = 0
        self.reason = ""
        self.path: Tensor | None = None

    def solve(self, model: SequenceModel, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Count one chunk; returns the states of every layer, and the answers."""
        rnn = self.contender.apply(swappable(model))
        start = time.perf_counter()
        solution = rnn.solve(batch.x, timespans=batch.timespans, lengths=batch.lengths)
        self.seconds += time.perf_counter() - start
        answers = model.readout(solution.output, batch.lengths)
        self.totals.add(answers, batch.y, batch.valid)
        self.evaluations += solution.evaluations * len(batch.x)
        if self.path is None:
            self.path = solution.states[0].clone()
        return list(solution.layers), answers

    def result(self) -> Measurement:
        """The figures over all chunks."""
        if self.reason:
            return Measurement(self.contender, reason=self.reason)
        metric = self.totals.result()[self.metric_name]
        evaluations = self.evaluations / self.totals.sequences
        return Measurement(self.contender, metric, self.deviation, evaluations, self.seconds, self.totals.sequences)


class _Race:
    """Contenders in a row, each solving the same chunks of samples as the reference."""

    def __init__(
        self, model: SequenceModel, task: Task, table: Sequence[Contender], sweep: Sequence[Contender]
    ) -> None:
        self.model = model
        self.reference = _Tally(REFERENCE, task, model)
        self.confirmation = _Tally(CONFIRMATION, task, model)
        self.table = [_Tally(contender, task, model) for contender in table]
        self.sweep = [_Tally(contender, task, model) for contender in sweep]
        self.sweep_totals = Scoring.of(task, model=model).totals()

    @torch.no_grad()
    def run(self, batch: Batch, report: Report) -> None:
        """Solve all samples with everybody; the sweep takes the first of them."""
        rnn = self.model.rnn
        count, length = batch.x.shape[:2]
        sample_bytes = 8 * length * rnn.num_layers * rnn.components * rnn.output_size
        size = max(1, STATE_BYTES // sample_bytes)
        swept = min(count, max(FEWEST_SAMPLES, SWEEP_WORK // length)) if self.sweep else 0
        total = count * _effort(self.reference, *self.table) + swept * _effort(*self.sweep)
        done = 0
        for start in range(0, count, size):
            part = _part(batch, slice(start, min(start + size, count)))
            report("reference solution", done / total)
            states, answers = self.reference.solve(self.model, part)
            done += len(part.x) * _effort(self.reference)
            if start == 0:
                few = slice(CONFIRMED_SAMPLES)
                second, _ = self.confirmation.solve(self.model, _part(part, few))
                self.reference.deviation = _deviation(second, [layer[few] for layer in states])
            done = self._run_all(self.table, part, states, report, done, total)
            first = slice(min(len(part.x), swept - start))
            if first.stop > 0:
                part, states = _part(part, first), [layer[first] for layer in states]
                self.sweep_totals.add(answers[first], part.y, part.valid)
                done = self._run_all(self.sweep, part, states, report, done, total)
        report("done", 1.0)

    def _run_all(
        self, tallies: list[_Tally], batch: Batch, states: list[Tensor], report: Report, done: int, total: int
    ) -> int:
        for tally in tallies:
            report(tally.contender.label, done / total)
            self._run_one(tally, batch, states)
            done += len(batch.x) * _effort(tally)
        return done

    def _run_one(self, tally: _Tally, batch: Batch, reference: list[Tensor]) -> None:
        if tally.reason:
            return
        try:
            states, _ = tally.solve(self.model, batch)
        except (InputError, NumericalError) as error:
            # One solver that cannot run is a line of the table, not the end of the comparison.
            tally.reason = str(error)
            return
        tally.deviation = max(tally.deviation, _deviation(states, reference))

    def trajectories(self) -> Trajectories:
        """The first sample under the contenders of the table."""
        assert self.reference.path is not None
        shown = [(t.contender, t.path) for t in self.table if t.path is not None and not t.reason]
        return Trajectories(self.reference.path, tuple(shown))


def _part(batch: Batch, part: slice) -> Batch:
    return batch.each(lambda values: values[part])


def _effort(*tallies: _Tally) -> int:
    return sum(tally.contender.effort for tally in tallies)


def _deviation(states: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    return max(float((state - exact).abs().max()) for state, exact in zip(states, reference, strict=True))
