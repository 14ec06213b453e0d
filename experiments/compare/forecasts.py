"""A picture of forecasts: some series, what was shown of them, and what a network says of all other times."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figures
from experiments.tasks.oscillators import Oscillators
from experiments.tasks.series import Batch
from experiments.train.feeding import told
from experiments.train.runs import RunFolder
from experiments.train.training import load_model, threads
from neuralosc import SequenceModel
from neuralosc.analysis import drawing
from solvers.errors import InputError

#: The network is asked every so often, which is about as often as samples come in training.
APART = 1.0
#: Points of a true path.
FINE = 500
#: Of a band so much lies within.
WITHIN = 0.9
#: Half of its width, in standard deviations.
HALF = NormalDist().inv_cdf((1 + WITHIN) / 2)


@dataclass(frozen=True)
class Forecast:
    """What is drawn of one series.

    Attributes:
        number: of the series in the test set.
        times, true: those of the samples and those asked for between them and later, `(times,)`; the position then.
        seen: times and positions that were shown, `(samples, 2)`.
        mean, std: what the network says at the times.
        path: times and true positions, close to each other, `(points, 2)`.
    """

    number: int
    times: np.ndarray
    true: np.ndarray
    seen: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    path: np.ndarray

    @property
    def inside(self) -> float:
        """Share of the asked times after the last sample at which the true path lies in the band."""
        later = self.times > self.seen[-1, 0]
        return float((np.abs(self.true - self.mean) <= HALF * self.std)[later].mean())


def forecasts(run: str | Path | RunFolder, numbers: Sequence[int]) -> list[Forecast]:
    """What a run says of some series of its test set.

    Args:
        run: a run of the task `oscillators` with an interpolation or extrapolation, and with the likelihood "gaussian".
        numbers: of the series in the test set.

    Raises:
        InputError: another run, or no such series.
    """
    model, config, task = load_model(run)
    if not isinstance(task, Oscillators) or task.subset is None or model.readout.likelihood != "gaussian":
        raise InputError(
            f"the run was trained on task {config.task!r}, with the likelihood {config.likelihood!r}: expected "
            "--task oscillators --ask extrapolation (or interpolation) --likelihood gaussian"
        )
    wrong = [number for number in numbers if not 0 <= number < task.test_size]
    if wrong or not numbers:
        raise InputError(f"series {', '.join(map(str, wrong)) or 'none'}: expected numbers up to {task.test_size - 1}")
    whole = task.splits(config.seed)[2][torch.tensor(numbers)]  # type: ignore[index]
    found = []
    with threads(config):
        for row, number in enumerate(numbers):
            series = whole.each(lambda part, row=row: part[row])
            found.append(_forecast(model, config.time, task, series, number, config.seed))
    return found


def _forecast(model: SequenceModel, time: str, task: Oscillators, series: Batch, number: int, seed: int) -> Forecast:
    """Every time that is asked for is a sample of which nothing is seen."""
    assert series.timespans is not None
    spans = series.timespans.double()
    # The clock of the equation is 0 at the first sample.
    at = (spans.cumsum(0) - spans[0]).numpy()
    shown = ~series.x.isnan().any(-1).numpy()
    if series.lengths is not None:
        shown &= np.arange(len(at)) < int(series.lengths)
    grid = np.arange(0.0, at.max(), APART)
    times, place = np.unique(np.concatenate((grid, at[shown])), return_inverse=True)
    values = series.x[torch.from_numpy(shown)]
    x = torch.full((1, len(times), values.shape[-1]), torch.nan)
    x[0, place[len(grid) :]] = values
    gaps = torch.from_numpy(np.diff(times, prepend=times[0] - float(spans[0]))).unsqueeze(0)
    batch = told(Batch(x, x, gaps), time).floating(model.readout.weight.dtype)
    with torch.no_grad():
        mean, std = model.run(batch.x, None, batch.timespans)[0][0].double().numpy()[:, [0, values.shape[-1]]].T
    seen = np.stack((at[shown], values[:, 0].numpy()), axis=1)
    fine = np.linspace(times[0], times[-1], FINE)
    true, path = (task.path(2, [number], where, seed)[0, :, 0] for where in (times, fine))
    return Forecast(number, times, true, seen, mean, std, np.stack((fine, path), axis=1))


def draw(found: Sequence[Forecast], path: Path) -> None:
    """Draw forecasts below each other and write the picture."""
    figures.save(functools.partial(_figure, found), path)


def _figure(found: Sequence[Forecast]) -> Figure:
    figure = Figure(figsize=(9.0, 0.9 + 2.05 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, one in zip(rows, found, strict=True):
        _panel(axes, one)
    rows[-1].set_xlabel("time t  (in these units the periods are 4 to 16)")
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _panel(axes: Axes, one: Forecast) -> None:
    """One series: the true path, what was shown, the mean and the band."""
    blue, orange = drawing.PALETTE[:2]
    half = HALF * one.std
    last = one.seen[-1, 0]
    band: dict[str, Any] = {"color": blue, "alpha": 0.22, "linewidth": 0, "label": f"{WITHIN:.0%} band"}
    axes.fill_between(one.times, one.mean - half, one.mean + half, **band)
    axes.plot(*one.path.T, color="#707070", linewidth=1.3, linestyle=(0, (4, 2)), label="true path")
    axes.plot(one.times, one.mean, color=blue, linewidth=1.9, label="mean of the network")
    axes.plot(*one.seen.T, "o", color=orange, markeredgecolor="white", markersize=6.5, zorder=4, label="samples shown")
    axes.axvline(last, color="#404040", linewidth=0.9, linestyle=":")
    axes.set_ylabel("position q")
    axes.margins(y=0.14)
    axes.set_xlim(left=one.times[0], right=one.times[-1])
    note: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "color": "#303030", "va": "top"}
    axes.annotate("last sample", (last, 1), xycoords=("data", "axes fraction"), xytext=(4, 0), **note)
