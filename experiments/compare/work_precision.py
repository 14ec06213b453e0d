"""The work-precision diagram: error of each solver against evaluations of the right-hand side.

Two driven networks of oscillators, one easy and one stiff, are solved with more and more fixed steps, or with tighter
and tighter tolerances. The error is the largest of any component of any sample at the end, against dopri8 with a
tolerance of 1e-12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

import neuralosc
import solvers
from experiments import figures
from experiments.bench.timing import Report, silent, within
from neuralosc.analysis import drawing
from neuralosc.analysis.work_precision import evaluations_for
from solvers.errors import NumericalError

BUDGETS = tuple(round(64 * 2**k) for k in range(10))
TOLERANCES = tuple(10.0**-k for k in range(2, 12))
#: Errors of the reference itself hide what is below, and what is above is no solution.
FLOOR, CEILING = 1e-11, 1.0


@dataclass(frozen=True)
class Problem:
    """q'' = tanh(W q + cos t + b) - gamma q - epsilon q', 8 channels in 4 samples, from time 0 to `end`."""

    title: str
    gamma: float
    epsilon: float
    end: float
    methods: tuple[str, ...]

    def field(self) -> Any:
        """The vector field, with its structure."""
        torch.manual_seed(0)
        return neuralosc.Oscillator(1, 8, self.gamma, self.epsilon, coupled=False).double()

    def solve(self, field: Any, method: str, **options: Any) -> tuple[Tensor, float]:
        """The states at the end and the evaluations per sample."""
        state = torch.randn(4, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        bias = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        chosen: Any = method
        if solvers.get(method).adaptive:
            chosen = {"name": method, "max_steps": 10**6}
        elif "implicit_terms" in solvers.get(method).options:
            chosen = {"name": method, "implicit_terms": "both"}

        def control(t: Any) -> Tensor:
            return bias + torch.cos(torch.as_tensor(t, dtype=torch.float64))

        solution = solvers.integrate(field, state, [0.0, self.end], control, chosen, **options)
        return solution.states[:, -1], float(solution.statistics.evaluations.double().mean())


# The two that both problems share come first, so that they look the same in both panels.
PROBLEMS = (
    Problem(
        "not stiff: gamma 4, epsilon 0.1",
        gamma=4.0,
        epsilon=0.1,
        end=20.0,
        methods=(
            *("rk4", "native_dopri5", "dopri8", "euler", "semi_implicit_euler"),
            *("stormer_verlet", "pefrl", "yoshida6", "etd4rk"),
        ),
    ),
    Problem(
        "stiff: gamma 1000, epsilon 1001",
        gamma=1000.0,
        epsilon=1001.0,
        end=10.0,
        methods=(
            *("rk4", "native_dopri5", "native_kencarp4", "imex_euler", "exponential_euler"),
            *("ars222", "kencarp4", "radau_iia3", "gauss_legendre4"),
        ),
    ),
)


@dataclass(frozen=True)
class Curve:
    """One solver: evaluations per sample and error of each solve, only those that solve the problem."""

    method: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One problem with its curves."""

    problem: Problem
    curves: tuple[Curve, ...]


@torch.no_grad()
def measure(problems: Sequence[Problem] = PROBLEMS, report: Report = silent) -> list[Panel]:
    """Solve every problem by each of its methods."""
    panels = []
    for number, problem in enumerate(problems):
        field, part_report = problem.field(), within(report, number / len(problems), 1 / len(problems))
        reference, _ = problem.solve(field, "dopri8", rtol=1e-12, atol=1e-12)
        curves = []
        for i, method in enumerate(problem.methods):
            part_report(method, i / len(problem.methods))
            curves.append(Curve(method, _points(problem, field, method, reference)))
        panels.append(Panel(problem, tuple(curves)))
    return panels


def _points(problem: Problem, field: Any, method: str, reference: Tensor) -> tuple[tuple[float, float], ...]:
    solver, points = solvers.get(method), []
    if solver.adaptive:
        choices: list[dict[str, Any]] = [{"rtol": tolerance, "atol": tolerance} for tolerance in TOLERANCES]
    else:
        # Newton's method takes a few evaluations for each stage.
        cost = solver.stages * (3 if solver.family == "implicit" else 1)
        choices = [{"substeps": max(budget // cost, 1)} for budget in BUDGETS]
    for options in choices:
        try:
            end, evaluations = problem.solve(field, method, **options)
        except NumericalError:  # a step too long for an explicit method
            continue
        error = float((end - reference).abs().max())
        if FLOOR <= error <= CEILING and evaluations <= 2 * BUDGETS[-1]:
            points.append((evaluations, error))
    return tuple(points)


def table(panels: Sequence[Panel]) -> Table:
    """Evaluations that each solver needs for an error of 1e-2, 1e-4, 1e-6 and 1e-8, between the measured points."""
    goals = (1e-2, 1e-4, 1e-6, 1e-8)
    result = Table(title="Evaluations for an error of at most", title_justify="left", box=None, pad_edge=False)
    for heading in ("problem", "solver"):
        result.add_column(heading, no_wrap=True)
    for goal in goals:
        result.add_column(f"{goal:.0e}", justify="right")
    for panel in panels:
        for i, curve in enumerate(panel.curves):
            needed = [evaluations_for(curve.points, goal) for goal in goals]
            shown = ["" if value is None else f"{value:,.0f}" for value in needed]
            result.add_row(panel.problem.title if i == 0 else "", curve.method, *shown)
        result.add_section()
    return result


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write the diagram to `path`."""
    figures.save(lambda: diagram(panels), path)


def diagram(panels: Sequence[Panel]) -> Figure:
    """One panel per problem, one curve per solver, each with its name at its end."""
    figure = Figure(figsize=(7 * len(panels), 5.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        look = drawing.looks(curve.method for curve in panel.curves)
        for curve in panel.curves:
            xs, ys = ([point[axis] for point in curve.points] for axis in (0, 1))
            axes.plot(xs, ys, **look[curve.method], linestyle="--" if solvers.get(curve.method).adaptive else "-")
        axes.set(xscale="log", yscale="log", ylim=(FLOOR / 3, 3 * CEILING), title=panel.problem.title)
        axes.set(xlabel="right-hand-side evaluations per sample", ylabel="largest error at the end")
        _name(axes, panel, look)
    figure.suptitle("Work and precision: fixed steps (solid) and adaptive ones (dashed)", fontsize=13)
    return figure


def _name(axes: Axes, panel: Panel, look: dict[str, dict[str, Any]]) -> None:
    """Names beside the ends of the curves, moved apart where they would overlap."""
    curves = sorted((c for c in panel.curves if c.points), key=lambda curve: -curve.points[-1][1])
    if not curves:
        return
    right = max(evaluations for curve in curves for evaluations, _ in curve.points)
    left = min(evaluations for curve in curves for evaluations, _ in curve.points)
    axes.set_xlim(left / 1.3, right * 1.15)
    low, high = (math.log10(value) for value in axes.get_ylim())
    wanted = [(math.log10(curve.points[-1][1]) - low) / (high - low) for curve in curves]
    for curve, height in zip(curves, apart(wanted, 0.048), strict=True):
        axes.annotate(
            curve.method,
            xy=curve.points[-1],
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=look[curve.method]["color"],
            verticalalignment="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": look[curve.method]["color"], "linewidth": 0.5, "alpha": 0.6},
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Falling heights moved as little as it takes to be `gap` apart, within 0 and 1 where they fit."""
    moved: list[float] = []
    for height in heights:
        moved.append(min(height, moved[-1] - gap) if moved else min(height, 1.0))
    for i in reversed(range(len(moved))):
        moved[i] = max(moved[i], moved[i + 1] + gap if i + 1 < len(moved) else 0.0)
    return moved
