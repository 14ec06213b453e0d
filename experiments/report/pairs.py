"""Groups of runs compared in pairs: run by run with the same seed, and sample by sample of the same test set."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments import load
from experiments.report.runs import Reported, Run
from experiments.tasks.metrics import METRICS
from experiments.tasks.series import Batch, batch_of
from experiments.train import training
from experiments.train.feeding import targets, told
from experiments.train.model import dtype
from experiments.train.trainer import EVALUATION_BATCH
from neuralosc.analysis.samples import Paired, Samples, Score
from solvers.errors import InputError, NumericalError

#: Test sequences that are looked at where nobody says how many.
SAMPLES = 500

#: The scores of the test sequences of some runs, by what these sequences are.
Scored = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Comparison:
    """Two groups on the same pairs.

    Attributes:
        first, second: their labels.
        by: "seed" or "sample", what makes a pair.
        figure: what is compared.
        better: 1 where more of it is better, -1 where less is.
        paired: the second less the first.
    """

    first: str
    second: str
    by: str
    figure: str
    better: int
    paired: Paired

    @property
    def said(self) -> str:
        """Which is better, where chance alone would hardly give it."""
        if not self.paired.apart:
            return "not told apart"
        return f"{self.second if self.better * self.paired.difference > 0 else self.first} is better"


def by_seed(reported: Reported) -> list[Comparison]:
    """Every two groups that have two seeds at least in common, on the metric of the test set."""
    metric, found = reported.metric, []
    better = 1 if METRICS[metric].larger else -1
    for one, other in itertools.combinations(reported.groups, 2):
        ends, others = one.finished, other.finished
        seeds = [seed for seed in ends if seed in others and metric in ends[seed].test and metric in others[seed].test]
        if len(seeds) > 1:
            columns = ([group[seed].test[metric] for seed in seeds] for group in (ends, others))
            found.append(Comparison(one.label, other.label, "seed", metric, better, _of_few(*columns)))
    return found


def _of_few(first: Sequence[float], second: Sequence[float]) -> Paired:
    """The paired difference of few figures, with the interval and p of Student's t."""
    from scipy import stats

    gaps = [b - a for a, b in zip(first, second, strict=True)]
    mean = math.fsum(gaps) / len(gaps)
    if max(gaps) - min(gaps) <= 1e-12 * max(1.0, abs(mean)):
        # A spread of nothing among a few runs is no evidence that there is none.
        return Paired(mean, math.nan, math.nan, len(gaps), math.nan)
    test = stats.ttest_1samp(gaps, 0.0)
    low, high = test.confidence_interval(0.95)
    return Paired(mean, float(low), float(high), len(gaps), float(test.pvalue))


def by_sample(
    reported: Reported, samples: int = SAMPLES, report: Callable[[str, float], None] = lambda what, done: None
) -> tuple[list[Comparison], list[str]]:
    """Every two groups on the test sequences that both were tested on, and why some runs have no answers to them.

    The scores of a sequence are averaged over the runs of a group that have it in their test set.

    Args:
        reported: the groups.
        samples: sequences of a test set that are looked at, drawn by chance; 0 for none.
        report: called with what is being done and the fraction that is done.
    """
    scored: dict[str, Scored] = {}
    score, notes = None, []
    finished = [(group, run) for group in reported.groups for run in group.runs if run.result is not None]
    if samples and len({group.label for group, _ in finished}) > 1:
        for number, (group, run) in enumerate(finished):
            report(run.name, number / len(finished))
            try:
                score, digest, each = _scores(run, samples)
            except (InputError, NumericalError) as error:
                notes.append(f"{run.name} is in no comparison by sample: {error}")
                continue
            scored.setdefault(group.label, {}).setdefault(digest, []).append(each)
    found = []
    for one, other in itertools.combinations([group for group in reported.groups if group.label in scored], 2):
        assert score is not None
        pair = _on_both(scored[one.label], scored[other.label])
        if pair is None:
            notes.append(f"{one.label} and {other.label} have no test set in common: they are not compared by sample")
        else:
            found.append(Comparison(one.label, other.label, "sample", score.name, score.better, Paired.of(*pair)))
    return found, notes


def _on_both(one: Scored, other: Scored) -> tuple[Tensor, Tensor] | None:
    """The scores of the sequences that both groups have."""
    shared = [digest for digest in one if digest in other]
    if not shared:
        return None
    first, second = (torch.cat([torch.stack(of[digest]).mean(0) for digest in shared]) for of in (one, other))
    return first, second


@torch.no_grad()
def _scores(run: Run, samples: int) -> tuple[Score, str, Tensor]:
    """How a run answers to its test sequences one by one, and what these are."""
    loaded = load(run.path)
    training.require_same_data(run.path, loaded.config, loaded.task)
    test = loaded.splits[2]
    count = len(test)  # type: ignore[arg-type]
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:samples].sort().values
    whole, model = batch_of(test, rows), loaded.model
    score = Score.of(None, whole.y)
    parts = []
    with training.threads(loaded.config):
        for place in torch.arange(len(rows)).split(EVALUATION_BATCH):
            batch = told(whole.each(lambda part, place=place: part[place]), run.config.time)  # type: ignore[misc]
            batch = batch.floating(dtype(run.config))
            answers = model(batch.x, batch.timespans, batch.lengths)
            valid = Samples(batch.x, None, None, batch.lengths).valid
            parts.append(score.each(answers, targets(model, batch.y), valid).double())
    return score, _digest(whole, targets(model, whole.y)), torch.cat(parts)


def _digest(whole: Batch, scaled: Tensor) -> str:
    """What sequences with their targets on the scale of a model are, to be compared."""
    digest = hashlib.sha256()
    for part in (*whole, scaled):
        digest.update(b"-" if part is None else part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def comparisons(
    reported: Reported, samples: int = SAMPLES, report: Callable[[str, float], None] = lambda what, done: None
) -> tuple[list[Comparison], list[str]]:
    """Both kinds, see `by_seed` and `by_sample`.

    Raises:
        InputError: samples below 0.
    """
    if samples < 0:
        raise InputError(f"--samples {samples}: expected a number of test sequences, or 0 for none")
    found, notes = by_sample(reported, samples, report)
    return [*by_seed(reported), *found], notes
