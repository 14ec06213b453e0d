"""How a run ended, as it is returned and as it is read back from the file of the run."""

from __future__ import annotations

from dataclasses import MISSING as NONE
from dataclasses import dataclass, field, fields
from typing import Any

from experiments.train.runs import RunFolder
from solvers.errors import InputError


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: where everything about it lies.
        validation: {"loss", and the metrics of the task} of the weights that were kept, on the validation set.
        test: the same on the test set.
        best_epoch: the epoch, counted from 1, whose weights were kept.
        epochs: epochs done.
        seconds: time spent in epochs.
        parameters: numbers that were trained.
        baselines: of what needs no network, by name, {"loss", and the metrics} on the test set.
        notices: what the task had to say of its data.
    """

    folder: RunFolder
    validation: dict[str, float]
    test: dict[str, float]
    best_epoch: int
    epochs: int
    seconds: float
    parameters: int
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def ended(folder: RunFolder, result: dict[str, Any]) -> RunResult:
    """The result of a finished run, from its file.

    Raises:
        InputError: the file does not hold what a finished run writes.
    """
    try:
        # Runs of before have no baselines.
        values = {field.name: result[field.name] for field in fields(RunResult)[1:] if field.default_factory is NONE}
    except KeyError as error:
        raise InputError(f"{folder.result_file} has no {error}: remove it and resume the run") from error
    for name, value in values.items():
        numbers = list(value.values()) if isinstance(value, dict) else [value]
        held = isinstance(value, dict) == (name in ("validation", "test"))
        if not held or not numbers or not all(type(number) in (int, float) for number in numbers):
            raise InputError(f"{folder.result_file} says {name} {value!r}: remove it and resume the run")
    baselines = result.get("baselines", {})
    if not isinstance(baselines, dict) or not all(
        isinstance(figures, dict) and all(type(number) in (int, float) for number in figures.values())
        for figures in baselines.values()
    ):
        raise InputError(f"{folder.result_file} says baselines {baselines!r}: remove it and resume the run")
    notices = result.get("notices", [])
    if not isinstance(notices, list) or not all(isinstance(line, str) for line in notices):
        raise InputError(f"{folder.result_file} says notices {notices!r}: remove it and resume the run")
    return RunResult(folder, **values, baselines=baselines, notices=notices)
