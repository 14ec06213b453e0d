"""Benchmark: training steps of the library, of loops written by hand and of other libraries, in units of their floor.

Every case of a shape is timed in one process, round by round and interleaved, so that a slow moment of the machine
meets all of them. What computes the same is checked to do so before it is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from experiments.bench.cases import COMPILED, FLOOR, Case, Shape, Subject, cases
from experiments.bench.timing import Report, Timed, empty_table, interleaved, ratios, silent, within
from solvers.errors import InputError, NumericalError, PairingError

#: Seconds that the rounds of one case may take before it gets fewer of them.
BUDGET = 12.0
#: Seconds of short steps in a row that make a round.
ROUND = 0.05


@dataclass(frozen=True)
class Timing(Timed):
    """The times in seconds of one case at one shape.

    Attributes:
        floors_of_medians, floors_of_minima: multiples of the case's floor, measured in the same rounds.
        speed_up: time of the peer over the time of this one, minima; None for a case without a peer.
        note: why it was not timed.
        way: which path the library took, where the case tells it.
    """

    shape: Shape
    case: Case
    seconds: tuple[float, ...]
    floors_of_medians: float = float("nan")
    floors_of_minima: float = float("nan")
    speed_up: float | None = None
    note: str = ""
    way: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a case gives, and how long it takes."""

    loss: float
    norm: float
    seconds: float


def outcome(subject: Subject) -> Outcome:
    """Run a case to warm up and for its values: three times, or less often if it is slow."""
    loss, seconds = 0.0, []
    for _ in range(3):
        start = time.perf_counter()
        loss = subject.step()
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > 2.0:
            break
    return Outcome(loss, subject.gradient_norm(), min(seconds))


def check_equal(case: Case, found: Outcome, expected: Outcome) -> None:
    """Raise `NumericalError` unless loss and gradient norm agree: a ratio of unlike work is void."""
    pairs = {"loss": (found.loss, expected.loss), "gradient norm": (found.norm, expected.norm)}
    for what, (value, peer_value) in pairs.items():
        if not abs(value - peer_value) <= case.tolerance * abs(peer_value):
            raise NumericalError(
                f"{case.name} and {case.peer} disagree on the {what}: {value:.6g} and {peer_value:.6g}"
            )


def run(shapes: Sequence[Shape], repeats: int, report: Report = silent) -> list[Timing]:
    """Time every case at every shape.

    Args:
        shapes: sizes of the training step.
        repeats: timed rounds at each shape; a case that is slow takes part in fewer.
        report: called with what is being done and the fraction that is done.

    Raises:
        InputError: no repeats.
        NumericalError: two cases that should compute the same do not.
    """
    if repeats < 1:
        raise InputError(f"--repeats is {repeats}: expected a whole number of at least 1")
    # The share of the work: calls in the steps, and products of all steps.
    work = [shape.time * (1 + shape.batch * shape.hidden**2 / 1e6) for shape in shapes]
    timings: list[Timing] = []
    for number, shape in enumerate(shapes):
        before, share = sum(work[:number]) / sum(work), work[number] / sum(work)
        timings += measure(shape, repeats, within(report, before, share))
    return timings


def measure(
    shape: Shape,
    repeats: int,
    report: Report = silent,
    todo: Mapping[str, Case] | None = None,
    device: torch.device | str = "cpu",
    lenient: bool = False,
) -> list[Timing]:
    """Time cases at `shape`: a step or two each to warm up and to check, then interleaved rounds.

    Args:
        shape: of the training step.
        repeats: timed rounds.
        report: called with what is being done and the fraction that is done.
        todo: cases by name; all of the shape when None.
        device: where they compute; every step ends with a number that is waited for.
        lenient: a case that fails is left out and says why, as one that cannot run is.

    Raises:
        NumericalError: two cases that should compute the same do not, and that is not to be said in a note.
    """
    torch.manual_seed(1)
    x = torch.rand(shape.batch, shape.time, shape.features).to(device)
    todo = cases(shape) if todo is None else todo
    report(f"{shape} warming up", 0.0)
    subjects, outcomes, notes = _prepared(todo, shape, x, (PairingError, RuntimeError) if lenient else (PairingError,))
    for name, case in todo.items():
        if case.peer not in outcomes or name not in outcomes:
            continue
        try:
            check_equal(case, outcomes[name], outcomes[case.peer])
        except NumericalError as error:
            if not lenient:
                raise
            notes[name] = str(error)
            del subjects[name]
    outcomes = {name: outcomes[name] for name in subjects}
    limits = {name: max(1, int(BUDGET / max(result.seconds, 1e-9))) for name, result in outcomes.items()}
    steps = {name: subject.step for name, subject in subjects.items()}
    counts = {name: max(1, int(ROUND / max(result.seconds, 1e-4))) for name, result in outcomes.items()}
    seconds = interleaved(steps, repeats, str(shape), report, limits, counts)
    ways = {name: subject.way() for name, subject in subjects.items()}
    return [_timing(shape, case, seconds, notes.get(name, ""), ways.get(name, "")) for name, case in todo.items()]


