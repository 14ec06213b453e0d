"""The figures of a report: learning curves, and the test figures of every run."""

from __future__ import annotations

import functools
import math
import statistics
import textwrap
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.report.runs import Group, Reported, deviation
from experiments.tasks.metrics import METRICS
from experiments.train.curves import panels
from neuralosc.analysis import drawing

#: Inches: on a phone a page shows a figure as wide as the screen, and its letters must stay readable.
WIDTH, HEIGHT, LINE = 4.8, 3.6, 0.22
PARTS = ("train", "validation")


def drawings(reported: Reported) -> dict[str, tuple[Callable[[], Figure], str]]:
    """Every figure by its name: what draws it, and what it shows in words."""
    found: dict[str, tuple[Callable[[], Figure], str]] = {}
    scales = panels(reported.runs[0].history[0])
    if not reported.one_loss and len(scales) > 1:
        scales.pop("loss")
    for name, scale in scales.items():
        have = all({f"train_{name}", f"validation_{name}"} <= set(run.history[0]) for run in reported.runs)
        if have:
            about = f"{name} of the training set (dashed) and the validation set (solid) after every epoch, of "
            about += "; ".join(_ended(group, name) for group in reported.groups)
            found[f"curve_{name}"] = functools.partial(_curves, reported, name, scale), about
    groups = [group for group in reported.groups if group.finished]
    if sum(len(group.finished) for group in groups) > 1:
        about = f"{reported.metric} of the test set of every run, with mean and standard deviation of each group"
        found[f"test_{reported.metric}"] = functools.partial(_tests, reported, groups), about
    return found


def _ended(group: Group, name: str) -> str:
    """Where the curve of a group ends, in words."""
    means, _ = group.curve(f"validation_{name}")
    return f"{group.label}, {f'at the end {means[-1]:.3g}' if means else 'not finished'}"


def _curves(reported: Reported, name: str, scale: str) -> Figure:
    looks = drawing.looks(group.label for group in reported.groups)
    figure = Figure(figsize=(WIDTH, HEIGHT + LINE * len(looks)), layout="constrained")
    axes = figure.subplots()
    for group in reported.groups:
        colour = looks[group.label]["color"]
        for part, style, label in (("train", (0, (3, 2)), None), ("validation", "solid", _short(group.label))):
            means, spreads = group.curve(f"{part}_{name}")
            line: dict[str, Any] = {"color": colour, "linestyle": style}
            for run in group.runs:
                values = [record[f"{part}_{name}"] for record in run.history]
                thin = {"linewidth": 0.7, "alpha": 0.5} if run.result is not None else {"linewidth": 1.1, "marker": "x"}
                axes.plot(range(1, len(values) + 1), values, **line, **thin)
            epochs = range(1, len(means) + 1)
            # A group without a finished run has a place in the legend, too.
            axes.plot(epochs, means, **line, linewidth=1.8, marker="." if len(means) < 2 else None, label=label)
            if len(group.finished) > 1:
                low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
                axes.fill_between(epochs, low, high, color=colour, alpha=0.16, linewidth=0)
    values = [record[f"{part}_{name}"] for run in reported.runs for record in run.history for part in PARTS]
    # Within a decade a logarithmic axis has hardly a number to read.
    wide = min(values) > 0 and max(values) > 10 * min(values)
    axes.set(xlabel="epoch", ylabel=name.replace("_", " "), yscale=scale if wide else "linear")
    _percent(axes, name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower left")
    axes.set_title("dashed: training   solid: validation", fontsize=9, color="#505050", loc="left")
    return figure


def _tests(reported: Reported, groups: list[Group]) -> Figure:
    metric = reported.metric
    looks = drawing.looks(group.label for group in reported.groups)
    figure = Figure(figsize=(WIDTH, 1.0 + 0.55 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for row, group in enumerate(groups):
        values = [result.test.get(metric, math.nan) for result in group.finished.values()]
        colour, mean = looks[group.label]["color"], statistics.fmean(values)
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.55, markersize=6, markeredgewidth=0)
        if len(values) > 1:
            axes.errorbar(
                mean, row, xerr=deviation(values), fmt="|", color=drawing.INK, markersize=14, capsize=3, elinewidth=1.2
            )
    axes.set_yticks(range(len(groups)), [_short(group.label) for group in groups])
    axes.set(ylim=(len(groups) - 0.5, -0.5), xlabel=f"{metric.replace('_', ' ')} of the test set")
    _percent(axes, metric, "x")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _percent(axes: Any, name: str, of: str = "y") -> None:
    if name in METRICS and METRICS[name].percent:
        getattr(axes, f"{of}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _short(label: str) -> str:
    """A label in lines that a small figure has room for."""
    return textwrap.fill(label, 34)
