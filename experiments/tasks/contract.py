"""What is asked of a task of one's own, checked before anything is trained on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from experiments import own
from experiments.tasks.base import Splits, Task
from experiments.tasks.metrics import CLASSIFICATION, METRICS, STANDARD
from experiments.tasks.series import Batch, batch_of
from solvers.errors import InputError, unknown

PARTS = ("training", "validation", "test")

#: What a class that is no `Task` may say of itself; all else is as `Task` has it.
SAID = (
    *("name", "description", "input_size", "output_size", "kind", "metrics", "every", "irregular", "gaps", "length"),
    *("measured", "counted", "streams", "collator", "notices", "scale", "guesses", "reported"),
    *("tokens", "embedding_size", "embedding_dropout", "embedded"),
)


class Adapted(Task):
    """A task by what an object says of itself, whose class is not derived from `Task`."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __getattribute__(self, name: str) -> Any:
        """Of what a task says of itself, what the object says, if anything."""
        if name in SAID:
            made = object.__getattribute__(self, "made")
            if hasattr(made, name):
                return getattr(made, name)
        return super().__getattribute__(name)

    def splits(self, seed: int = 0) -> Splits:
        """Those of the object."""
        found: Splits = self.made.splits(seed)
        return found


def own_class(name: str) -> type:
    """The class of a task of one's own.

    Raises:
        InputError: what `own.find` refuses, or a class without `splits`.
    """
    kind = own.find("task", name)
    if not callable(getattr(kind, "splits", None)):
        raise _lacking(name, "splits(seed), which returns the training, validation and test set")
    return kind


def fulfilled(name: str, made: Any) -> Task:
    """A task of one's own that says of itself what is needed, and whose data are checked when they are asked for.

    Args:
        name: `package.module:Class`.
        made: a `Task`, or what says the same of itself, of its `own_class`.

    Raises:
        InputError: what it lacks, in one line.
    """
    splits = made.splits
    task = made if isinstance(made, Task) else Adapted(made)
    kind = getattr(task, "kind", None)
    if kind not in STANDARD:
        raise _lacking(name, f"kind {' or '.join(map(repr, STANDARD))}", kind)
    for size in ("input_size", "output_size"):
        value = getattr(task, size, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _lacking(name, f"{size}, a whole number of at least 1", value)
    if not hasattr(task, "name"):
        _set(task, "name", name)
    if not task.metrics:
        _set(task, "metrics", STANDARD[kind])
    for metric in task.metrics:
        known = [each for each in METRICS if METRICS[each].kind == kind]
        if metric not in known:
            raise unknown(f"metric of task {name!r}", metric, known)
    # On the object: whoever asks for the data gets what was checked.
    object.__setattr__(task, "splits", _Checked(name, task, splits))
    return task


def _set(task: Task, name: str, value: Any) -> None:
    """Say something of a task that it does not say itself."""
    object.__setattr__(task.made if isinstance(task, Adapted) else task, name, value)


def _lacking(name: str, needed: str, given: Any = None) -> InputError:
    said = "has no" if given is None else f"says {given!r:.60}, expected"
    return InputError(f"task {name!r} {said} {needed}: see experiments.tasks.Task")


class _Checked:
    """The sets of a task, checked, and made once for each seed."""

    def __init__(self, name: str, task: Task, splits: Callable[..., Any]) -> None:
        self.name, self.task, self.splits = name, task, splits
        self.seeded = bool(inspect.signature(splits).parameters)
        self.found: dict[int, Splits] = {}

    def __call__(self, seed: int = 0) -> Splits:
        if seed not in self.found:
            sets = self.splits(seed) if self.seeded else self.splits()
            if not isinstance(sets, list | tuple) or len(sets) != len(PARTS):
                raise _lacking(self.name, "three sets in what splits returns, training, validation and test", sets)
            longest = [self._check(part, data) for part, data in zip(PARTS, sets, strict=True)]
            if not hasattr(self.task, "length"):
                _set(self.task, "length", max(longest))
            self.found = {seed: (sets[0], sets[1], sets[2])}
        return self.found[seed]

    def _check(self, part: str, data: Any) -> int:
        """The longest series of a set that a network can be trained on."""
        try:
            count = len(data)
            batch = batch_of(data, slice(None)) if count else None
        except Exception as error:  # whatever foreign code stumbles over
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.100}"
            raise _lacking(self.name, f"{part} set that is indexed as a TensorDataset of x and y ({reason})") from error
        if batch is None:
            raise _lacking(self.name, f"samples in its {part} set, which is empty")
        fault = self._fault(batch)
        if fault:
            raise InputError(f"task {self.name!r}: {part} set: {fault}")
        return int(batch.x.shape[1])

    def _fault(self, batch: Batch) -> str:
        """What cannot be learnt from, empty if nothing."""
        task, (x, y) = self.task, batch[:2]
        size, numbers = (1, "whole") if task.tokens else (task.input_size, "floating-point")
        if not isinstance(x, Tensor) or _numbers(x) != numbers or x.dim() != 3 or x.shape[-1] != size:
            return f"x is {_shape(x)}, expected {numbers} numbers (samples, time, {size})"
        shape: tuple[int, ...] = tuple(x.shape[: 1 + task.every])
        if task.kind != CLASSIFICATION:
            shape += (task.output_size,)
        kinds = "class numbers, int64" if task.kind == CLASSIFICATION else "floating-point numbers"
        if not isinstance(y, Tensor) or tuple(y.shape) != shape or not _of_kind(y, task.kind):
            return f"y is {_shape(y)}, expected {kinds} {shape}"
        inside = y if batch.valid is None or not task.every else y[batch.valid]
        if task.kind == CLASSIFICATION and not bool(((inside >= 0) & (inside < task.output_size)).all()):
            wrong = inside[(inside < 0) | (inside >= task.output_size)][0]
            return f"y has the class {int(wrong)}, expected 0 to {task.output_size - 1}"
        if task.kind != CLASSIFICATION and not task.measured and not bool(inside.isfinite().all()):
            return "y is not finite, and the task is not measured: leave such samples out"
        return self._fault_of_samples(batch)

    def _fault_of_samples(self, batch: Batch) -> str:
        task, x = self.task, batch.x
        values = x if batch.valid is None else x[batch.valid]
        if bool(values.isinf().any()) or (not task.gaps and bool(values.isnan().any())):
            return "x is not finite: of missing values, NaN, the task says gaps = True"
        if task.tokens and bool(((values < 0) | (values >= task.tokens)).any()):
            wrong = values[(values < 0) | (values >= task.tokens)][0]
            return f"x has the token {int(wrong)}, expected 0 to {task.tokens - 1}"
        if (batch.timespans is not None) != bool(task.irregular):
            has = "timespans" if batch.timespans is not None else "no timespans"
            return f"its samples have {has}, and the task says irregular = {task.irregular}: make both agree"
        for name, part, count in (("timespans", batch.timespans, 2), ("lengths", batch.lengths, 1)):
            if part is not None and part.shape != x.shape[:count]:
                return f"{name} are {_shape(part)}, expected {tuple(x.shape[:count])}"
        return ""


def _numbers(x: Tensor) -> str:
    """What kind of numbers a tensor holds."""
    if x.is_floating_point():
        return "floating-point"
    return str(x.dtype)[6:] if x.is_complex() or x.dtype == torch.bool else "whole"


def _of_kind(y: Tensor, kind: str) -> bool:
    return y.dtype == torch.int64 if kind == CLASSIFICATION else y.is_floating_point()


def _shape(value: Any) -> str:
    return f"{str(value.dtype)[6:]} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
