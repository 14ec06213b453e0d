"""Benchmark of solving alone: per-sample steps against shared ones, and `integrate` against a loop written by hand.

The first problem is 64 driven oscillators whose stiffness spans three decades: steps of its own for each sample (the
native driver) against steps that the whole batch shares (torchdiffeq), with the same pair of methods. The second is
what `solvers.integrate` adds to a bare loop that calls the same field and collects the same states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torchdiffeq
from rich.table import Table
from torch import Tensor

import solvers
from experiments.bench.timing import Report, Timed, empty_table, interleaved, ratios, silent, within
from solvers.adaptive.shared import worst_sample
from solvers.errors import InputError, NumericalError

BATCH = 64
TOLERANCES = {"rtol": 1e-6, "atol": 1e-8}
BARE = "bare loop"
SHARED = "torchdiffeq (worst)"
AVERAGED = "torchdiffeq (mean)"
SUBJECTS = ("native_dopri5", "integrate")


@dataclass(frozen=True)
class Solve:
    """The states of one solve, `(batch, time, components, hidden)`, and evaluations of the field per sample."""

    states: Tensor
    evaluations: float


@dataclass(frozen=True)
class Problem:
    """Cases that solve the same; `reference` gives the states that they are compared with.

    Attributes:
        name: what is solved.
        cases: solves by name.
        baseline: the case to which times and evaluations are put in proportion.
        reference: the solution, more exact than the cases.
        bound: largest error at which a case still counts as having solved the problem.
        rounds: timed rounds for each one asked for.
    """

    name: str
    cases: dict[str, Callable[[], Solve]]
    baseline: str
    reference: Callable[[], Tensor]
    bound: float
    rounds: int = 1


class Oscillators:
    """q'' = cos t - 0.1 q' - k q, each sample with its stiffness k of u (batch, 1), from 1 to 1000."""

    def __init__(self, hidden: int) -> None:
        self.stiffness = torch.logspace(0, 3, BATCH, dtype=torch.float64).unsqueeze(1)
        generator = torch.Generator().manual_seed(0)
        self.start = torch.randn(BATCH, 2, hidden, dtype=torch.float64, generator=generator)
        self.evaluations = 0

    def __call__(self, t: Any, state: Tensor, u: Tensor) -> Tensor:
        """The slope of position and velocity."""
        self.evaluations += 1
        q, p = state.unbind(-2)
        return torch.stack((p, torch.cos(t) - 0.1 * p - u * q), -2)


def stiffness_spread(hidden: int, end: float) -> Problem:
    """The oscillators up to time `end` under dopri5: steps per sample, and shared ones under two norms of the error."""
    field, times = Oscillators(hidden), torch.tensor([0.0, end], dtype=torch.float64)

    def native(rtol: float, atol: float) -> Solve:
        method = {"name": "native_dopri5", "max_steps": 1_000_000}
        solution = solvers.integrate(field, field.start, times, field.stiffness, method, rtol=rtol, atol=atol)
        return Solve(solution.states, float(solution.statistics.evaluations.double().mean()))

    def shared(**options: Any) -> Solve:
        field.evaluations = 0
        states = torchdiffeq.odeint(
            lambda t, x: field(t, x, field.stiffness), field.start, times, method="dopri5", **TOLERANCES, **options
        )
        return Solve(states.transpose(0, 1), field.evaluations)

    cases: dict[str, Callable[[], Solve]] = {
        "native_dopri5": lambda: native(**TOLERANCES),
        SHARED: lambda: shared(options={"norm": worst_sample}),
        AVERAGED: shared,
    }
    name = f"oscillators, hidden {hidden}"
    return Problem(name, cases, SHARED, lambda: native(1e-10, 1e-12).states, bound=0.1)


def bare_euler(field: Any, x: Tensor, steps: int, h: float) -> Tensor:
    """Euler as one writes it."""
    states = [x]
    for i in range(steps):
        x = x + h * field(i * h, x, None)
        states.append(x)
    return torch.stack(states, 1)


def bare_rk4(field: Any, x: Tensor, steps: int, h: float) -> Tensor:
    """The classical Runge-Kutta method as one writes it."""
    states = [x]
    for i in range(steps):
        t = i * h
        k1 = field(t, x, None)
        k2 = field(t + h / 2, x + h / 2 * k1, None)
        k3 = field(t + h / 2, x + h / 2 * k2, None)
        k4 = field(t + h, x + h * k3, None)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(x)
    return torch.stack(states, 1)


BARE_LOOPS = {"euler": bare_euler, "rk4": bare_rk4}


