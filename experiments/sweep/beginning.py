"""Beginning a sweep, going on with one, and taking part in one that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from experiments import own
from experiments.files import locked, numbered_folder
from experiments.sweep.plan import Plan, SweepFolder
from experiments.sweep.running import study_of
from experiments.train.config import ENVIRONMENT, read_yaml
from solvers.errors import InputError


@dataclass(frozen=True)
class Begun:
    """A sweep that can run.

    Attributes:
        plan: what it does.
        folder: where its runs go.
        study: its trials.
    """

    plan: Plan
    folder: SweepFolder
    study: optuna.Study


def settings_in(path: Path | None) -> dict[str, Any]:
    """What a configuration file says, all of which is fixed; nothing without a file."""
    values = {} if path is None else read_yaml(path)
    values.pop(ENVIRONMENT, None)
    return values


def begun(plan: Plan, root: Path, name: str | None, storage: str | None) -> Begun:
    """A new sweep in a folder of its own; of a name that there is, what takes part in it.

    Args:
        plan: what it does.
        root: folder of the folders.
        name: of the folder and of the study; the task with a number where there is none.
        storage: the address of a database; None for a file in the folder.

    Raises:
        InputError: the folder cannot be made, or holds something else; see `study_of`.
    """
    if name is None and storage is not None:
        raise InputError("--storage is shared by the name of a study: give --name as well")
    if name is not None and (not name.strip() or name == ".." or Path(name).name != name):
        raise InputError(f"sweep name {name!r}: expected the name of one folder, without separators")
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = root / name if name is not None else numbered_folder(root, f"sweep-{own.short(plan.task.name)}")
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"sweep folder in {root} cannot be made: {error.strerror or error}") from error
    folder = SweepFolder(path)
    # Processes that begin together with one name: one of them makes the sweep, and the others take part.
    with locked(path / LOCK, wait=True):
        if folder.plan_file.is_file():
            kept = folder.read()[1]
            return Begun(plan, folder, study_of(plan, folder, storage or _address(path, kept)))
        if any(file.name != LOCK for file in path.iterdir()):
            raise InputError(f"{path} is there, and is no sweep: give another --name")
        study = study_of(plan, folder, storage)
        folder.write(plan, _written(storage))
    return Begun(plan, folder, study)


def resumed(path: Path, storage: str | None) -> Begun:
    """A sweep by its folder.

    Raises:
        InputError: no sweep, a damaged one, or a study elsewhere whose address is not kept.
    """
    folder = SweepFolder(path)
    plan, kept = folder.read()
    # The study is made before the plan is written.
    where = storage or _address(path, kept)
    if where is None and not folder.database.is_file():
        raise InputError(f"{folder.database} is not there: the trials of {path} are lost, begin another sweep")
    return Begun(plan, folder, study_of(plan, folder, where))


#: Who begins holds it.
LOCK = ".lock"
#: What a folder keeps instead of an address with a password.
SECRET = "given by --storage"


def _address(path: Path, kept: str | None) -> str | None:
    if kept == SECRET:
        raise InputError(f"the address of the study of {path} has a password, and is not kept: give --storage again")
    return kept


def _written(storage: str | None) -> str | None:
    """What may be written down of an address: none with a password."""
    if storage is None:
        return None
    return SECRET if sqlalchemy.make_url(storage).password else storage


def about(plan: Plan) -> Iterator[str]:
    """What may be drawn, in some lines."""
    space = plan.space
    names: Mapping[str, list[str]] = {
        "networks": [network.name for network in space.networks],
        "solvers": list(space.methods),
        "gradients": [one if isinstance(one, str) else str(one["name"]) for one in space.derivatives],
        "controls": list(space.paths),
    }
    for what, among in names.items():
        yield f"{what}: {', '.join(among)}"
    pairs = sum(len(network.fitting) for network in space.networks)
    yield f"numbers: {', '.join(space.numbers)}; {pairs} pairings of network and solver work"
    asked = ", ".join(f"{one.name} ({'large' if one.larger else 'small'})" for one in plan.objectives)
    pruned = "trainings are ended early by the metric" if plan.prunes else "no training is ended early"
    limits = "".join(f", {name} at most {most:g}" for name, most in plan.at_most.items())
    yield f"objectives: {asked}{limits}; {plan.sampler} from seed {plan.seed}, {pruned}"
    if plan.repeats > 1:
        last = plan.first_seed + plan.repeats - 1
        yield f"each is trained {plan.repeats} times, from the seeds {plan.first_seed} to {last}, and has their mean"
