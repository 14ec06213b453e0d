"""Methods for fields in position q and velocity p: semi-implicit (symplectic) Euler and Störmer-Verlet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from solvers.errors import PairingError
from solvers.protocol import ControlPath, Time, axpy, components, describe, increment, packed, structure
from solvers.solver import Solver, register

Parts = tuple[Tensor, Tensor]
S = TypeVar("S", Tensor, tuple[Tensor, ...])


@dataclass(frozen=True)
class Partitioned(Solver):
    """A method that moves position and velocity in turn."""

    family: ClassVar[str] = "symplectic"
    split: ClassVar[bool] = True

    def step(self, field: Any, t: Time, dt: Time, state: S, control: ControlPath) -> S:
        """One step; see `Solver.step`."""
        q, p = components(state)
        return _like(state, self.move(field, t, dt, q, p, control))

    def unstep(self, field: Any, t: Time, dt: Time, state: S, control: ControlPath) -> S:
        """The step taken back; see `Solver.unstep`.

        Raises:
            PairingError: the field is not separable (up to damping, where the method solves that exactly).
        """
        if not structure(field) & self.undone_on:
            kinds = " or ".join(sorted(self.undone_on))
            raise PairingError(
                f"solver {self.name!r} can only be undone on a {kinds} field, which {describe(field)} does not "
                "declare: keep the states (gradient 'backprop')"
            )
        q, p = components(state)
        return _like(state, self.move_back(field, t, dt, q, p, control))

    undone_on: ClassVar[frozenset[str]] = frozenset({"separable"})

    def move(self, field: Any, t: Time, dt: Time, q: Tensor, p: Tensor, control: ControlPath) -> Parts:
        """The new position and velocity."""
        raise PairingError(f"solver {self.name!r} defines no move")

    def move_back(self, field: Any, t: Time, dt: Time, q: Tensor, p: Tensor, control: ControlPath) -> Parts:
        """The old position and velocity."""
        raise PairingError(f"solver {self.name!r} defines no move_back")


def _like(state: S, parts: Parts) -> S:
    """The new components in the form of the old state."""
    return parts if isinstance(state, tuple) else packed(parts)


@dataclass(frozen=True)
class SemiImplicitEuler(Partitioned):
    """Kick, then drift with the new velocity; symplectic Euler on a separable Hamiltonian field.

        p+ = p + dt force(t, q, p, u(t))
        q+ = q + dt velocity(t, q, p+, u(t))

    The step of the published coRNN and UnICORNN code.
    """

    def move(self, field: Any, t: Time, dt: Time, q: Tensor, p: Tensor, control: ControlPath) -> Parts:
        """Kick, drift."""
        h, u = increment(field, dt), control(t)
        p = axpy(p, h, field.force(t, q, p, u))
        return axpy(q, h, field.velocity(t, q, p, u)), p

    def move_back(self, field: Any, t: Time, dt: Time, q: Tensor, p: Tensor, control: ControlPath) -> Parts:
        """The drift, then the kick, taken back."""
        h, u = increment(field, dt), control(t)
        q = axpy(q, -h, field.velocity(t, q, p, u))
        return q, axpy(p, -h, field.force(t, q, p, u))


@dataclass(frozen=True)
class StormerVerlet(Partitioned):
    """Half a kick, a drift, half a kick: Störmer-Verlet, or its order-2 extension where the field is not separable.

    On a separable field the kick p' = force(q) and the drift q' = velocity(p) are solved exactly, the map is
    symplectic on a Hamiltonian one and its own inverse under dt -> -dt. Linear damping -damping() p is split off and
    solved exactly, exp(-dt damping / 2) at both ends (conformal symplectic). Where the rest of the force sees p, or
    the velocity sees q, each part is solved by a midpoint step, which keeps order 2 and the explicit form.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration, I.1.4 and II.5; damping as in Bhatt, Floyd,
    Moore, J. Sci. Comput. 66 (2016).
    """

    undone_on: ClassVar[frozenset[str]] = frozenset({"separable", "conformal"})

    def move(self, field: Any, t: Time, dt: Time, q: Tensor, p: Tensor, control: ControlPath) -> Parts:
        """Half a kick, a drift, half a kick, inside two halves of the damping."""
        h, exact = increment(field, dt), bool(structure(field) & self.undone_on)
        half, end = h / 2, t + dt
        p = _damp(field, half, p)
        p = _kick(field, t, half, q, p, control(t), exact)
        q = _drift(field, t + dt / 2, h, q, p, control, exact)
        p = _kick(field, end, half, q, p, control(end), exact)
        return q, _damp(field, half, p)

    def move_back(self, field: Any, t: Time, dt: Time, q: Tensor, p: Tensor, control: ControlPath) -> Parts:
        """The step of -dt from t + dt: the method is symmetric."""
        return self.move(field, t + dt, -dt, q, p, control)


def _damping(field: Any) -> Any:
    damping = getattr(field, "damping", None)
    return None if damping is None else damping()


def _damp(field: Any, h: Time, p: Tensor) -> Tensor:
    """The exact flow of p' = -damping p."""
    damping = _damping(field)
    return p if damping is None else p * torch.exp(-torch.as_tensor(h * damping, dtype=p.dtype, device=p.device))


def _kick(field: Any, t: Time, h: Time, q: Tensor, p: Tensor, u: Any, exact: bool) -> Tensor:
    """The flow of p' = force(q, p) + damping p at fixed q: exact if the slope does not see p, else a midpoint step."""
    damping = _damping(field)

    def slope(p: Tensor) -> Tensor:
        force: Tensor = field.force(t, q, p, u)
        return force if damping is None else force + damping * p

    return axpy(p, h, slope(p) if exact else slope(axpy(p, h / 2, slope(p))))


def _drift(field: Any, t: Time, h: Time, q: Tensor, p: Tensor, control: ControlPath, exact: bool) -> Tensor:
    """The flow of q' = velocity(q, p) at fixed p, likewise."""
    u = control(t)

    def slope(q: Tensor) -> Tensor:
        velocity: Tensor = field.velocity(t, q, p, u)
        return velocity

    return axpy(q, h, slope(q) if exact else slope(axpy(q, h / 2, slope(q))))


register(
    SemiImplicitEuler("semi_implicit_euler", 1, 1, needs=("partitioned",), symplectic=True, reversible=True),
    "symplectic_euler",
)
register(StormerVerlet("stormer_verlet", 2, 2, needs=("partitioned",), symplectic=True, reversible=True))
