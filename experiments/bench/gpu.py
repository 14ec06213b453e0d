"""Benchmark on a GPU: training steps against loops, cuDNN and bare products there, and how their time grows.

What is to be reached is a number beside what was found: over the published loop and over cuDNN's LSTM on the same GPU,
and in milliseconds for a linear layer, where the fastest public Triton implementation took so long on an H200.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from experiments.bench import cases as bench_cases
from experiments.bench import training
from experiments.bench.cases import LOOP, Maker, Shape, library
from experiments.bench.cost import BATCHES, LENGTHS, QUICK_LENGTHS, Cost
from experiments.bench.gpu_cases import LAYER, LSTM, UNICORNN, groups
from experiments.bench.timing import Report, empty_table, silent, within
from experiments.bench.training import Timing
from solvers.errors import InputError, PairingError


@dataclass(frozen=True)
class Goal:
    """A figure that is to be reached.

    Attributes:
        what: which figure.
        unit: "times faster", at least so often, or "ms", at most so many.
        wanted, found: the figure; nothing was found where the case could not run.
    """

    what: str
    unit: str
    wanted: float
    found: float | None

    @property
    def reached(self) -> bool:
        """Whether it was."""
        if self.found is None:
            return False
        return self.found <= self.wanted if self.unit == "ms" else self.found >= self.wanted


def available() -> bool:
    """Whether there is a GPU that torch can use."""
    return torch.cuda.is_available()


def check() -> None:
    """Raise `InputError` unless there is a GPU."""
    if not available():
        raise InputError("--parts holds 'gpu', and torch sees no GPU here: leave it out, or run it where there is one")


def run(
    repeats: int, quick: bool, report: Report = silent, device: str = "cuda", fast: str = "triton"
) -> tuple[list[Timing], list[Goal], list[Cost]]:
    """Time every case on the device, then how the time of a step grows; a case that fails is left out, and says why.

    Args:
        repeats: timed rounds; a case that is slow takes part in fewer.
        quick: small sizes only.
        report: called with what is being done and the fraction that is done.
        device: where everything computes.
        fast: the backend of the library.

    Raises:
        InputError: no repeats, or no such device.
    """
    if repeats < 1:
        raise InputError(f"--repeats is {repeats}: expected a whole number of at least 1")
    if device == "cuda":
        check()
    todo = groups(fast, quick)
    total, done, timings = sum(group.work for group in todo) + 1.0, 0.0, list[Timing]()
    for group in todo:
        part_report = within(report, done / total, group.work / total)
        cases = {case.name: case for case in group.cases}
        timings += training.measure(group.shape, repeats, part_report, cases, device, lenient=True)
        done += group.work
    return timings, goals(timings, fast), growth(quick, within(report, done / total, 1.0 / total), device, fast)


def goals(timings: Sequence[Timing], fast: str) -> list[Goal]:
    """What is to be reached, beside the shortest times that were found."""
    times = {(t.shape.name, t.case.name): t.minimum for t in timings if t.seconds}

    def ratio(shape: str, base: str, case: str) -> float | None:
        seconds = times.get((shape, base)), times.get((shape, case))
        return None if None in seconds else seconds[0] / seconds[1]  # type: ignore[operator]

    ours, result = f"neuralosc, {fast}", []
    for digits in ("", ", tf32", ", bfloat16"):
        case = f"coRNN: {ours}{digits}"
        result.append(Goal(f"{case}, over the loop", "times faster", 20.0, ratio("S1", f"coRNN: {LOOP}", case)))
        result.append(Goal(f"{case}, over {LSTM}", "times faster", 1.0, ratio("S1", LSTM, case)))
    case, loop = f"{UNICORNN}: {ours}", f"{UNICORNN}: {LOOP}"
    result.append(Goal(f"{case}, over the loop", "times faster", 30.0, ratio("U", loop, case)))
    for what, wanted in (("forward", 0.65), ("forward and backward", 2.95)):
        candidates = [times.get(("L", f"{LAYER}, {what}: neuralosc, {backend}")) for backend in (fast, "scan", "fft")]
        best = min((seconds for seconds in candidates if seconds is not None), default=None)
        result.append(Goal(f"{LAYER}, {what}, fastest path", "ms", wanted, None if best is None else 1e3 * best))
    return result


def growth(quick: bool, report: Report, device: str, fast: str) -> list[Cost]:
    """Microseconds of coRNN's training step for each step in time, and for each sample; hidden 32, 6 features."""
    costs = []
    lengths = [Shape("", length, 8, 32, 6) for length in (QUICK_LENGTHS if quick else LENGTHS)]
    batches = [Shape("", 100 if quick else 1_000, batch, 32, 6) for batch in (BATCHES[:2] if quick else BATCHES)]
    for i, shape in enumerate((*lengths, *batches)):
        report(f"growth at {shape}", i / (len(lengths) + len(batches)))
        along, each = ("time", "step") if i < len(lengths) else ("batch", "sample")
        try:
            seconds = _seconds(library(bench_cases.cornn, fast), shape, device)
            note = f"{1e3 * seconds:.3f} ms"
        except (PairingError, RuntimeError) as error:
            seconds, note = float("nan"), "left out: " + str(error).partition("\n")[0]
        value = 1e6 * seconds / (shape.time if along == "time" else shape.batch)
        costs.append(Cost(along, f"neuralosc, {fast}", value, f"us per {each}, {shape}", note))
    return costs


