"""A network or a field under an input that is held: one flow, and one map of states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import solvers
from neuralosc.analysis import subject
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.sequence_model import SequenceModel
from solvers.base.drive import is_controlled
from solvers.errors import InputError
from solvers.protocol import describe, structure


@dataclass(frozen=True)
class Dynamics:
    """What moves a state while the input stays as it is.

    Attributes:
        field: the right-hand side, in float64.
        x: the input, `(1, features)` for all states or `(batch, features)`; None of a field that takes none.
        u: its current, likewise.
        solver: the method of the map; None of a field alone, which has a flow and no map.
        dt: the time that one application of the map takes.
        substeps: equal steps in it.
        rnn: the network that the field is of, if it is of one.
        layer: which of its layers.
    """

    field: Any
    x: Tensor | None
    u: Tensor | None
    solver: solvers.Solver | None
    dt: float
    substeps: int
    rnn: ContinuousRNN | None = None
    layer: int = 0

    @classmethod
    def of(
        cls,
        model: Any,
        states: Tensor,
        x: Tensor | None = None,
        solver: str | solvers.Solver | None = None,
        dt: float | None = None,
        substeps: int | None = None,
        layer: int | None = None,
    ) -> Dynamics:
        """Of a precise copy of a network, a model, or a field.

        Args:
            model: which.
            states: those that will be moved, `(batch, components, hidden)`.
            x: what goes into the field, `(features,)`, `(1, features)` or `(batch, features)`: the input as measured,
                of a later layer the output of the one before; zero when left out.
            solver, substeps: of the map; those of the network when left out.
            dt: the time of a map of a field; a network has its own.
            layer: which layer, of a network of several.

        Raises:
            InputError: there is no such dynamics, or shapes do not fit.
        """
        if states.dim() != 3 or not len(states) or not states.is_floating_point():
            raise InputError(f"states are {tuple(states.shape)}, expected (batch, components, hidden) of one at least")
        if not torch.isfinite(states).all():
            raise InputError("states have NaN or infinite entries, expected finite values")
        if isinstance(model, SequenceModel | RecurrentLayer):
            if dt is not None:
                raise InputError("dt was given with a network, which has its own: leave it out, or give substeps")
            made = cls._of_network(model, x, solver, substeps, layer, len(states))
        else:
            made = cls._of_field(model, x, solver, dt, substeps, len(states))
        shape = (getattr(made.field, "components", None), getattr(made.field, "hidden_size", None))
        if any(size is not None and size != given for size, given in zip(shape, states.shape[1:], strict=True)):
            raise InputError(f"states are {tuple(states.shape)}, expected (batch, {shape[0]}, {shape[1]})")
        if made.solver is not None and made.solver.stochastic:
            raise InputError(f"solver {made.solver.name!r} draws noise and is no one map: use a solver without noise")
        if getattr(made.field, "timed", False) or is_controlled(made.field):
            seen = "the derivative of its input" if is_controlled(made.field) else "the time"
            raise InputError(
                f"{describe(made.field)} looks at {seen}, so that a held input gives it no one flow or map"
            )
        return made

    @classmethod
    def _of_network(
        cls, model: Any, x: Tensor | None, solver: Any, substeps: int | None, layer: int | None, batch: int
    ) -> Dynamics:
        copy = subject.precise(model)
        rnn = subject.continuous(copy)
        if layer is None and rnn.num_layers > 1:
            raise InputError(f"this network has {rnn.num_layers} layers: give the layer that is meant, 0 for the first")
        index = subject.layer_of(rnn, layer or 0)
        if rnn.control.name != "hold":
            raise InputError(f"under control {rnn.control.name!r} a step depends on other samples: use control 'hold'")
        if solver is not None or substeps is not None:
            count = rnn.substeps if substeps is None else substeps
            rnn = rnn.with_solver(rnn.solver if solver is None else solver, substeps=count, gradient="backprop")
        field = rnn.layer(index)
        whole = copy if isinstance(copy, SequenceModel) and index == 0 else None
        tokens = whole is not None and whole.embedding is not None
        if tokens and x is None:
            raise InputError("x is left out, and the inputs of this model are tokens: give the one that is held")
        rows = _rows(x, 1 if tokens else field.input_size, batch)
        if whole is not None:
            with torch.no_grad():
                rows = whole.shown(rows.unsqueeze(1)).squeeze(1)
        return cls(field, rows, _current(field, rows), rnn.solver, rnn.dts[index], rnn.substeps, rnn, index)

    @classmethod
    def _of_field(
        cls, field: Any, x: Tensor | None, solver: Any, dt: float | None, substeps: int | None, batch: int
    ) -> Dynamics:
        if not callable(field):
            raise InputError(
                f"model is a {type(field).__name__}, expected a network, a model, or a field f(t, state, u)"
            )
        if (solver is None) != (dt is None):
            given = "solver" if dt is None else "dt"
            raise InputError(f"{given} was given alone: a field needs solver and dt for a map, or neither for its flow")
        if dt is not None and not 0 < dt < float("inf"):
            raise InputError(f"dt is {dt!r}, expected a positive number")
        own = subject.precise(field) if isinstance(field, nn.Module) else field
        size = getattr(own, "input_size", None)
        rows = None if x is None and size is None else _rows(x, size, batch)
        method = None if solver is None else solvers.get(solver)
        if method is not None:
            solvers.check(own, method)
        return cls(own, rows, _current(own, rows), method, dt or 0.0, substeps or 1)

    @property
    def name(self) -> str:
        """What moves the state, for sentences."""
        if self.solver is None:
            return describe(self.field)
        return f"{self.solver.name}" + (f" ({self.substeps} substeps)" if self.substeps > 1 else "")

    @property
    def h(self) -> float:
        """The step of a method with equal steps."""
        return self.dt / self.substeps

    @property
    def differential(self) -> bool:
        """Whether there is a flow: a closed form alone is a map and nothing more."""
        return "differential" in structure(self.field)

    @property
    def flow_why(self) -> str:
        """Why there is no flow whose states the map approximates; empty where there is one."""
        if not self.differential:
            return f"{describe(self.field)} is a map from sample to sample and has no flow"
        if "impulsive" in structure(self.field):
            return f"{describe(self.field)} jumps at samples, so that its steps are no flow"
        return ""

    def pick(self, rows: Tensor | slice) -> Dynamics:
        """Of the states at these places."""
        if self.x is None or len(self.x) == 1:
            return self
        u = self.u[rows] if self.u is not None else None
        return dataclasses.replace(self, x=self.x[rows], u=u)

    def expanded(self, batch: int) -> Tensor | None:
        """The current of each of so many states."""
        return self.u.expand(batch, *self.u.shape[1:]) if self.u is not None and len(self.u) == 1 else self.u

    def slope(self, states: Tensor) -> Tensor:
        """The field at states, its time scale included."""
        return solvers.slope(self.field, self.expanded(len(states)))(states)

    def slope_at(self, path: Tensor) -> Tensor:
        """The field at states `(batch, time, components, hidden)`, each sequence under its own input."""
        u = None if self.u is None or len(self.u) == 1 else self.u.repeat_interleave(path.shape[1], 0)
        moved = self if u is None else dataclasses.replace(self, u=u)
        slopes: Tensor = moved.slope(path.flatten(0, 1)).unflatten(0, path.shape[:2])
        return slopes

    def step(self, states: Tensor) -> Tensor:
        """The states after one interval, differentiable.

        Raises:
            NumericalError: the solver fails.
        """
        if self.rnn is not None and self.x is not None:
            x = self.x.expand(len(states), -1) if len(self.x) == 1 else self.x
            return self.rnn.transition(states, x, layer=self.layer)
        assert self.solver is not None
        u = self.expanded(len(states))
        return solvers.transition(self.field, self.solver, self.dt, u, substeps=self.substeps)(states)

    @torch.no_grad()
    def path(self, states: Tensor, steps: int) -> Tensor:
        """The states after each of so many intervals, `(batch, steps, components, hidden)`.

        Raises:
            NumericalError: the solver fails.
        """
        if self.rnn is not None and self.x is not None:
            x = self.x.unsqueeze(1).expand(len(states), steps, -1)
            return self.rnn.run_from(self.layer, x, states, None, gaps=False).states()
        assert self.solver is not None
        times = torch.arange(steps + 1, dtype=torch.float64) * self.dt
        u = self.expanded(len(states))
        return solvers.integrate(self.field, states, times, u, self.solver, substeps=self.substeps).states[:, 1:]

    def paths(self, states: Tensor, steps: int) -> Iterator[Tensor]:
        """`path`, piece by piece in time, as much at once as the memory may hold."""
        size = max(1, subject.STATE_BYTES // (8 * states.numel()))
        for done in range(0, steps, size):
            piece = self.path(states, min(size, steps - done))
            yield piece
            states = piece[:, -1]


def _rows(x: Tensor | None, size: int | None, batch: int) -> Tensor:
    if x is None:
        return torch.zeros(1, size or 0, dtype=torch.float64)
    rows = x.detach().double()
    rows = rows.unsqueeze(0) if rows.dim() == 1 else rows
    if rows.dim() != 2 or len(rows) not in (1, batch) or (size is not None and rows.shape[1] != size):
        raise InputError(f"x has shape {tuple(x.shape)}, expected ({size},), (1, {size}) or ({batch}, {size})")
    if not torch.isfinite(rows).all():
        raise InputError("x has NaN or infinite entries, expected an input that can be held")
    return rows


@torch.no_grad()
def _current(field: Any, rows: Tensor | None) -> Tensor | None:
    drive = getattr(field, "drive", None)
    if rows is None or drive is None:
        return rows
    current: Tensor = drive(rows.unsqueeze(1))[:, 0]
    return current
