"""What a trained run is for: predictions for a table of one's own, and the model as one file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import neuralosc
from experiments.tasks import columns, windows
from experiments.tasks.columns import Recorded
from experiments.tasks.imdb import IMDB
from experiments.tasks.table import Table
from experiments.tasks.uea import CLASS, SERIES, UEA
from experiments.train.config import RunConfig
from experiments.train.model import dtype
from experiments.train.networks import OwnLayer
from experiments.train.trainer import EVALUATION_BATCH, Batches
from experiments.train.training import load_model, threads
from neuralosc import SequenceModel
from solvers.errors import InputError, NumericalError

#: What to do on the command line about a network that cannot be an ONNX file, by what is said of it.
ONNX_ADVICE = {
    "max_dt bounds": "; train the run with --max-dt inf, or with --solver relaxation_euler where the field has it",
    "needs earlier samples": "; here --length N",
    "answers sample by sample": "; here --length N",
}


class NonFiniteAnswerError(NumericalError):
    """A prediction that is NaN or infinite."""

    advice = "look at the values of that series"


def predict(run: str | Path, paths: Sequence[str | Path], say: Callable[[str], None] = lambda line: None) -> Any:
    """The answers of a run's kept weights to the series of some files, as a table of pandas.

    A forecast answers at its horizons after the last sample of each series: a row for each of these times, with the
    columns of id, time and targets, as in the file. A regression gives a row for each series with the targets, a
    classification one with the class and the probability of each. With the likelihood "gaussian" targets are means, and
    their standard deviations, in the same units, follow as std(TARGET).

    Args:
        run: folder of a run of the task `table`, or of `uea`, whose files see `UEA.read`.
        paths: files with the same columns; those of the target may be missing where they are no inputs.
        say: is told of rows that are left out or sorted.

    Raises:
        InputError: no run, a run of another task, or a file that cannot be used.
        NumericalError: an answer that is not finite.
    """
    model, config, task = load_model(run)
    files = [Path(path).expanduser() for path in paths]
    if isinstance(task, UEA):
        # The time is shown as one more feature.
        series = task.read(files, model.rnn.input_size - (config.time == "input"), say)
        return _classes(series, _answers(model, config, task, series), task.classes, SERIES, CLASS)
    if not isinstance(task, Table):
        raise InputError(f"run {run} was trained on task {config.task!r}, and no file has its columns: evaluate it")
    # Nothing is asked of the targets, but where a change is to be added to the last of them.
    needed = tuple(task.target) if task.relative else ()
    layout = dataclasses.replace(task.layout(), targets=needed, labels=False)
    series = columns.recorded(files, columns.frames(files, layout), layout, say)
    answers = _answers(model, config, task, series)
    name = task.id or "series"
    if task.forecast:
        return _at_horizons(task, series, answers, name)
    if task.labels:
        return _classes(series, answers, task.classes, name, task.target[0])
    named = _named(task, answers.shape[1] > len(task.target))
    return _table({name: [one.name for one in series], **dict(zip(named, answers.T.numpy(), strict=True))})


def _classes(series: Sequence[Recorded], answers: Tensor, classes: Sequence[str], name: str, asked: str) -> Any:
    """One row for each series: its class, and the probability of each."""
    chances = answers.softmax(-1)
    rows: dict[str, Any] = {name: [one.name for one in series]}
    rows[asked] = [classes[int(place)] for place in chances.argmax(-1)]
    return _table(rows | {f"p({label})": chances[:, place].numpy() for place, label in enumerate(classes)})


def _named(task: Table, sure: bool) -> list[str]:
    """What the targets are called in an answer, and their standard deviations if there are any."""
    return [*task.target, *(f"std({column})" for column in (task.target if sure else ()))]


def _table(rows: dict[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame(rows)


def _answers(model: SequenceModel, config: RunConfig, task: Table | UEA, series: Sequence[Recorded]) -> Tensor:
    """`(series, outputs)`, in the units of the targets; of "gaussian" the standard deviations follow."""
    pieces = []
    for one in series:
        first = _first(one, task) if isinstance(task, Table) and task.forecast else 0
        pieces.append((one.times[first:], one.values[first:]))
    data = task.batch(pieces, torch.zeros(len(pieces)))
    batches = Batches(data, EVALUATION_BATCH, dtype=dtype(config), time=config.time)
    with torch.no_grad(), threads(config):
        answers = torch.cat([model.run(batch.x, None, batch.timespans, batch.lengths)[0] for batch in batches])
    if not answers.isfinite().all():
        strange = series[int((~answers.isfinite()).any(-1).nonzero()[0])]
        raise NonFiniteAnswerError(f"the answer to series {strange.name!r} is not finite")
    return answers.double()


def _at_horizons(task: Table, series: Sequence[Recorded], answers: Tensor, name: str) -> Any:
    """One row for each series and horizon."""
    import pandas as pd

    parts = []
    count = len(task.asked.horizons)
    for one, answer in zip(series, answers, strict=True):
        answer = answer.reshape(-1, count).numpy()
        if task.relative:
            # Of a change and of a value the deviation is the same.
            answer[: len(task.target)] += _last(one, task)
        ticks = one.ticks
        steps = [windows.in_ticks(horizon, "horizon", ticks, task.time_column) for horizon in task.asked.horizons]
        asked = ticks.ticks[-1] + np.array(steps)
        times = pd.Series(asked if ticks.kind is None else asked.view(ticks.kind))
        rows = {name: [one.name] * count, task.time_column or "row": times.dt.tz_localize("UTC") if one.utc else times}
        rows |= dict(zip(_named(task, len(answer) > len(task.target)), answer, strict=True))
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def _last(one: Recorded, task: Table) -> np.ndarray:
    """The last value of each target in the window that is answered, `(targets, 1)`."""
    ticks = one.ticks
    first = _first(one, task)
    last = windows.last_seen(one, np.array([first]), np.array([len(ticks) - 1]))[0]
    if np.isnan(last).any():
        name = task.target[int(np.isnan(last).argmax())]
        raise InputError(f"series {one.name!r} has no value of {name!r} in the last {task.history} to add a change to")
    return last[:, None]


def _first(one: Recorded, task: Table) -> int:
    """Number of the sample with which the last window of a series begins."""
    ticks = one.ticks
    history = windows.in_ticks(task.asked.history, "history", ticks, task.time_column)
    return int(np.searchsorted(ticks.ticks, ticks.ticks[-1] - history, side="left"))


def export(run: str | Path, path: str | Path, onnx: bool = False, length: int | None = None) -> Path:
    """Write the kept weights of a run with everything that serves them as one file.

    Args:
        run: the run's folder.
        path: the file to write; one that exists is not replaced.
        onnx: as an ONNX file in place of one that `neuralosc.load` reads.
        length: samples of a series, for networks whose ONNX file must have a fixed length.

    Raises:
        InputError, PairingError: no run, no such folder, or what `neuralosc.export_onnx` refuses.
    """
    target = Path(path)
    if target.exists():
        raise InputError(f"{target} exists already: give another name")
    if length is not None and not onnx:
        raise InputError("--length is of an ONNX file: give --onnx too")
    model, config, task = load_model(run)
    if not onnx:
        # Numbers of words say nothing without the words.
        return neuralosc.save(model, target, {"words": json.dumps(task.words)} if isinstance(task, IMDB) else None)
    if isinstance(model.rnn, OwnLayer):
        raise InputError(
            f"--onnx is for fields and for networks of neuralosc, and model {config.network!r} is a module of your "
            "own: take torch.onnx for it, or leave --onnx out"
        )
    timespans = task.irregular and config.time == "true"
    try:
        return neuralosc.export_onnx(model, target, length or "any", timespans=timespans)
    except InputError as error:
        advice = next((advice for said, advice in ONNX_ADVICE.items() if said in str(error)), "")
        raise type(error)(f"{error}{advice}") from error
