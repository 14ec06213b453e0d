"""Benchmark of what a training step costs besides time per step: memory, first use, and growth with length.

Each measurement runs in a process of its own, since memory is that of the process and a first use happens once.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.table import Table

import neuralosc
import solvers
from experiments.bench import irregular
from experiments.bench.cases import COMPILED, LOOP, PLAIN, Shape, Subject, training_step
from experiments.bench.loops import CoRNNLoop
from experiments.bench.timing import Report, empty_table, interleaved, silent
from solvers.compiled.passes import denormals
from solvers.compiled.passes.cache import CACHE
from solvers.compiled.step import fingerprint
from solvers.run import canary
from solvers.run.audit import SavedMemory

MEMORY_SHAPES = (Shape("S1", 784, 120, 256, 1), Shape("S3", 784, 128, 128, 1))
QUICK_MEMORY_SHAPES = (Shape("M", 256, 64, 64, 1),)
#: Where the gradient of the last output vanishes on its way back, in both of the networks it is measured on.
VANISHING = Shape("S2", 500, 50, 128, 2)
VANISHES: dict[str, Callable[[int, int], neuralosc.ContinuousRNN]] = {
    "GRU": neuralosc.GRU,
    "LEM, steps of 1": functools.partial(neuralosc.LEM, dt=1.0),
}
QUICK_VANISHING = Shape("V", 300, 8, 32, 2)
#: Steps that take little: what a call costs by itself is most of them.
SHORT = Shape("S4", 64, 128, 64, 1)
#: Of those in a row, as in training.
FEW = 8
#: Rounds of two that are compared where the difference is small.
PAIRS = 151
GRADIENTS = ("backprop", "checkpoint", "reversible")
LENGTHS = (100, 1_000, 10_000, 100_000)
QUICK_LENGTHS = (100, 1_000)
BATCHES = (8, 64, 512, 4_096)


@dataclass(frozen=True)
class Cost:
    """One figure.

    Attributes:
        what: what was measured.
        case: of which way of computing.
        value, unit: the figure.
        note: what it is made of.
    """

    what: str
    case: str
    value: float
    unit: str
    note: str = ""


def _subject(case: str, shape: Shape, gradient: str = "backprop") -> Subject:
    """A training step of coRNN."""
    torch.manual_seed(0)
    x = torch.rand(shape.batch, shape.time, shape.features)
    if case == LOOP:
        loop = CoRNNLoop(shape.features, shape.hidden)
        return training_step(loop, lambda: loop(x))
    rnn = neuralosc.CoRNN(shape.features, shape.hidden, gradient=gradient)
    return training_step(rnn, functools.partial(_last, rnn, x, case))


# What the processes do


def _resident() -> int:
    """Bytes of memory this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(case: str, gradient: str, shape: Shape) -> tuple[float, float]:
    """What autograd keeps, and the peak of the process above what it had before, in units of time batch hidden."""
    import resource

    short = Shape("", 64, shape.batch, shape.hidden, shape.features)
    _subject(case, short, gradient).step()
    subject = _subject(case, shape, gradient)
    before = _resident()
    subject.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert subject.model is not None
    with SavedMemory(subject.model.parameters()) as kept:
        subject.step()
    unit = 4 * shape.time * shape.batch * shape.hidden
    return kept.total / unit, (peak - before) / unit


def measure_gradients(shape: Shape) -> list[tuple[str, str, float]]:
    """Seconds of a training step of UnICORNN, one layer, by path and gradient; the shortest of three rounds."""
    torch.manual_seed(0)
    x = torch.rand(shape.batch, shape.time, shape.features)
    pairs = [(COMPILED, gradient) for gradient in GRADIENTS] + [(PLAIN, "backprop"), (PLAIN, "reversible")]
    steps = {}
    for case, gradient in pairs:
        rnn = neuralosc.UnICORNN(shape.features, shape.hidden, num_layers=1, gradient=gradient)
        steps[f"{case}, {gradient}"] = training_step(rnn, functools.partial(_last, rnn, x, case)).step
    for step in steps.values():
        step()
    seconds = interleaved(steps, 3)
    return [(case, gradient, min(seconds[f"{case}, {gradient}"])) for case, gradient in pairs]


