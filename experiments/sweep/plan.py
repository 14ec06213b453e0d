"""What a sweep does, as one record: the space, what is asked of a configuration, and how points are proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import yaml

from experiments.files import write_atomically
from experiments.sweep import costs
from experiments.sweep.costs import Objective
from experiments.sweep.space import Space
from experiments.tasks import Task
from experiments.train.config import RunConfig, read_yaml
from experiments.train.model import make_task
from solvers.errors import InputError, unknown

SAMPLERS = ("tpe", "nsga2", "random")
PRUNERS = ("median", "hyperband", "none")

#: Networks of a generation of NSGA-II.
POPULATION = 20
#: Trials and epochs before the first is ended early.
UNPRUNED_TRIALS, UNPRUNED_EPOCHS = 5, 3
#: What the plan of a sweep that an earlier version began does not say.
EARLIER = {"repeats": 1}


@dataclass(frozen=True)
class Plan:
    """What a sweep does; the same for all processes that take part.

    Attributes:
        space: the configurations that may be drawn.
        names: of the objectives; the first metric of the task where none are given.
        sampler: who proposes points, of `SAMPLERS`.
        seed: of the proposals, which follow from it, the number of the trial and the trials before it.
        pruner: who ends trainings early, of `PRUNERS`; "" for "median" where the metric is the one objective.
        at_most: costs that a configuration must not exceed to be trained, by name.
        repeats: trainings of each configuration, from its seed and the ones that follow it; its metric, and where that
            is asked for its deviation, are their means.

    Raises:
        InputError: names that there are not, or a pruner where there is more than one figure to judge by.
    """

    space: Space
    names: tuple[str, ...] = ()
    sampler: str = "tpe"
    seed: int = 0
    pruner: str = ""
    at_most: Mapping[str, float] = field(default_factory=dict)
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise unknown("sampler", self.sampler, SAMPLERS)
        if self.pruner not in ("", *PRUNERS):
            raise unknown("pruner", self.pruner, PRUNERS)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--sampler-seed is {self.seed}: expected 0 or a positive number below 2^32")
        if self.repeats < 1:
            raise InputError(f"--repeats is {self.repeats}: expected a positive number")
        for name, most in self.at_most.items():
            if name not in costs.BEFORE:
                raise unknown("cost that is known before the training", name, costs.BEFORE)
            if not most > 0:
                raise InputError(f"--at-most {name}={most:g}: expected a positive number")
        asked = ", ".join(one.name for one in self.objectives)
        if self.pruner not in ("", "none") and not self._judged_by_epochs:
            raise InputError(
                f"--pruner {self.pruner} with the objectives {asked}: an epoch has the validation {self.metric.name} "
                "alone to be judged by, so leave --pruner out, or make that the only objective"
            )

    @cached_property
    def task(self) -> Task:
        """The task, of which all settings are fixed."""
        values = {k: v for k, v in self.space.settings.items() if k not in ("model_options", "solver_options")}
        return make_task(RunConfig.from_dict(values))

    @property
    def first_seed(self) -> int:
        """Of the first training of each configuration."""
        return int(self.space.settings.get("seed", 0))

    def repeated(self, config: RunConfig) -> list[RunConfig]:
        """A configuration with the seed of each of its trainings."""
        return [replace(config, seed=self.first_seed + number) for number in range(self.repeats)]

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """What is to be large or small."""
        return costs.objectives(self.names, self.task)

    @property
    def metric(self) -> Objective:
        """The validation metric of the task, an objective or not."""
        (metric,) = costs.objectives((), self.task)
        return metric

    @property
    def _judged_by_epochs(self) -> bool:
        return self.objectives == (self.metric,)

    @property
    def prunes(self) -> bool:
        """Whether trainings are ended early."""
        return self._judged_by_epochs and self.pruner != "none"

    def optunas_pruner(self) -> optuna.pruners.BasePruner:
        """The pruner."""
        if not self.prunes:
            return optuna.pruners.NopPruner()
        if self.pruner == "hyperband":
            return optuna.pruners.HyperbandPruner()
        return optuna.pruners.MedianPruner(UNPRUNED_TRIALS, UNPRUNED_EPOCHS)

    def optunas_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler, with a seed."""
        if self.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
        return optuna.samplers.TPESampler(seed=seed) if self.sampler == "tpe" else optuna.samplers.RandomSampler(seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, of which `from_dict` makes it again."""
        return {
            "space": self.space.to_dict(),
            "objectives": list(self.names),
            "sampler": self.sampler,
            "seed": self.seed,
            "pruner": self.pruner,
            "at_most": dict(self.at_most),
            "repeats": self.repeats,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan of plain values.

        Raises:
            InputError: as for the class.
        """
        most = {key: float(value) for key, value in values["at_most"].items()}
        names = tuple(values["objectives"])
        space = Space.from_dict(values["space"])
        values = {**EARLIER, **values}
        return cls(space, names, values["sampler"], values["seed"], values["pruner"], most, values["repeats"])


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep keeps what it has: its plan, its study and the run of every trial.

    Attributes:
        path: the folder; its name is that of the study.
    """

    path: Path

    @property
    def plan_file(self) -> Path:
        """The plan, and where the study lies."""
        return self.path / "sweep.yaml"

    @property
    def database(self) -> Path:
        """The study, where it lies here."""
        return self.path / "study.db"

    def write(self, plan: Plan, storage: str | None) -> None:
        """Write the plan, and the address of a study that lies elsewhere."""
        values = {"storage": storage, **plan.to_dict()}
        write_atomically(self.plan_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())

    def read(self) -> tuple[Plan, str | None]:
        """The plan and the address.

        Raises:
            InputError: it is no folder of a sweep, or its file is damaged.
        """
        if not self.path.is_dir():
            raise InputError(f"no sweep folder {self.path}")
        if not self.plan_file.is_file():
            raise InputError(f"{self.path} is not a sweep: it has no {self.plan_file.name}")
        values = read_yaml(self.plan_file)
        try:
            return Plan.from_dict(values), values["storage"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise type(error)(f"{self.plan_file}: {error}") from error
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.plan_file} is damaged ({what}): begin another sweep") from error
