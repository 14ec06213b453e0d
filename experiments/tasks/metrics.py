"""The figures by which answers are judged: what each is called, of which answers, and which way is better."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torchmetrics

CLASSIFICATION, REGRESSION = "classification", "regression"


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        title: what it is, in a sentence.
        kind: of the tasks that have it, "classification" or "regression".
        larger: whether larger is better.
        percent: whether it is shown in percent.
        of_torchmetrics: the class of torchmetrics that computes it, for two classes and for more; None where sums
            over the samples do, of "accuracy", "bpc", "mse" and "crps".
    """

    title: str
    kind: str
    larger: bool
    percent: bool = False
    of_torchmetrics: tuple[str, str] | None = None

    def make(self, outputs: int) -> torchmetrics.Metric:
        """What collects answers and computes the figure: probabilities of a class, or numbers.

        Args:
            outputs: classes, or numbers of an answer.
        """
        # Imported here: it takes a second, and only those who measure need it.
        import torchmetrics.classification
        import torchmetrics.regression

        assert self.of_torchmetrics is not None, "the sums of the loss are enough"
        binary, several = self.of_torchmetrics
        if self.kind == REGRESSION:
            made: torchmetrics.Metric = getattr(torchmetrics.regression, binary)(**_OPTIONS.get(binary, {}), **_ALONE)
        elif outputs == 2:
            made = getattr(torchmetrics.classification, binary)(**_OPTIONS.get(binary, {}), **_ALONE)
        else:
            made = getattr(torchmetrics.classification, several)(num_classes=outputs, average="macro", **_ALONE)
        return made


# Processes that count together are put together in the open, not by whoever asks for a figure.
_ALONE = {"sync_on_compute": False}

_OPTIONS: dict[str, dict[str, Any]] = {
    "MulticlassRecall": {"num_classes": 2, "average": "macro"},
    "MeanSquaredError": {"squared": False},
}

METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", CLASSIFICATION, larger=True, percent=True),
    "balanced_accuracy": Metric(
        "Mean over the classes of the share that is found",
        CLASSIFICATION,
        larger=True,
        percent=True,
        of_torchmetrics=("MulticlassRecall", "MulticlassRecall"),
    ),
    "auroc": Metric(
        "Area under the receiver operating characteristic",
        CLASSIFICATION,
        larger=True,
        of_torchmetrics=("BinaryAUROC", "MulticlassAUROC"),
    ),
    "auprc": Metric(
        "Area under precision and recall (average precision)",
        CLASSIFICATION,
        larger=True,
        of_torchmetrics=("BinaryAveragePrecision", "MulticlassAveragePrecision"),
    ),
    "bpc": Metric("Bits per character, the cross-entropy in units of log 2", CLASSIFICATION, larger=False),
    "crps": Metric("Continuous ranked probability score", REGRESSION, larger=False),
    "mse": Metric("Mean squared error", REGRESSION, larger=False),
    "rmse": Metric(
        "Root of the mean squared error",
        REGRESSION,
        larger=False,
        of_torchmetrics=("MeanSquaredError", "MeanSquaredError"),
    ),
    "mae": Metric(
        "Mean absolute error",
        REGRESSION,
        larger=False,
        of_torchmetrics=("MeanAbsoluteError", "MeanAbsoluteError"),
    ),
}

#: The errors that are reported of single outputs, in their units.
OF_EACH = ("rmse", "mae")

#: What is reported of a task that names none.
STANDARD = {CLASSIFICATION: ("accuracy",), REGRESSION: ("mse",)}


def at(name: str, output: str) -> str:
    """What the figure of a single output is called: `rmse_24h`."""
    return f"{name}_{output}"


def parted(name: str) -> tuple[str, str]:
    """The inverse: the figure and the output, which is empty where a figure is of all of them."""
    metric, _, output = name.partition("_")
    return (metric, output) if name not in METRICS and metric in OF_EACH and output else (name, "")


def shown(name: str, value: float) -> str:
    """A figure as it is shown: shares in percent, all else to four digits."""
    metric = METRICS.get(name)
    return f"{value:.2%}" if metric is not None and metric.percent else f"{value:.4g}"


def summary(name: str, values: Sequence[float], spread: float | None = None) -> str:
    """The mean of a figure over runs, with the standard deviation of a sample where there is one.

    Args:
        name: of the figure.
        values: one of each run, or a mean.
        spread: the deviation, where it is known and not that of these values.
    """
    spread = statistics.stdev(values) if spread is None and len(values) > 1 else spread
    if spread is None:
        return shown(name, statistics.fmean(values))
    # Of a deviation from a few runs more than two digits are chance.
    metric = METRICS.get(name)
    digits = f"{spread:.1%}" if metric is not None and metric.percent else f"{spread:.2g}"
    return f"{shown(name, statistics.fmean(values))} ± {digits}"
