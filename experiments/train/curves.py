"""The learning curve of a run as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.files import write_atomically
from experiments.train.history import Record, best_record, judged_by


def draw_learning_curve(history: list[Record], path: Path) -> None:
    """Loss, and the metric that is no loss, of the training and validation set after every epoch.

    Args:
        history: one record for every epoch, as in metrics.csv.
        path: the PNG file.
    """
    panels = [("loss", "log")]
    name = judged_by(history[0])
    if name != "mse":
        panels.append((name, "linear"))
    # Drawn without pyplot, which keeps global state and may look for a display.
    figure = Figure(figsize=(4.4 * len(panels), 3.4))
    FigureCanvasAgg(figure)
    epochs = [record["epoch"] for record in history]
    best = best_record(history)
    for axes, (name, scale) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for part, label, colour in (("train", "training", "tab:blue"), ("validation", "validation", "tab:orange")):
            values = [record[f"{part}_{name}"] for record in history]
            axes.plot(epochs, values, color=colour, label=label, marker=".", markersize=3)
        value = best[f"validation_{name}"]
        axes.plot(best["epoch"], value, "o", color="tab:orange", fillstyle="none", label=f"best epoch: {value:.3g}")
        axes.set(xlabel="epoch", ylabel=name, yscale=scale)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
