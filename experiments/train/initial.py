"""Beginning with the weights that another run kept, and not with random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Dataset

from experiments.tasks import Task
from experiments.tasks.generated import Generated
from experiments.tasks.series import batch_of
from experiments.train.checkpoints import flat, notice
from experiments.train.config import RunConfig
from neuralosc import SequenceModel
from solvers.errors import InputError

Loader = Callable[[str], tuple[SequenceModel, RunConfig, Task]]

#: Of the read-out and what it answers in: another question has others.
ANSWERS = ("readout.", "target_scaler.")
#: What decides what a model does with its weights.
CHOICES = ("model", "field", "time", "readout", "model_options.", "solver_options.")
#: Sequences that are looked at at once.
CHUNK = 1000


def begin(model: SequenceModel, config: RunConfig, task: Task, load: Loader) -> None:
    """Give a model the weights that the run kept which its configuration names, if it does.

    Args:
        model: just made.
        config: with everything written out.
        task: what it is trained on.
        load: gives model, configuration and task of a run by its folder.

    Raises:
        InputError: no run, weights that do not fit, or data that were divided otherwise for it; see `refuse_seen`.
    """
    name, known = config.initial_weights, set[str]()
    while name and name not in known:
        known.add(name)
        try:
            earlier, then, before = load(name)
        except InputError as error:
            if len(known) == 1:
                raise
            notice(f"what run {name} was trained on, from which the weights come, is not known: {error}")
            return
        if len(known) == 1:
            put(model, earlier, name)
            if found := differences(config, model, then, earlier):
                notice(f"the weights of run {name} were trained with {', '.join(found)}")
        refuse_seen(task, config, before, then, name)
        name = then.initial_weights


def put(model: SequenceModel, earlier: SequenceModel, name: str) -> None:
    """Give a model the weights and scales of an earlier one; the read-out begins anew where it answers otherwise.

    Args:
        model: what is to be trained.
        earlier: what was trained.
        name: of the run of it.

    Raises:
        InputError: the networks have other weights, or only one of them scales its input.
    """
    own, theirs = model.state_dict(), earlier.state_dict()
    kinds = [{key: (tuple(value.shape), value.dtype) for key, value in part.items()} for part in (own, theirs)]
    different = [key for key in {**kinds[0], **kinds[1]} if kinds[0].get(key) != kinds[1].get(key)]
    for key in different:
        if not key.startswith(ANSWERS):
            here, there = (_kind(part.get(key)) for part in kinds)
            raise InputError(
                f"the weights of run {name} do not fit: {key} is {there} there and {here} here: give the same network, "
                "or begin with random weights"
            )
    kept = {key for key in own if different and key.startswith(ANSWERS)}
    model.load_state_dict({key: value if key in kept else theirs[key] for key, value in own.items()})
    if kept:
        notice(f"the read-out of run {name} answers otherwise: this one begins with random weights")


def _kind(kind: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "nothing" if kind is None else f"{kind[0]} {str(kind[1]).removeprefix('torch.')}"


def differences(config: RunConfig, model: SequenceModel, then: RunConfig, earlier: SequenceModel) -> list[str]:
    """Choices of two runs besides the weights that decide what a network does with them, where they differ."""
    now, before = (
        {
            **{key: value for key, value in flat(each).items() if key.startswith(CHOICES)},
            "unit of time": None if made.collator is None else made.collator.unit,
        }
        for each, made in ((config, model), (then, earlier))
    )
    return [
        f"{key} {before.get(key)} ({now.get(key)} here)" for key in {**before, **now} if before.get(key) != now.get(key)
    ]


def refuse_seen(task: Task, config: RunConfig, earlier_task: Task, earlier: RunConfig, name: str) -> None:
    """Refuse a division of data by which an earlier run was trained on what this one is to be judged by.

    Sequences are compared as the tasks give them: those that another task shows in another order are not recognised.
    What this run is trained on, too, is not counted: some data sets hold a sequence twice.

    Raises:
        InputError: validation or test sequences of this run were among the training sequences of that.
    """
    try:
        before = earlier_task.splits(earlier.seed)[0]
    except InputError as error:
        notice(f"what run {name} was trained on is not compared with what this one is judged by: {error}")
        return
    if isinstance(before, Generated):
        # Sets drawn from one seed differ, and those of two seeds, too.
        return
    train, *judged = task.splits(config.seed)
    seen = set(_digests(before)) - set(_digests(train))
    for kind, data in zip(("validation", "test"), judged, strict=True):
        known = sum(digest in seen for digest in _digests(data)) if seen else 0
        if known:
            raise InputError(
                f"run {name} was trained on {known} of the {len(data)} {kind} sequences of this one: "  # type: ignore[arg-type]
                "divide them as that run does, or begin with random weights"
            )


def _digests(data: Dataset) -> Iterator[bytes]:
    """A fingerprint of each sequence: its samples and their times."""
    for part in torch.arange(len(data)).split(CHUNK):  # type: ignore[arg-type]
        batch = batch_of(data, part)
        lengths = [batch.x.shape[1]] * len(part) if batch.lengths is None else batch.lengths.tolist()
        rows = [batch.x] if batch.timespans is None else [batch.x, batch.timespans]
        for number, length in enumerate(lengths):
            yield hashlib.blake2b(b"".join(each[number, :length].numpy().tobytes() for each in rows)).digest()
