"""The tasks by name: `TASKS` lists them, `get` makes one."""

from __future__ import annotations

import inspect

from experiments.tasks.adding import Adding
from experiments.tasks.base import Splits, Task
from experiments.tasks.digits import Digits
from experiments.tasks.event_mnist import EventMNIST
from experiments.tasks.halfcheetah import HalfCheetah
from experiments.tasks.mnist import PermutedSequentialMNIST, SequentialMNIST
from experiments.tasks.oscillators import Oscillators
from experiments.tasks.physionet2012 import PhysioNet2012
from experiments.tasks.table import Table
from experiments.tasks.uea import UEA
from solvers.errors import unknown

__all__ = ["TASKS", "Splits", "Task", "get", "options"]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        *(Digits, Adding, SequentialMNIST, PermutedSequentialMNIST),
        *(EventMNIST, Oscillators, HalfCheetah, PhysioNet2012),
        *(Table, UEA),
    )
}


def options(name: str) -> tuple[str, ...]:
    """The names of the options that the task called `name` takes.

    Raises:
        UnknownNameError: no such task; the message lists the nearest names.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return tuple(inspect.signature(TASKS[name]).parameters)


def get(name: str, **given: object) -> Task:
    """The task called `name`, with the options `given`.

    Raises:
        UnknownNameError: no such task or no such option; the message lists the nearest names.
        InputError: an option with a value the task cannot use.
    """
    known = options(name)
    for option in given:
        if option not in known:
            raise unknown(f"option of task {name!r}", option, known)
    return TASKS[name](**given)
