"""Figures of a comparison: accuracy and deviation against step size and work, and hidden trajectories per solver."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

import solvers
from experiments import figures
from experiments.compare.comparison import Comparison, Measurement, Trajectories
from experiments.compare.contenders import SUBSTEPS, TRAINED
from neuralosc.analysis.drawing import looks, note
from neuralosc.analysis.subject import relative_rms

OFF = "states off the reference (relative RMS)"

# Hidden channels and solvers that the trajectories show.
CHANNELS = 3
COLUMNS = 6

# Share of the height of an axis that a line of text takes.
ROOM = 0.05


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw into `folder` what there is to draw, and return the paths of the figures."""
    drawings: dict[str, Callable[[Comparison], Figure]] = {}
    if any(row.deviation is not None for row in comparison.sweep):
        drawings["step_sizes.png"] = step_sizes
    if comparison.trajectories.contenders:
        drawings["trajectories.png"] = trajectories
    paths = []
    for name, drawing in drawings.items():
        figures.save(functools.partial(drawing, comparison), folder / name)
        paths.append(folder / name)
    return paths


def step_sizes(comparison: Comparison) -> Figure:
    """Metric and deviation against step size, and deviation against work, one line per solver."""
    rows = [row for row in comparison.sweep if row.deviation is not None]
    look = looks(row.contender.solver for row in comparison.rows)
    figure = Figure(figsize=(13, 4.9), layout="constrained")
    metric, deviation, work = figure.subplots(1, 3)
    dt = comparison.dt or 1.0
    for name in dict.fromkeys(row.contender.solver for row in rows):
        series = [row for row in rows if row.contender.solver == name]
        style = {**look[name], "label": name}
        if series[0].contender.adaptive:
            _tolerances(metric, deviation, series, style)
        else:
            steps = [dt / row.contender.substeps for row in series]
            # The first lie below the later ones, and are wider: where curves coincide all of them are seen.
            width = {"linewidth": 1.4 + 0.5 * (len(look) - 1 - list(look).index(name))}
            bars = [row.half_width or 0.0 for row in series]
            metric.errorbar(steps, [row.metric for row in series], bars, capsize=2, elinewidth=1, **{**style, **width})
            deviation.plot(steps, [row.deviation for row in series], **style)
        work.plot([row.evaluations for row in series], [row.deviation for row in series], **style)
    _slopes(deviation, [row for row in rows if not row.contender.adaptive], dt)
    _levels(deviation, rows, dt)
    _step_axes(metric, comparison)
    _step_axes(deviation, comparison)
    _metric_axis(metric, comparison, rows)
    deviation.set(yscale="log", ylabel=OFF, title="states against step size")
    _mark_trained(deviation, comparison)
    work.set(xscale="log", yscale="log", xlabel="right-hand-side evaluations per sequence")
    work.set(ylabel=OFF, title="states against work")
    work.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(rows) < 2 else (1,)))
    work.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    work.xaxis.set_minor_formatter(NullFormatter())
    handles, labels = work.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"{comparison.model} on {comparison.task}: the trained weights under each solver", fontsize=13)
    return figure


def _decades(rows: Sequence[Measurement]) -> float:
    """How many powers of ten the evaluations span."""
    counts = [row.evaluations for row in rows if row.evaluations]
    return math.log10(max(counts) / min(counts)) if counts else 0.0


def _tolerances(metric: Axes, deviation: Axes, series: Sequence[Measurement], style: dict[str, Any]) -> None:
    """An adaptive solver, which has no step size: a level for each tolerance."""
    line = {"color": style["color"], "linestyle": (0, (5, 2)), "linewidth": 1.2}
    metric.axhline(series[-1].metric or 0.0, **line)
    for row in series:
        assert row.deviation is not None
        deviation.axhline(row.deviation, **line)


def _levels(axes: Axes, rows: Sequence[Measurement], dt: float) -> None:
    """Solver and tolerance at the levels of the adaptive solvers, where there is room for them."""
    points = [(row.deviation, row.contender) for row in rows if row.deviation]
    deviations = [deviation for deviation, _ in points]
    span = math.log10(max(deviations) / min(deviations)) if points else 0.0
    labelled: list[float] = []
    for deviation, contender in points:
        level = math.log10(deviation)
        if contender.adaptive and all(abs(level - other) >= ROOM * span for other in labelled):
            labelled.append(level)
            text = f"{contender.solver}, rtol {contender.options['rtol']:.0e}".replace("e-0", "e-")
            note(axes, text, (dt, deviation), (4, 3), ha="right")


