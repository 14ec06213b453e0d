"""The tasks by name: `TASKS` lists them, `get` makes one."""

from __future__ import annotations

import inspect

from experiments import own
from experiments.tasks import contract
from experiments.tasks.adding import Adding
from experiments.tasks.base import Splits, Task
from experiments.tasks.cifar import NoisyCIFAR10, PermutedSequentialCIFAR10, SequentialCIFAR10
from experiments.tasks.copy_memory import CopyMemory
from experiments.tasks.digits import Digits
from experiments.tasks.event_mnist import EventMNIST
from experiments.tasks.halfcheetah import HalfCheetah
from experiments.tasks.har import HAR2
from experiments.tasks.hopper import Hopper
from experiments.tasks.imdb import IMDB
from experiments.tasks.mnist import PermutedSequentialMNIST, SequentialMNIST
from experiments.tasks.oscillators import Oscillators
from experiments.tasks.physical import DoublePendulum, Duffing, HenonHeiles, Pendulum, SpringChain
from experiments.tasks.physionet2012 import PhysioNet2012
from experiments.tasks.physionet_forecast import PhysioNetForecast
from experiments.tasks.ppg import PPGDaLiA
from experiments.tasks.table import Table
from experiments.tasks.text import Text
from experiments.tasks.uea import UEA
from experiments.tasks.weather import Weather
from solvers.errors import unknown

__all__ = ["TASKS", "Splits", "Task", "defaults", "get", "options"]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        *(Digits, Adding, CopyMemory, SequentialMNIST, PermutedSequentialMNIST),
        *(NoisyCIFAR10, SequentialCIFAR10, PermutedSequentialCIFAR10, HAR2),
        *(Pendulum, Duffing, HenonHeiles, SpringChain, DoublePendulum),
        *(EventMNIST, Oscillators, HalfCheetah, Hopper, PhysioNet2012, PhysioNetForecast),
        *(Table, Text, IMDB, UEA, PPGDaLiA, Weather),
    )
}


def options(name: str) -> tuple[str, ...]:
    """The names of the options that the task called `name` takes.

    Raises:
        UnknownNameError: no such task; the message lists the nearest names.
    """
    return tuple(defaults(name))


def defaults(name: str) -> dict[str, object]:
    """The options of a task with their defaults, `inspect.Parameter.empty` where there is none.

    Args:
        name: of `TASKS`, or of a class of one's own, `package.module:Class`.

    Raises:
        UnknownNameError: no such task; the message lists the nearest names.
        InputError: what `own.find` refuses.
    """
    if own.is_own(name):
        return own.arguments("task", name, contract.own_class(name))
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return {key: parameter.default for key, parameter in inspect.signature(TASKS[name]).parameters.items()}


def get(name: str, **given: object) -> Task:
    """The task called `name`, with the options `given`.

    Raises:
        UnknownNameError: no such task or no such option; the message lists the nearest names.
        InputError: an option with a value the task cannot use, or a class of one's own that is no task.
    """
    known = options(name)
    for option in given:
        if option not in known:
            raise unknown(f"option of task {name!r}", option, known)
    if own.is_own(name):
        return contract.fulfilled(name, own.made("task", name, contract.own_class(name), **given))
    return TASKS[name](**given)