def _prepared(
    todo: Mapping[str, Case], shape: Shape, x: torch.Tensor, excused: tuple[type[Exception], ...]
) -> tuple[dict[str, Subject], dict[str, Outcome], dict[str, str]]:
    """The cases that can run, what they give, and why the others cannot."""
    subjects: dict[str, Subject] = {}
    outcomes: dict[str, Outcome] = {}
    notes: dict[str, str] = {}
    for name, case in todo.items():
        try:
            subject = case.make(shape, x)
            outcomes[name] = outcome(subject)
        except excused as error:
            notes[name] = str(error).partition("\n")[0]
            continue
        subjects[name] = subject
    return subjects, outcomes, notes


def _timing(shape: Shape, case: Case, seconds: Mapping[str, tuple[float, ...]], note: str, way: str) -> Timing:
    times = seconds.get(case.name, ())
    if not times:
        return Timing(shape, case, times, note=note)
    floors = ratios(times, seconds[case.floor]) if case.floor in seconds else (float("nan"), float("nan"))
    speed_up = None if case.peer is None or case.peer not in seconds else min(seconds[case.peer]) / min(times)
    return Timing(shape, case, times, *floors, speed_up, way=way)


def table(timings: Sequence[Timing]) -> Table:
    """The timings as a table, one section per shape."""
    result = empty_table(
        "Training step: forward and backward of the last output's mean square, parameters only",
        "Shape: (time, batch, hidden, features). Floors: time over that of the field's own matrix products alone (of "
        "coRNN's for torch.nn and for UnICORNN, which has none; for linear oscillators, over the associative scan). "
        "Speed-up: over the loop, or torchdiffeq's rk4, of the same field (minima). Adaptive: rtol 1e-3, atol 1e-4, "
        "told where the samples are. Slow cases run in fewer rounds, short ones several times in each. float32. "
        "diffrax where it is installed.",
        ("shape", "field", "case"),
        ("median ms", "min ms", "floors: medians", "minima", "speed-up", "rounds"),
    )
    for words, timing in sectioned(result, timings):
        result.add_row(*words, *numbers(timing), style=_style(timing))
    return result


def sectioned(result: Table, timings: Sequence[Timing]) -> Iterator[tuple[tuple[str, str, str], Timing]]:
    """Each timing with the words that begin its row: shape and field where they are new; a section for each shape."""
    before: Timing | None = None
    for timing in timings:
        new = before is None or timing.shape != before.shape
        if new and before is not None:
            result.add_section()
        other = before is None or new or timing.case.field != before.case.field
        yield (str(timing.shape) if new else "", timing.case.field if other else "", timing.case.what), timing
        before = timing


def _style(timing: Timing) -> str:
    return {COMPILED: "bold", FLOOR: "dim"}.get(timing.case.what, "")


def numbers(timing: Timing) -> tuple[str, ...]:
    """The figures of a row: median, minimum, both ratios, speed-up and rounds; or why there are none."""
    if not timing.seconds:
        return (f"left out: {timing.note}",)
    ours = timing.case.what.startswith(COMPILED)
    return (
        f"{1e3 * timing.median:.2f}",
        f"{1e3 * timing.minimum:.2f}",
        f"{timing.floors_of_medians:.2f}",
        f"{timing.floors_of_minima:.2f}",
        f"{timing.speed_up:.1f}" if ours and timing.speed_up is not None else "",
        str(len(timing.seconds)),
    )


def known(value: float) -> float | None:
    """A figure as JSON has it: none for what was not measured."""
    return None if math.isnan(value) else value


def rows(timings: Sequence[Timing]) -> list[dict[str, object]]:
    """The timings as plain values, the seconds of every round included."""
    return [
        {
            "shape": timing.shape.name,
            "time": timing.shape.time,
            "batch": timing.shape.batch,
            "hidden": timing.shape.hidden,
            "features": timing.shape.features,
            "field": timing.case.field,
            "case": timing.case.what,
            "floor": timing.case.floor,
            "median": timing.median if timing.seconds else None,
            "minimum": timing.minimum if timing.seconds else None,
            "floors_of_medians": known(timing.floors_of_medians),
            "floors_of_minima": known(timing.floors_of_minima),
            "speed_up": timing.speed_up,
            "seconds": list(timing.seconds),
            "note": timing.note,
            **({"way": timing.way} if timing.way else {}),
        }
        for timing in timings
    ]
