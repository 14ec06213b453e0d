"""One step as a map of states, with its derivatives; and the derivative of a field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.base.solver import Solver
from solvers.base.state import increment, over_state
from solvers.errors import InputError
from solvers.protocol import Time, bind, describe
from solvers.run.integrate import integrate


@dataclass(frozen=True)
class Transition:
    """A map from states `(batch, components, hidden)` to states, each sample by itself, and its derivatives.

    They are those of the map as it is computed, by backward passes: under an implicit method those of the equations it
    solves. States are flattened to n = components * hidden numbers, the components one after the other.

    Attributes:
        map: the map.
        name: what it is, for messages.
    """

    map: Callable[[Tensor], Tensor]
    name: str = "the map"

    def __call__(self, state: Tensor) -> Tensor:
        """The state after the map."""
        return self.map(state)

    @torch.enable_grad()
    def jacobian(self, state: Tensor) -> Tensor:
        """The derivative at each sample: `(batch, n, n)`, entry i, j that of number i after by number j before.

        n backward passes, each for the whole batch.
        """
        before, after = self._recorded(state)
        flat, rows = after.flatten(1), []
        for i in range(flat.shape[1]):
            rows.append(_gradient(flat[:, i].sum(), before).flatten(1))
        return torch.stack(rows, 1)

    @torch.enable_grad()
    def vjp(self, state: Tensor, covector: Tensor) -> Tensor:
        """w^T J of each sample, `covector` and result in the shape of the state."""
        before, after = self._recorded(state)
        _same("covector", covector, after)
        return _gradient((after * covector).sum(), before)

    def jvp(self, state: Tensor, vector: Tensor) -> Tensor:
        """J v of each sample, `vector` and result in the shape of the state.

        By two backward passes, since w^T J is linear in w and its derivative by w, times v, is J v.
        """
        _same("vector", vector, state)
        before, after = self._recorded(state)
        weight = torch.zeros_like(after, requires_grad=True)
        with torch.enable_grad():
            pulled = _gradient((after * weight).sum(), before, create_graph=True)
            return _gradient((pulled * vector).sum(), weight) if pulled.requires_grad else torch.zeros_like(after)

    def _recorded(self, state: Tensor) -> tuple[Tensor, Tensor]:
        if state.dim() != 3:
            raise InputError(f"state of shape {tuple(state.shape)}: expected (batch, components, hidden)")
        with torch.enable_grad():
            before = state.detach().clone().requires_grad_()
            after = self.map(before)
        if after.shape != state.shape:
            raise InputError(f"{self.name} takes {tuple(state.shape)} to {tuple(after.shape)}: expected the same shape")
        return before, after


def transition(
    field: Any, solver: str | Solver, dt: float | Tensor, u: Any = None, t: float = 0.0, substeps: int = 1
) -> Transition:
    """What a solver makes of a state over a timespan, as a map with derivatives.

    A method that chooses its steps, or carries more than the state, starts anew.

    Args:
        field: the field.
        solver: the method, or its name.
        dt: the timespan, a number or `(batch,)`.
        u: the input that is held meanwhile, `(batch, channels)`, or a function of time.
        t: the time at the start.
        substeps: equal steps that it is divided into.

    Raises:
        PairingError: the solver does not fit the field (when the map is called).
    """

    def step(state: Tensor) -> Tensor:
        span = torch.as_tensor(dt, dtype=torch.float64, device=state.device)
        times = torch.stack((torch.full_like(span, t), t + span), -1)
        return integrate(field, state, times, control=u, method=solver, substeps=substeps).states[:, -1]

    return Transition(step, f"a step of {solver if isinstance(solver, str) else solver.name}")


def slope(field: Any, u: Any = None, t: Time = 0.0) -> Transition:
    """A field as a map from a state to its slope, its `time_scale()` included: what solvers integrate.

    Args:
        field: the field.
        u: the input, `(batch, channels)`, or None.
        t: the time.
    """

    def right_hand_side(state: Tensor) -> Tensor:
        bound = bind(field)
        value: Tensor = over_state(increment(bound, 1.0)) * bound(t, state, u)
        return value

    return Transition(right_hand_side, f"the slope of {describe(field)}")


def _gradient(value: Tensor, of: Tensor, create_graph: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(of)
    (found,) = torch.autograd.grad(value, of, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(of) if found is None else found


def _same(name: str, value: Tensor, state: Tensor) -> None:
    if value.shape != state.shape:
        raise InputError(f"{name} of shape {tuple(value.shape)}: expected that of the state, {tuple(state.shape)}")