def overhead(method: str, steps: int, hidden: int) -> Problem:
    """x' = tanh(W x) - x by `steps` fixed steps: `integrate` against the loop written by hand."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(hidden, hidden, generator=generator) / hidden**0.5
    start, h = torch.randn(BATCH, 1, hidden, generator=generator), 0.01
    times = h * torch.arange(steps + 1, dtype=torch.float64)
    evaluations = steps * solvers.get(method).stages

    def field(t: Any, x: Tensor, u: Any) -> Tensor:
        return torch.tanh(x @ weight) - x

    cases: dict[str, Callable[[], Solve]] = {
        "integrate": lambda: Solve(solvers.integrate(field, start, times, method=method).states, evaluations),
        BARE: lambda: Solve(BARE_LOOPS[method](field, start, steps, h), evaluations),
    }
    name = f"{method}, {steps} steps"
    return Problem(name, cases, BARE, lambda: BARE_LOOPS[method](field, start, steps, h), bound=1e-4, rounds=10)


def problems(quick: bool = False) -> list[Problem]:
    """The problems of the benchmark, or smaller ones."""
    if quick:
        return [stiffness_spread(1, 1.0), overhead("euler", 50, 16)]
    spread = [stiffness_spread(hidden, 10.0) for hidden in (1, 64)]
    return [*spread, *(overhead(method, steps, 64) for method in BARE_LOOPS for steps in (300, 50))]


@dataclass(frozen=True)
class Timing(Timed):
    """One case of one problem; ratios are to the baseline of the same rounds.

    Attributes:
        evaluations: of the field, per sample.
        error: largest difference from the reference of any sample, at any time.
        seconds: of every round.
    """

    problem: str
    case: str
    evaluations: float
    error: float
    seconds: tuple[float, ...]
    ratio_of_evaluations: float
    ratio_of_medians: float
    ratio_of_minima: float


@torch.no_grad()
def run(todo: Sequence[Problem], repeats: int, report: Report = silent) -> list[Timing]:
    """Time every case of every problem, once to warm up and to check, then in interleaved rounds.

    Raises:
        InputError: no repeats.
        NumericalError: a case does not solve its problem.
    """
    if repeats < 1:
        raise InputError(f"--repeats is {repeats}: expected a whole number of at least 1")
    timings: list[Timing] = []
    for number, problem in enumerate(todo):
        part_report = within(report, number / len(todo), 1 / len(todo))
        part_report(f"{problem.name}: warming up", 0.0)
        reference, solves = problem.reference(), {name: case() for name, case in problem.cases.items()}
        errors = {name: float((solve.states - reference).abs().max()) for name, solve in solves.items()}
        for name, error in errors.items():
            if not error <= problem.bound:
                raise NumericalError(f"{name} errs by {error:.3g} on {problem.name}: a ratio of unlike work is void")
        seconds = interleaved(problem.cases, problem.rounds * repeats, problem.name, part_report)
        base = solves[problem.baseline].evaluations
        for name, times in seconds.items():
            proportions = solves[name].evaluations / base, *ratios(times, seconds[problem.baseline])
            timings.append(Timing(problem.name, name, solves[name].evaluations, errors[name], times, *proportions))
    return timings


def table(timings: Sequence[Timing]) -> Table:
    """The timings as a table, one section per problem."""
    result = empty_table(
        "Solving alone",
        f"Oscillators: {BATCH} driven ones of stiffness 1 to 1000, dopri5, rtol {TOLERANCES['rtol']:g}, float64; "
        "torchdiffeq's shared steps keep the error of the worst sample, or of the mean over the batch, within it. "
        f"Fixed steps: batch {BATCH}, float32. Evals: of the field, per sample. Error: of the worst sample. Ratios: "
        f"over {SHARED}, or the {BARE}; smaller is better.",
        ("problem", "case"),
        ("evals", "ratio", "error", "median ms", "min ms", "by medians", "by minima"),
    )
    previous = ""
    for timing in timings:
        if previous not in ("", timing.problem):
            result.add_section()
        result.add_row(
            timing.problem if timing.problem != previous else "",
            timing.case,
            f"{timing.evaluations:.0f}",
            f"{timing.ratio_of_evaluations:.2f}",
            f"{timing.error:.0e}",
            f"{1e3 * timing.median:.1f}",
            f"{1e3 * timing.minimum:.1f}",
            f"{timing.ratio_of_medians:.2f}",
            f"{timing.ratio_of_minima:.2f}",
            style="bold" if timing.case in SUBJECTS else "",
        )
        previous = timing.problem
    return result


def rows(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """The timings as plain values, the seconds of every round included."""
    return [{**asdict(timing), "median": timing.median, "minimum": timing.minimum} for timing in timings]
