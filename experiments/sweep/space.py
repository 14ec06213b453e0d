"""The generator of a sweep: from a point of the unit cube to the configuration of a run.

A few numbers between 0 and 1 say which network, solver, gradient and control, how long its steps are, and what its
coefficients are. After Ru, Esperanca & Carlucci, Neural architecture generator optimization, NeurIPS 2020, where a few
continuous numbers are searched instead of a list of architectures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

import neuralosc
import solvers
from experiments.train import networks
from experiments.train.config import RunConfig
from neuralosc.named.cards import STANDARD
from solvers.errors import InputError, PairingError, unknown
from solvers.protocol import structure

#: What a network was published with is multiplied by a number from 1 / SPREAD to SPREAD.
SPREAD = 10.0
#: What no network was published with lies between these.
RANGES: dict[str, tuple[float, float]] = {"hidden_size": (16.0, 256.0), "lr": (1e-3, 1e-1)}
#: Controls that are drawn where nobody says which.
CONTROLS = ("hold", "linear")

#: Every network has these, and so has every drawn one its own.
COMMON = ("dt", *RANGES)

# Sizes of the field that is asked what it works with.
_SIZES = (2, 4)


@dataclass(frozen=True)
class Network:
    """A network that may be drawn.

    Attributes:
        name: of a model, or of a vector field of one's own.
        takes: its hyperparameters with what they were published with.
        field: a small one of its kind, to be asked what works with it.
        fitting: solvers that work with it, in the order of the space, each with the gradients that do then.
        controls: those that work with it.
    """

    name: str
    takes: Mapping[str, Any]
    field: Any
    fitting: Mapping[str, tuple[Any, ...]]
    controls: tuple[str, ...]

    @property
    def coefficients(self) -> dict[str, float]:
        """The hyperparameters that are positive numbers, as published; dt is none of them."""
        skipped = (*STANDARD, *COMMON)
        return {k: v for k, v in self.takes.items() if k not in skipped and isinstance(v, float) and v > 0}


@dataclass(frozen=True)
class Space:
    """The configurations that may be drawn.

    Attributes:
        settings: what is fixed, as in a configuration file of `train`; everything else is drawn or a default.
        models: names of networks; those with a field where none are given, or the one that is fixed.
        solvers: names; where none are given all that have fixed steps, no noise and no Newton iteration.
        gradients: names; backprop where none are given.
        controls: names; those of `CONTROLS` where none are given.
        ranges: of a number by name the lowest and the highest value, in place of what the generator does.

    Raises:
        InputError: names that there are not, a setting that no network takes, something that is fixed and to be drawn,
            or a network with which nothing works.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen = (("solver", self.solvers), ("gradient", self.gradients), ("control", self.controls))
        for key, names in (("model", self.models), *chosen):
            fixed = self._fixed_network if key == "model" else self._options.get(key)
            if names and fixed is not None:
                raise InputError(f"--{key} fixes it to {fixed!r}, and --{key}s names some to draw: give one of them")
        self._check_settings()
        self._check_ranges()
        if not self.numbers:
            raise InputError("nothing is left to draw: every number of the networks is fixed")

    @property
    def _options(self) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self.settings.get("model_options") or {}
        return options

    @property
    def _fixed_network(self) -> str | None:
        return self.settings.get("field") or self.settings.get("model") or None

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """The networks, alike ones beside each other: by components of the state, then by what the field declares."""
        fixed = self._fixed_network
        names = [fixed] if fixed else list(dict.fromkeys(self.models)) or _with_fields()
        found = [self._network(name) for name in names]
        if not self.models and not fixed:
            # Of those that nobody named the ones that work with none of these solvers are left out.
            found = [network for network in found if network.fitting]
        for network in found:
            if not network.fitting:
                able = ", ".join(solvers.compatible(network.field)[:8])
                raise InputError(
                    f"{network.name!r} works with none of the solvers, gradients and controls that may be drawn: leave "
                    f"it out of --models, or give one of {able} to --solvers"
                )
        return tuple(sorted(found, key=lambda network: _kind(network.field)))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The solvers, by what a step costs: fixed steps first, then implicit ones, then by evaluations and order."""
        fixed = self._options.get("solver")
        names = [fixed] if fixed else self.solvers or [name for name in solvers.SOLVERS if _usual(name)]
        return tuple(dict.fromkeys(sorted((solvers.get(name).name for name in names), key=_cost)))

    @cached_property
    def derivatives(self) -> tuple[Any, ...]:
        """The gradients, in the order in which they are registered; a fixed one may have options."""
        fixed = self._options.get("gradient")
        return (fixed,) if fixed else _ordered("gradient", self.gradients or ("backprop",), solvers.GRADIENTS)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The controls, in the order in which they are registered, smoother ones later."""
        fixed = self._options.get("control")
        return _ordered("control", (fixed,) if fixed else self.controls or CONTROLS, solvers.CONTROLS)

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        """The coefficients that some network has and that are not fixed."""
        names = dict.fromkeys(name for network in self.networks for name in network.coefficients)
        return tuple(name for name in names if name not in self._options)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """What is drawn, each a number between 0 and 1."""
        options = (
            ("model", self.networks),
            ("solver", self.methods),
            ("gradient", self.derivatives),
            ("control", self.paths),
        )
        choices = [name for name, among in options if len(among) > 1]
        fixed = {*self.settings, *self._options}
        return (*choices, *(name for name in COMMON if name not in fixed), *self.coefficients)

    def config(self, point: Mapping[str, float]) -> RunConfig:
        """The configuration at a point: of each of `numbers` a value between 0 and 1.

        Raises:
            InputError: a value that the configuration cannot have.
        """
        network = self.networks[_place(self.networks, point.get("model", 0.0))]
        solver = _nearest(self.methods, tuple(network.fitting), point.get("solver", 0.0))
        options: dict[str, Any] = {k: v for k, v in self._options.items() if k in ("hidden_size", *network.takes)}
        options["solver"] = solver
        options["gradient"] = _nearest(self.derivatives, network.fitting[solver], point.get("gradient", 0.0))
        options["control"] = _nearest(self.paths, network.controls, point.get("control", 0.0))
        drawn = {"dt": float(network.takes["dt"]), **network.coefficients} if "dt" in network.takes else {}
        for name in ("hidden_size", *drawn):
            if name in self.numbers:
                options[name] = self.value(name, point[name], drawn.get(name))
        values = {key: value for key, value in self.settings.items() if key not in ("model", "field")}
        role = "field" if self.settings.get("field") else "model"
        if "lr" in self.numbers:
            values["lr"] = self.value("lr", point["lr"])
        takes = solvers.get(solver).option_names()
        given = self.settings.get("solver_options") or {}
        values |= {role: network.name, "model_options": options}
        values["solver_options"] = {key: value for key, value in given.items() if key in takes}
        return RunConfig.from_dict(values)

    def value(self, name: str, at: float, published: float | None = None) -> float | int:
        """What a number between 0 and 1 stands for, to six digits.

        Args:
            name: of the number.
            at: it.
            published: what the network was published with.

        With a range `low (high / low)^at`. Else the published value times `SPREAD^(2 at - 1)`, which is the published
        one at 1/2; of a coefficient below 1, which may be a share, its odds v / (1 - v) are multiplied.
        """
        ranged = self.ranges.get(name, RANGES.get(name))
        if ranged is not None:
            low, high = ranged
            found = low * (high / low) ** at
            return round(found) if name == "hidden_size" else _digits(found)
        assert published is not None
        factor = SPREAD ** (2 * at - 1)
        if name == "dt" or published >= 1:
            return _digits(published * factor)
        odds = published / (1 - published) * factor
        return _digits(odds / (1 + odds))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, of which `from_dict` makes it again."""
        names = {key: list(getattr(self, key)) for key in ("models", "solvers", "gradients", "controls")}
        return {"settings": dict(self.settings), **names, "ranges": {k: list(v) for k, v in self.ranges.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Space:
        """The space of plain values.

        Raises:
            InputError: as for the class.
        """
        names = {key: tuple(values[key]) for key in ("models", "solvers", "gradients", "controls")}
        ranges = {key: (float(low), float(high)) for key, (low, high) in values["ranges"].items()}
        return cls(values["settings"], **names, ranges=ranges)

    def _network(self, name: str) -> Network:
        own = bool(self.settings.get("field"))
        about = networks.card(RunConfig(field=name) if own else RunConfig(model=name))
        if about.field is None or about.blocks:
            raise InputError(f"model {name!r} has no solver to be drawn: leave it out, and train it by itself")
        takes = {key: value for key, value in about.defaults.items() if key != "hidden_size"}
        known = {k: v for k, v in self._options.items() if k in takes and k not in ("solver", "gradient", "control")}
        config = RunConfig(model="" if own else name, field=name if own else "", model_options=known)
        with torch.random.fork_rng(devices=[]):
            made = networks.make(config, _SIZES[0], {**known, "hidden_size": _SIZES[1]})
        assert isinstance(made, neuralosc.ContinuousRNN)
        one = made.fields[0]
        controls = tuple(path for path in self.paths if _works(one, made.solver, control=path))
        fitting = {}
        for solver in self.methods:
            able = tuple(kind for kind in self.derivatives if _works(one, solvers.get(solver), gradient=kind))
            if able and controls:
                fitting[solver] = able
        return Network(name, takes, one, fitting, controls)

    def _check_settings(self) -> None:
        """Refuse what no network, or no solver, takes: it would be left out without a word."""
        # What is wrong by itself is refused once, and not at every point.
        top = {k: v for k, v in self.settings.items() if k not in ("model_options", "solver_options")}
        RunConfig.from_dict(top)
        for name in self._options:
            if name != "hidden_size" and not any(name in network.takes for network in self.networks):
                takes = sorted({key for network in self.networks for key in network.takes})
                raise unknown("setting of these networks", name, ["hidden_size", *takes])
        for name in self.settings.get("solver_options") or {}:
            options = {key for solver in self.methods for key in solvers.get(solver).option_names()}
            if name not in options:
                raise unknown("option of these solvers", name, options)

    def _check_ranges(self) -> None:
        for name, (low, high) in self.ranges.items():
            known = [number for number in self.numbers if number not in ("model", "solver", "gradient", "control")]
            if name not in known:
                raise unknown("number to draw", name, known)
            least = 1.0 if name == "hidden_size" else 0.0
            if not (least <= low < high < math.inf and low > 0):
                raise InputError(f"--range {name}={low:g}:{high:g}: expected two positive numbers, the lower one first")


def _with_fields() -> list[str]:
    return [card.name for card in neuralosc.models() if card.field is not None and not card.blocks]


def _usual(name: str) -> bool:
    """Whether a solver is drawn where nobody says which: what iterates, or chooses its steps, takes much longer."""
    solver = solvers.get(name)
    return not (solver.adaptive or solver.stochastic or solver.family == "implicit")


def _cost(name: str) -> tuple[Any, ...]:
    solver = solvers.get(name)
    return solver.adaptive, solver.implicit, solver.stages, solver.order, name


def _kind(one: Any) -> tuple[Any, ...]:
    declared = sorted(structure(one))
    return one.components, len(declared), declared


def _ordered(kind: str, names: Sequence[str], registry: Any) -> tuple[str, ...]:
    for name in names:
        if name not in registry:
            raise unknown(kind, name, registry)
    return tuple(name for name in registry if name in names)


def _works(one: Any, solver: solvers.Solver, gradient: Any = None, control: str | None = None) -> bool:
    try:
        solvers.check(
            one,
            solver,
            None if gradient is None else solvers.get_gradient(gradient),
            None if control is None else solvers.get_control(control),
        )
    except PairingError:
        return False
    return True


def _place(options: Sequence[Any], at: float) -> int:
    """The interval of [0, 1], divided into one for each option, in which a number lies."""
    return min(int(at * len(options)), len(options) - 1)


def _nearest(options: Sequence[Any], fitting: Sequence[Any], at: float) -> Any:
    """The option at a number; where that does not fit the nearest one that does, the earlier of two."""
    place = _place(options, at)
    return min(fitting, key=lambda one: (abs(options.index(one) - place), options.index(one)))


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
