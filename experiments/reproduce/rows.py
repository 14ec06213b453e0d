"""What is reproduced: a published figure, the settings of its runs, and the cells of its table."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.tasks.metrics import METRICS
from experiments.train import boosting
from experiments.train.config import RunConfig, read_yaml
from solvers.errors import InputError, unknown

FOLDER = Path(__file__).parent / "rows"


@dataclass(frozen=True)
class Published:
    """A figure that somebody published.

    Attributes:
        value: of the row's metric.
        deviation: over the runs, None where none was given.
        what: of which network, by whom.
        curve: the validation metric after epochs.
    """

    value: float
    what: str
    deviation: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One entry of the table of a row: some runs that differ in their seed.

    Attributes:
        labels: of its place on each axis of the table.
        config: of its runs, but for the seed and the folder of the data.
        stages: of trainings that come before, each from the weights of the one before.
    """

    labels: tuple[str, ...]
    config: RunConfig
    stages: tuple[RunConfig, ...] = ()

    @property
    def name(self) -> str:
        """The labels in one line; "all" where the table has no axes."""
        return ", ".join(self.labels) or "all"

    @property
    def network(self) -> bool:
        """Whether it is of a network, and not of `boosting`."""
        return self.config.model != boosting.NAME


@dataclass(frozen=True)
class Group:
    """Cells of which one figure is told.

    Attributes:
        labels: of their place on the axes that are not averaged over.
        cells: one, or all that differ in their place on the averaged axis alone.
    """

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """The labels in one line; "all" where the table has no other axes."""
        return ", ".join(self.labels) or "all"

    @property
    def network(self) -> bool:
        """Whether it is of a network."""
        return all(cell.network for cell in self.cells)


@dataclass(frozen=True)
class Row:
    """Something published that one command runs again.

    Attributes:
        name: what it is called, the name of its file.
        title: what is measured, in a line.
        source: who published it.
        config: settings of all its runs, as in a configuration file.
        metric: the figure that is compared, on the test set.
        seeds: one run of every cell for each.
        axes: of the table: by the name of an axis its labels, and the settings that each one stands for. A dot leads
            into options: "model_options.dt". `model: boosting` stands for `boosting`, which has settings of its own.
        published: figures to compare with.
        reach: what is to be reached by the best cell, None where nothing was set.
        stages: settings, put into those of a cell, of trainings that come before its own: every one begins with the
            weights that the one before kept, and so does the last, which alone is compared.
        over: the axis over which the mean is what counts, such as divisions of the data; empty where every cell stands
            for itself.
        note: what a reader has to know.
    """

    name: str
    title: str
    source: str
    config: Mapping[str, Any]
    metric: str
    seeds: tuple[int, ...] = (0,)
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    reach: float | None = None
    stages: tuple[Mapping[str, Any], ...] = ()
    over: str = ""
    note: str = ""

    def groups(self, epochs: int | None = None) -> list[Group]:
        """The cells that one figure is told of, the mean over `over`; each cell by itself where that is empty."""
        place = list(self.axes).index(self.over) if self.over else len(self.axes)
        found: dict[tuple[str, ...], list[Cell]] = {}
        for cell in self.cells(epochs):
            found.setdefault((*cell.labels[:place], *cell.labels[place + 1 :]), []).append(cell)
        return [Group(labels, tuple(cells)) for labels, cells in found.items()]

    def cells(self, epochs: int | None = None) -> list[Cell]:
        """The cells of the table, the last axis running fastest; with another number of epochs where one is given.

        Stages that come before keep their own number of epochs, where they say one.

        Raises:
            InputError: settings that are none.
        """
        cells = []
        for chosen in itertools.product(*(axis.items() for axis in self.axes.values())):
            values = dict(self.config)
            for settings in (*(each for _, each in chosen), {} if epochs is None else {"epochs": epochs}):
                values = _with(values, settings)
            labels = tuple(f"{label} (no network)" if _boosts(each) else label for label, each in chosen)
            stages = tuple(RunConfig.from_dict(_with(values, settings)) for settings in self.stages)
            cells.append(Cell(labels, RunConfig.from_dict(values), stages))
        return cells


def names() -> list[str]:
    """The rows there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def row(name: str) -> Row:
    """A row by its name.

    Raises:
        UnknownNameError: there is none; the message lists the nearest.
        InputError: its file holds something that is no row.
    """
    if name not in names():
        raise unknown("row", name, names())
    path = FOLDER / f"{name}.yaml"
    values = read_yaml(path)
    known = [entry.name for entry in dataclasses.fields(Row)[1:]]
    for key in values:
        if key not in known:
            raise InputError(f"{path}: {unknown('key of a row', key, known)}")
    lacking = [key for key in ("title", "source", "config", "metric") if key not in values]
    if lacking:
        raise InputError(f"{path} has no {lacking[0]}: expected title, source, config and metric")
    values["seeds"] = tuple(values.get("seeds", (0,)))
    values["stages"] = tuple(values.get("stages", ()))
    values["published"] = tuple(Published(**entry) for entry in values.get("published", ()))
    made = Row(name=name, **values)
    if made.metric not in METRICS:
        raise InputError(f"{path}: {unknown('metric', made.metric, METRICS)}")
    if made.over and made.over not in made.axes:
        raise InputError(f"{path}: {unknown('axis (over)', made.over, made.axes)}")
    _check_boosting(path, made)
    made.cells()
    return made


def _boosts(settings: Mapping[str, Any]) -> bool:
    return settings.get("model") == boosting.NAME


def _check_boosting(path: Path, made: Row) -> None:
    """Refuse settings that it does not have, beside those of networks that it does not look at.

    Raises:
        InputError: a label gives it some, or it is no label of an axis.
    """
    if _boosts(made.config):
        raise InputError(f"{path}: config has model {boosting.NAME}: name it on an axis, beside networks")
    for axis in made.axes.values():
        for label, settings in axis.items():
            strange = [key for key in settings if key != "model" and key.partition(".")[0] not in boosting.OF_CONFIG]
            if _boosts(settings) and strange:
                raise InputError(
                    f"{path}: {label!r} gives {boosting.NAME} {strange[0]}: expected model and any of "
                    f"{', '.join(boosting.OF_CONFIG)}"
                )


def _with(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some settings put into it."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key, value in settings.items():
        section, _, inner = key.partition(".")
        if inner:
            result[section] = {**(result.get(section) or {}), inner: value}
        else:
            result[key] = value
    return result