def measure_vanishing(shape: Shape) -> list[tuple[str, str, float]]:
    """How often as long a training step takes whose gradient vanishes; of GRU and LEM, by what becomes of denormals.

    The gradient of the last output alone vanishes over the sequence, that of the mean of all outputs does not.
    """
    torch.manual_seed(0)
    x = torch.rand(shape.batch, shape.time, shape.features)
    results = []
    for name, network in VANISHES.items():
        rnn = network(shape.features, shape.hidden)
        steps = {
            "last": training_step(rnn, functools.partial(_last, rnn, x, COMPILED)).step,
            "all": training_step(rnn, functools.partial(_every, rnn, x)).step,
        }
        for treatment in ("flush", "keep"):
            os.environ[denormals.DENORMALS] = treatment
            for step in steps.values():
                step()
            seconds = interleaved(steps, 5)
            results.append((name, treatment, min(seconds["last"]) / min(seconds["all"])))
    return results


def _last(rnn: neuralosc.ContinuousRNN, x: torch.Tensor, case: str) -> torch.Tensor:
    with solvers.backend("plain" if case == PLAIN else "auto"):
        output: torch.Tensor = rnn(x)[0]
    return output[:, -1]


def _every(rnn: neuralosc.ContinuousRNN, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = rnn(x)[0]
    return output


def measure_following(shape: Shape) -> float:
    """How often as long a training step of coRNN takes that looks at what its step can read, and compares a step."""
    subject = _subject(COMPILED, shape)

    def blindly() -> None:
        with (
            patch.object(canary, "drifted", lambda *_: None),
            patch.object(fingerprint.Memory, "look", lambda memory, module: memory.number),
        ):
            for _ in range(FEW):
                subject.step()

    def seeing() -> None:
        for _ in range(FEW):
            subject.step()

    for step in (seeing, blindly):
        step()
    # A few hundredths are less than what a machine does by itself: each round is a pair, of which that cancels.
    seconds = interleaved({"seeing": seeing, "blindly": blindly}, PAIRS)
    return statistics.median(a / b for a, b in zip(seconds["seeing"], seconds["blindly"], strict=True))


def measure_first(case: str, shape: Shape) -> tuple[float, float]:
    """Seconds of the first training step of a process, and of the third."""
    subject = _subject(case, shape)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subject.step()
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[-1]


def measure_growth(case: str, sizes: Sequence[tuple[int, int]]) -> list[float]:
    """Seconds of a training step at each length and batch; hidden 32, 6 features."""
    minima = []
    for length, batch in sizes:
        subject = _subject(case, Shape("", length, batch, 32, 6))
        subject.step()
        repeats = max(2, min(20, 160_000 // (length * batch)))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            subject.step()
            seconds.append(time.perf_counter() - start)
        minima.append(min(seconds))
    return minima


WORK: dict[str, Callable[..., Any]] = {
    "memory": lambda case, gradient, shape: measure_memory(case, gradient, Shape(**shape)),
    "gradients": lambda shape: measure_gradients(Shape(**shape)),
    "vanishing": lambda shape: measure_vanishing(Shape(**shape)),
    "irregular": lambda shape: irregular.measure(Shape(**shape)),
    "following": lambda shape: measure_following(Shape(**shape)),
    "first": lambda case, shape: measure_first(case, Shape(**shape)),
    "growth": measure_growth,
}


def child(text: str) -> None:
    """Do the work that the parent process asks for, and print the result."""
    asked = json.loads(text)
    torch.set_num_threads(asked["threads"])
    print(json.dumps(WORK[asked["what"]](*asked["args"])))


def _asked(what: str, *args: Any, cache: str | None = None) -> Any:
    """The result of work done in another process."""
    text = json.dumps({"what": what, "args": args, "threads": torch.get_num_threads()})
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths} | ({CACHE: cache} if cache else {})
    code = "import sys; from experiments.bench import cost; cost.child(sys.argv[1])"
    command = [sys.executable, "-c", code, text]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(run.stdout.strip().splitlines()[-1])


# The figures


def _memory(shape: Shape) -> list[Cost]:
    unit = f"T B H floats at {shape}"
    costs = []
    for case, gradient in ((LOOP, "backprop"), (PLAIN, "backprop"), (COMPILED, "backprop"), (COMPILED, "checkpoint")):
        kept, peak = _asked("memory", case, gradient, asdict(shape))
        costs.append(Cost("training memory", case, kept, unit, f"{gradient}: kept for the backward pass"))
        costs.append(Cost("training memory", case, peak, unit, f"{gradient}: peak of the process"))
    return costs


def _gradients(shape: Shape) -> list[Cost]:
    times = _asked("gradients", asdict(shape))
    base = next(seconds for case, gradient, seconds in times if (case, gradient) == (COMPILED, "backprop"))
    unit = f"x compiled backprop at {shape}"
    return [
        Cost("time by gradient, UnICORNN", case, seconds / base, unit, gradient) for case, gradient, seconds in times
    ]


def _vanishing(shape: Shape) -> list[Cost]:
    unit = f"x the same with one that does not, at {shape}"
    words = {"flush": "denormals flushed", "keep": f"{denormals.DENORMALS}=keep"}
    times = _asked("vanishing", asdict(shape))
    return [Cost("gradient that vanishes", name, ratio, unit, words[treatment]) for name, treatment, ratio in times]


def _irregular(shape: Shape) -> list[Cost]:
    unit = f"x a regular step at {shape}"
    return [
        Cost("irregular batch", name, ratio, unit, what) for name, what, ratio in _asked("irregular", asdict(shape))
    ]


def _following(shape: Shape) -> list[Cost]:
    unit = f"x the same that does not, at {shape}"
    return [Cost("looking and comparing", COMPILED, _asked("following", asdict(shape)), unit)]


def _first(shape: Shape) -> list[Cost]:
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for what in ("empty cache", "another process filled the cache"):
            first, later = _asked("first", COMPILED, asdict(shape), cache=folder)
            costs.append(Cost("first use of a step", COMPILED, first - later, "s", what))
    return costs


def _growth(lengths: Sequence[int], batches: Sequence[int]) -> list[Cost]:
    sizes = [(length, 8) for length in lengths] + [(1_000, batch) for batch in batches]
    values = _asked("growth", COMPILED, sizes)
    costs = []
    for number, ((length, batch), seconds) in enumerate(zip(sizes, values, strict=True)):
        along, count = ("step", length) if number < len(lengths) else ("sample", batch)
        unit = f"us per {along}, (T, B, 32, 6)"
        costs.append(Cost("time", COMPILED, 1e6 * seconds / count, unit, f"T = {length:,}, B = {batch:,}"))
    return costs


def run(quick: bool, report: Report = silent) -> list[Cost]:
    """Memory, first use and growth of coRNN's training step, and what other gradients than backprop cost."""
    costs: list[Cost] = []
    if Path("/proc/self/statm").exists():
        for shape in QUICK_MEMORY_SHAPES if quick else MEMORY_SHAPES:
            report(f"memory at {shape}", 0.0)
            costs += _memory(shape)
    report("gradients", 0.4)
    costs += _gradients((QUICK_MEMORY_SHAPES if quick else MEMORY_SHAPES)[0])
    report("gradients that vanish", 0.45)
    costs += _vanishing(QUICK_VANISHING if quick else VANISHING)
    report("irregular batches", 0.46)
    for shape in (SHORT,) if quick else (VANISHING, SHORT):
        costs += _irregular(shape)
    report("looking and comparing", 0.49)
    costs += _following(SHORT)
    report("first use", 0.5)
    costs += _first(SHORT)
    report("growth", 0.7)
    costs += _growth(QUICK_LENGTHS if quick else LENGTHS, BATCHES[:2] if quick else BATCHES)
    return costs


def table(costs: Sequence[Cost]) -> Table:
    """The figures as a table."""
    result = empty_table(
        "What a training step costs besides, of coRNN where nothing else is said",
        "Memory in units of 4 bytes for each of time, batch and hidden. Kept: by autograd, input current and output "
        "included. Peak: of the process, above what it had before the step. First use: seconds that the first step "
        "takes longer than the third.",
        ("what", "case", "of"),
        ("value", "unit"),
    )
    before = ""
    for cost in costs:
        if before not in ("", cost.what):
            result.add_section()
        result.add_row(cost.what if cost.what != before else "", cost.case, cost.note, f"{cost.value:.2f}", cost.unit)
        before = cost.what
    return result