def _seconds(make: Maker, shape: Shape, device: str) -> float:
    """The shortest of some training steps after a first one."""
    torch.manual_seed(1)
    subject = make(shape, torch.rand(shape.batch, shape.time, shape.features).to(device))
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < 0.5 and len(seconds) < 20):
        start = time.perf_counter()
        subject.step()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def rows(timings: Sequence[Timing], reached: Sequence[Goal], costs: Sequence[Cost]) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "training": training.rows(timings),
        "goals": [{**asdict(goal), "reached": goal.reached} for goal in reached],
        "growth": [{**asdict(cost), "value": training.known(cost.value)} for cost in costs],
    }


def tables(timings: Sequence[Timing], reached: Sequence[Goal], costs: Sequence[Cost]) -> list[Table]:
    """The cases, what is to be reached, and how the time grows."""
    return [_cases(timings), _goals(reached), _growth(costs)]


def _cases(timings: Sequence[Timing]) -> Table:
    result = empty_table(
        "On a GPU: training step, forward and backward of the last output's mean square, parameters only",
        "Shape: (time, batch, hidden, features). Ratio: time over that of the LSTM at S1, of the bare products of each "
        "step in the sweep over hidden sizes (H), of the loop or the plain path elsewhere. Speed-up: over the loop, or "
        "the plain path where there is no loop. The linear layer's loss is of all its outputs. float32 unless a case "
        "says otherwise; torch.nn's networks take tf32, as cuDNN does by itself.",
        ("shape", "field", "case"),
        ("median ms", "min ms", "ratio: medians", "minima", "speed-up", "rounds", "way"),
    )
    for words, timing in training.sectioned(result, timings):
        result.add_row(*words, *training.numbers(timing), timing.way)
    return result


def _goals(reached: Sequence[Goal]) -> Table:
    result = empty_table("What is to be reached", "Shortest times.", ("figure",), ("wanted", "found", "reached"))
    for goal in reached:
        found = "not run" if goal.found is None else f"{goal.found:.2f}"
        result.add_row(goal.what, f"{goal.wanted:g} {goal.unit}", found, "yes" if goal.reached else "no")
    return result


def _growth(costs: Sequence[Cost]) -> Table:
    result = empty_table("How a training step of coRNN grows", "Shortest times.", ("along", "whole"), ("value", "unit"))
    for cost in costs:
        result.add_row(cost.what, cost.note, f"{cost.value:.3f}", cost.unit)
    return result
