"""What a solver is: a value with a name, a one-step map, and what that map is known to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.registry import Registry
from solvers.base.state import components, packed
from solvers.errors import InputError, PairingError
from solvers.protocol import ControlPath, Time


@dataclass(frozen=True)
class Solver:
    """A one-step map of d state/dt = f(t, state, u(t)).

    Subclasses implement `step`; a method is then a value of such a class. Fields whose metadata says `option` are what
    a user may set by name (`solvers.get(name, **options)`).

    Attributes:
        name: the registered name.
        order: order of convergence on a smooth problem; of each path for a stochastic method.
        stages: right-hand-side (force) evaluations a step; of one attempted step for an adaptive solver.
        needs: structures of the field it cannot do without (see `solvers.protocol.STRUCTURES`).
        symplectic: preserves the symplectic form on a separable Hamiltonian field.
        reversible: has `unstep`, the inverse map, on a separable field (up to rounding).
    """

    name: str
    order: float
    stages: int
    needs: tuple[str, ...] = ()
    symplectic: bool = False
    reversible: bool = False

    family: ClassVar[str] = ""
    implicit: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    #: Each solve draws noise of its own (`driven`).
    stochastic: ClassVar[bool] = False
    #: `step` also takes the components as a tuple and then returns one, which spares the loop a copy at each step.
    split: ClassVar[bool] = False
    #: Every sample of a batch takes as many steps in an interval, whatever its own span asks for.
    alike: ClassVar[bool] = False

    def open(self, state: Tensor) -> Any:
        """The form in which a loop carries the state from step to step; `step` and `unstep` take it and give it."""
        return state.unbind(-2) if self.split else state

    def close(self, carried: Any) -> Tensor:
        """The state of a carried form."""
        return packed(carried)

    def position(self, carried: Any) -> Tensor:
        """The first component of a carried form."""
        return components(carried)[0]

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step of size `dt` from `state` at time `t`.

        Args:
            field: the right-hand side, f(t, state, u).
            t: time at the start of the step, a number or `(*batch, 1)`.
            dt: step size, a number or a tensor broadcasting against `(*batch, hidden)`; the field's `time_scale()`
                multiplies it.
            state: `(*batch, components, hidden)`.
            control: u at a time, `(*batch, channels)`.

        Returns:
            The state at t + dt, the shape of `state`.
        """
        raise PairingError(f"solver {self.name!r} defines no step: subclass Solver and implement step")

    def unstep(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """The state at `t` from the `state` at t + dt: the inverse of `step`, for reversible solvers."""
        raise PairingError(f"solver {self.name!r} has no inverse step: use a reversible solver such as stormer_verlet")

    def undoes(self, field: Any) -> bool:
        """Whether `unstep` works on this field."""
        return self.reversible

    def driven(self, paths: Sequence[ControlPath], clock: Clock) -> Sequence[ControlPath]:
        """What drives one solve: the path of u on each interval, with its noise where a method wants some."""
        return paths

    def branch(self, index: int) -> Solver:
        """The same method for one of several solves that must not share their noise, such as the layers of a stack."""
        return self

    def exact(self, field: Any) -> bool:
        """Whether a step on this field may be of any length, being as good over a long one as over a short one."""
        return False

    def paced(self, dt: float) -> Solver:
        """The same method in a network whose step has the length dt at a timespan of 1."""
        return self

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Names of the options a user may set."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("option"))

    @property
    def options(self) -> dict[str, Any]:
        """The options and their values."""
        return {name: getattr(self, name) for name in self.option_names()}

    def with_options(self, **options: Any) -> Solver:
        """The same method with other options."""
        if not options:
            return self
        wrong = sorted(set(options) - set(self.option_names()))
        if wrong:
            takes = ", ".join(self.option_names()) or "no options"
            raise InputError(f"solver {self.name!r} takes {takes}, not {', '.join(wrong)}: leave it out")
        return dataclasses.replace(self, **options)


class Paired:
    """Of a solver that carries a pair of states, both started from the state: the first one is the state."""

    def open(self, state: Tensor) -> Any:
        """The pair (state, state)."""
        return state, state

    def close(self, carried: Any) -> Tensor:
        """The first of the pair."""
        state: Tensor = carried[0] if isinstance(carried, tuple) else carried
        return state

    def position(self, carried: Any) -> Tensor:
        """Its first component."""
        return self.close(carried)[..., 0, :]


@dataclass(frozen=True)
class SolverInfo:
    """One row of `solvers.available()`."""

    name: str
    family: str
    order: float
    stages: int
    needs: tuple[str, ...]
    implicit: bool
    adaptive: bool
    symplectic: bool
    reversible: bool
    options: dict[str, Any]
    aliases: tuple[str, ...]


SOLVERS: Registry[Solver] = Registry("solver")


def register(solver: Solver, *aliases: str) -> Solver:
    """Make a solver known by its name."""
    return SOLVERS.add(solver.name, solver, aliases)


def get(solver: str | dict[str, Any] | Solver, **options: Any) -> Solver:
    """The solver of a name, with options: `get("dopri5", rtol=1e-8)`.

    Also takes a Solver value, or a mapping `{"name": ..., **options}` as configurations store it.

    Raises:
        UnknownNameError: no solver has that name.
        InputError: an option that the solver does not take, or a value it cannot have.
    """
    if isinstance(solver, Solver):
        return solver.with_options(**options)
    if isinstance(solver, dict):
        stored = dict(solver)
        return SOLVERS[stored.pop("name", "")].with_options(**{**stored, **options})
    return SOLVERS[solver].with_options(**options)


def spec(solver: Solver) -> str | dict[str, Any]:
    """What `get` turns back into this solver: its name, with the options that differ from the registered ones."""
    if solver.name not in SOLVERS:
        return solver.name
    standard = SOLVERS[solver.name].options
    changed = {key: value for key, value in solver.options.items() if standard.get(key) != value}
    return {"name": solver.name, **changed} if changed else solver.name


def available() -> list[SolverInfo]:
    """Every registered solver: name, family, order, stages, what it needs, symplectic, reversible, options."""
    return [
        SolverInfo(
            name=name,
            family=SOLVERS[name].family,
            order=SOLVERS[name].order,
            stages=SOLVERS[name].stages,
            needs=SOLVERS[name].needs,
            implicit=SOLVERS[name].implicit,
            adaptive=SOLVERS[name].adaptive,
            symplectic=SOLVERS[name].symplectic,
            reversible=SOLVERS[name].reversible,
            options=SOLVERS[name].options,
            aliases=SOLVERS.aliases(name),
        )
        for name in SOLVERS
    ]
