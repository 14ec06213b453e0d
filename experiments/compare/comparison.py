"""Swapping the integrator of trained weights: what each solver does to accuracy, states, work and time.

Every solver integrates the same weights over the same samples in float64, so that what is measured is the solver and
not rounding, and is compared with a reference solution that a second method has confirmed; where none is confirmed,
nothing is claimed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import solvers
from experiments import own
from experiments.compare.contenders import FALLBACK, TRAINED, Contender, contenders, sweep_of
from experiments.tasks import Task
from experiments.tasks.metrics import CLASSIFICATION
from experiments.tasks.series import Batch, batch_of
from experiments.train.feeding import shown, told
from experiments.train.model import swappable
from experiments.train.networks import card
from experiments.train.scoring import Scoring
from experiments.train.training import SPLITS, load_model, require_same_data, threads
from neuralosc import SequenceModel
from neuralosc.analysis import subject
from neuralosc.analysis.learned import NOTHING, RULE, Evidence, agreement
from neuralosc.analysis.learned import verdict as judged
from neuralosc.analysis.results import Verdict, no_claim
from neuralosc.analysis.samples import SCORES, Paired, Samples
from neuralosc.analysis.transfer import FINER
from solvers.errors import InputError, NumericalError, unknown

# Samples times length that a table takes where nobody says how many samples, and a sweep at most; and the fewest then.
TABLE_WORK, SWEEP_WORK = 32_768, 4_096
FEWEST_SAMPLES = 32

# Bytes of states that a solve may keep: more samples are solved in chunks.
STATE_BYTES = 256 * 2**20

# How many samples the second method confirms.
CONFIRMED_SAMPLES = subject.CONFIRMED

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Measurement:
    """What one contender did on the samples.

    Attributes:
        contender: who.
        metric: the first metric of the task.
        half_width: of the interval of 95 % of its paired difference from the reference; None where samples have no
            metric of their own.
        deviation: of the states from those of the reference, relative RMS, in the layer where it is largest.
        order: observed between this step and half of it; None where the half was not measured, or rounding is all
            there is to see.
        evaluations: right-hand-side evaluations of each sequence.
        seconds: time for all samples.
        samples: how many.
        reason: why there are no figures, empty if there are.
    """

    contender: Contender
    metric: float | None = None
    half_width: float | None = None
    deviation: float | None = None
    order: float | None = None
    evaluations: float | None = None
    seconds: float | None = None
    samples: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Trajectories:
    """States (time, components, hidden) of one sample in the last layer: the reference's and each contender's.

    Attributes:
        times: of the states, `(time,)`, in units of time where all layers have one dt, and else in those of dt.
        reference: the states of the reference.
        contenders: those of each contender.
    """

    times: Tensor
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
        reference: the reference solution; its deviation is from a second method, or half its steps, on a few samples.
        verdict: whether the network has learnt an equation or a step, and what that rests on.
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
    verdict: Verdict
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
    """Compare solvers on the kept weights of the run at `path`.

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
        verdict=race.verdict(),
        rows=_ordered([tally.result() for tally in race.table], race.sweep),
        sweep=_ordered([tally.result() for tally in race.sweep], race.sweep),
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
        self.seconds = 0.0
        self.evaluations = 0
        self.reason = ""
        self.path: Tensor | None = None
        #: Of each layer the sums of squares of the difference from the reference, and of the reference.
        self.squares: list[tuple[float, float]] = []
        #: Of each sample what the answer to it is worth here and by the reference, as far as it has been looked at.
        self.scores: list[tuple[Tensor, Tensor]] = []

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

    def compare(self, states: Sequence[Tensor], reference: Sequence[Tensor], valid: Tensor | None) -> None:
        """Add up how far states are from those of the reference."""
        found = [_squares(state, exact, valid) for state, exact in zip(states, reference, strict=True)]
        before = self.squares or [(0.0, 0.0)] * len(found)
        self.squares = [(a + c, b + d) for (a, b), (c, d) in zip(before, found, strict=True)]

    @property
    def deviation(self) -> float | None:
        """Relative RMS, in the layer where it is largest; None where nothing was compared."""
        return max((math.sqrt(a / max(b, 1e-300)) for a, b in self.squares), default=None)

    def result(self) -> Measurement:
        """The figures over all chunks."""
        if self.reason:
            return Measurement(self.contender, reason=self.reason)
        metric = self.totals.result()[self.metric_name]
        evaluations, half = self.evaluations / self.totals.sequences, None
        scoring = self.totals.scoring
        plain = self.metric_name == "accuracy" or (self.metric_name == "mse" and scoring.units is scoring.scale is None)
        if self.scores and plain:
            paired = Paired.of(*(torch.cat(part) for part in zip(*self.scores, strict=True)))
            half = (paired.high - paired.low) / 2
        return Measurement(
            self.contender, metric, half, self.deviation, None, evaluations, self.seconds, self.totals.sequences
        )


