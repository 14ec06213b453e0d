"""The learning curve of a run as a picture."""

from __future__ import annotations

import functools
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import figures
from experiments.train.history import Record, judged_by


def draw_learning_curve(history: list[Record], kept: Record, path: Path) -> None:
    """Loss, and the metric that is no loss, of the training and validation set after every epoch.

    Args:
        history: one record for every epoch, as in metrics.csv.
        kept: that of the epoch whose weights are kept, which is marked.
        path: the PNG file.
    """
    figures.save(functools.partial(_figure, history, kept), path)


def panels(record: Record) -> dict[str, str]:
    """What is drawn against epochs, and on which scale: the loss, and the metric where that is no loss."""
    name = judged_by(record)
    return {"loss": "log"} if name == "mse" else {"loss": "log", name: "linear"}


def _figure(history: list[Record], kept: Record) -> Figure:
    scales = panels(history[0])
    figure = Figure(figsize=(4.4 * len(scales), 3.4), layout="constrained")
    epochs = [record["epoch"] for record in history]
    for axes, (name, scale) in zip(figure.subplots(1, len(scales), squeeze=False)[0], scales.items(), strict=True):
        for part, label, colour in (("train", "training", "tab:blue"), ("validation", "validation", "tab:orange")):
            values = [record[f"{part}_{name}"] for record in history]
            axes.plot(epochs, values, color=colour, label=label, marker=".", markersize=3)
        value = kept[f"validation_{name}"]
        axes.plot(kept["epoch"], value, "o", color="tab:orange", fillstyle="none", label=f"epoch kept: {value:.3g}")
        axes.set(xlabel="epoch", ylabel=name, yscale=scale)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return figure