def _slopes(axes: Axes, rows: Sequence[Measurement], dt: float) -> None:
    """A grey line of the declared order under the finest point of the most accurate solver of each order."""
    finest: dict[float, float] = {}
    for row in rows:
        if row.contender.substeps == SUBSTEPS[-1] and row.deviation is not None:
            order = solvers.get(row.contender.solver).order
            finest[order] = min(row.deviation, finest.get(order, row.deviation))
    middle = SUBSTEPS[len(SUBSTEPS) // 2]
    for order, deviation in finest.items():
        start = 0.6 * deviation
        line: dict[str, Any] = {"color": "#9A9A9A", "linewidth": 1, "linestyle": ":", "zorder": 1}
        axes.plot([dt / SUBSTEPS[-1], dt], [start, start * SUBSTEPS[-1] ** order], **line)
        at = (dt / middle, start * (SUBSTEPS[-1] / middle) ** order)
        note(axes, f"order {order}", at, (6, -11), bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})


def _mark_trained(axes: Axes, comparison: Comparison) -> None:
    """The step of the training, where it is one."""
    dt = comparison.dt or 1.0
    for row in comparison.rows:
        if row.contender.role == TRAINED and not row.contender.adaptive:
            axes.axvline(dt / row.contender.substeps, color="#333333", linewidth=0.9, linestyle=":")


def _step_axes(axes: Axes, comparison: Comparison) -> None:
    dt = comparison.dt or 1.0
    axes.set(xscale="log", xlabel="step size (units of time)" if comparison.dt else "step size, as a fraction of dt")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([dt / count for count in SUBSTEPS], [f"{dt / count:.3g}" for count in SUBSTEPS])


def _metric_axis(axes: Axes, comparison: Comparison, rows: Sequence[Measurement]) -> None:
    name = comparison.metric_name
    samples = rows[0].samples
    axes.set(ylabel=f"{comparison.split} {name} ({samples} samples)", title="answers against step size")
    _mark_trained(axes, comparison)
    dt = comparison.dt or 1.0
    if comparison.sweep_metric is not None:
        axes.axhline(comparison.sweep_metric, color="#B8B8B8", linewidth=4, zorder=0.9)
        note(axes, "exact solution", (dt / SUBSTEPS[-1], comparison.sweep_metric), (-6, -13))
    trained = {(r.contender.solver, r.contender.substeps) for r in comparison.rows if r.contender.role == TRAINED}
    for row in rows:
        as_trained = (row.contender.solver, row.contender.substeps) in trained and not row.contender.adaptive
        if as_trained and row.metric is not None:
            at = (dt / row.contender.substeps, row.metric)
            axes.plot(*at, marker="o", markersize=12, fillstyle="none", color="#333333", markeredgewidth=1.2)
            note(axes, "as trained", at, (7, 9), ha="right")
    values = [row.metric for row in rows if row.metric is not None]
    if name == "accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%" if 0 <= value <= 1 else ""))
        # Room for at least a few samples, so that one sample more or less does not fill the axis.
        low, high = min(values), max(values)
        margin = max(0.1 * (high - low), 4 / samples)
        axes.set_ylim(max(low - margin, -0.04), min(high + margin, 1.04))
    elif min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


def trajectories(comparison: Comparison) -> Figure:
    """A few hidden channels of one sample under each solver (columns), against the reference in grey."""
    paths = comparison.trajectories
    shown = paths.contenders[:COLUMNS]
    look = looks(row.contender.solver for row in comparison.rows)
    units = " (units of the equation)" if comparison.dt else " (units of dt)"
    channels = _channels(paths)
    times = paths.times
    figure = Figure(figsize=(1.2 + 2.5 * len(shown), 1.1 + 1.75 * len(channels)), layout="constrained")
    grid = figure.subplots(len(channels), len(shown), sharex=True, sharey="row", squeeze=False)
    for column, (contender, states) in enumerate(shown):
        for row, channel in enumerate(channels):
            axes = grid[row][column]
            axes.plot(times, paths.reference[:, 0, channel], color="#B8B8B8", linewidth=4, solid_capstyle="round")
            axes.plot(times, states[:, 0, channel], color=look[contender.solver]["color"], linewidth=1.4)
            if column == 0:
                axes.set_ylabel(f"channel {channel}")
        title = f"{contender.label}\n{contender.role or ''}".strip()
        grid[0][column].set_title(title, fontsize=10, color=look[contender.solver]["color"])
        # Of what is drawn here, and nothing else.
        drawn = relative_rms(states[:, 0, channels], paths.reference[:, 0, channels])
        grid[-1][column].set_xlabel(f"time{units}\nhere off by {drawn:.2g} (relative RMS)", fontsize=9)
    name = "position" if paths.reference.shape[1] > 1 else "state"
    figure.suptitle(
        f"{comparison.model} on {comparison.task}: hidden {name} over one {comparison.split} sample, "
        "each solver (colour) over the reference (grey)",
        fontsize=12,
    )
    return figure


def _channels(paths: Trajectories) -> list[int]:
    """Channels that move much, fairly much and middling, in the reference."""
    motion = paths.reference[:, 0].amax(0) - paths.reference[:, 0].amin(0)
    order = motion.argsort(descending=True).tolist()
    picks = [len(order) * part // 8 for part in range(CHANNELS)]
    return list(dict.fromkeys(order[min(pick, len(order) - 1)] for pick in picks))