class _Race:
    """Contenders in a row, each solving the same chunks of samples as the reference."""

    def __init__(
        self, model: SequenceModel, task: Task, table: Sequence[Contender], sweep: Sequence[Contender]
    ) -> None:
        self.model, self.task = model, task
        # What a single sample is judged by.
        self.score = SCORES["accuracy" if task.kind == CLASSIFICATION else "mse"]
        self.table = [_Tally(contender, task, model) for contender in table]
        self.sweep = [_Tally(contender, task, model) for contender in sweep]
        self.sweep_totals = Scoring.of(task, model=model).totals()
        self.reference = _Tally(FALLBACK, task, model)
        self.agreements: list[tuple[float, int]] = []
        self.guesses: list[Tensor] = []

    def _settle(self, batch: Batch) -> None:
        """Choose the reference, and see on a few samples whether finer steps of the training approach it."""
        few = _part(batch, slice(CONFIRMED_SAMPLES))
        # The batch is on the scale of the network already.
        bare = SequenceModel(self.model.rnn, self.model.readout).eval()
        samples = Samples(few.x, None, few.timespans, few.lengths)
        settled = subject.settled(bare, samples)
        self.unconfirmed, self.deviations = settled.why, []
        if settled.run is None:
            return
        self.reference = _Tally(Contender(subject.REFERENCE, settled.substeps), self.task, self.model)
        self.reference.squares = [(settled.error**2, 1.0)]
        rnn = swappable(self.model)
        for factor in (1,) if rnn.solver.adaptive else (1, FINER):
            chosen = Contender(rnn.solver.name, rnn.substeps * factor, rnn.solver.options)
            found = subject.run(chosen.apply_to(bare), samples)
            self.deviations.append(subject.distance(found, settled.run, samples))

    @torch.no_grad()
    def run(self, batch: Batch, report: Report) -> None:
        """Solve all samples with everybody; the sweep takes the first of them."""
        rnn = self.model.rnn
        count, length = batch.x.shape[:2]
        report("reference solution", 0.0)
        self._settle(batch)
        self.times = self._times(batch)
        sample_bytes = 8 * length * rnn.num_layers * rnn.components * rnn.output_size
        size = max(1, STATE_BYTES // sample_bytes)
        swept = min(count, max(FEWEST_SAMPLES, SWEEP_WORK // length)) if self.sweep else 0
        total = count * _effort(self.reference, *self.table) + swept * _effort(*self.sweep)
        done = 0
        for start in range(0, count, size):
            part = _part(batch, slice(start, min(start + size, count)))
            report("reference solution", done / total)
            solved = _Solved(*self.reference.solve(self.model, part))
            done += len(part.x) * _effort(self.reference)
            done = self._run_all(self.table, part, solved, report, done, total)
            first = slice(min(len(part.x), swept - start))
            if first.stop > 0:
                part, solved = _part(part, first), solved.part(first)
                self.sweep_totals.add(solved.answers, part.y, part.valid)
                done = self._run_all(self.sweep, part, solved, report, done, total)
        report("done", 1.0)

    def _times(self, batch: Batch) -> Tensor:
        """Of the samples of the first sequence, in units of time where all layers have one dt."""
        rnn = swappable(self.model)
        spans = torch.ones_like(batch.x[0, :, 0]) if batch.timespans is None else batch.timespans[0]
        return spans.cumsum(0) * (rnn.dt if isinstance(rnn.dt, float) else 1.0)

    def _run_all(
        self, tallies: list[_Tally], batch: Batch, solved: _Solved, report: Report, done: int, total: int
    ) -> int:
        for tally in tallies:
            report(tally.contender.label, done / total)
            self._run_one(tally, batch, solved)
            done += len(batch.x) * _effort(tally)
        return done

    def _run_one(self, tally: _Tally, batch: Batch, solved: _Solved) -> None:
        if tally.reason:
            return
        try:
            states, answers = tally.solve(self.model, batch)
        except (InputError, NumericalError) as error:
            # One solver that cannot run is a line of the table, not the end of the comparison.
            tally.reason = str(error)
            return
        tally.compare(states, solved.states, batch.valid)
        score, valid = self.score, Samples(batch.x, None, None, batch.lengths).valid
        tally.scores.append((score.each(solved.answers, batch.y, valid), score.each(answers, batch.y, valid)))
        if tally.contender.role == TRAINED:
            agreed = agreement(solved.answers, answers, score.name == "accuracy", valid)
            self.agreements.append((agreed, len(answers)))
            self.guesses.append(score.guess(answers, batch.y, valid))

    def verdict(self) -> Verdict:
        """Whether an equation or a step was learnt, by the rule of `neuralosc.analysis.learned`."""
        trained = next((tally for tally in self.table if tally.contender.role == TRAINED and tally.scores), None)
        if trained is None:
            return no_claim("the solver of the training is not among those that ran", RULE)
        exact, own = (torch.cat(part) for part in zip(*trained.scores, strict=True))
        agreed = sum(share * count for share, count in self.agreements) / sum(count for _, count in self.agreements)
        guess, finer = torch.cat(self.guesses), self.deviations
        return judged(Evidence(own, exact, guess, self.score, agreed, finer, self.unconfirmed))

    def trajectories(self) -> Trajectories:
        """The first sample under the contenders of the table."""
        assert self.reference.path is not None
        shown = [(t.contender, t.path) for t in self.table if t.path is not None and not t.reason]
        return Trajectories(self.times, self.reference.path, tuple(shown))


def _part(batch: Batch, part: slice) -> Batch:
    return batch.each(lambda values: values[part])


def _effort(*tallies: _Tally) -> int:
    return sum(tally.contender.effort for tally in tallies)


@dataclass(frozen=True)
class _Solved:
    """What the reference gave on a chunk: states of every layer, and answers."""

    states: list[Tensor]
    answers: Tensor

    def part(self, rows: slice) -> _Solved:
        return _Solved([layer[rows] for layer in self.states], self.answers[rows])


def _squares(states: Tensor, exact: Tensor, valid: Tensor | None) -> tuple[float, float]:
    """Sums of squares of the difference, and of the exact ones, over valid samples."""
    if valid is not None:
        states, exact = states[valid], exact[valid]
    return float((states - exact).square().sum()), float(exact.square().sum())


def _ordered(rows: Sequence[Measurement], sweep: Sequence[_Tally]) -> tuple[Measurement, ...]:
    """Measurements with the order that the sweep shows between their step and half of it."""
    known = {(t.contender.solver, t.contender.substeps): t.deviation for t in sweep if not t.contender.adaptive}
    found = []
    for row in rows:
        steps = (row.contender.solver, row.contender.substeps)
        coarse, fine = known.get(steps), known.get((steps[0], 2 * steps[1]))
        seen = coarse is not None and fine is not None and min(coarse, fine) > NOTHING and not row.contender.adaptive
        found.append(replace(row, order=math.log2(coarse / fine)) if seen else row)  # type: ignore[operator]
    return tuple(found)
