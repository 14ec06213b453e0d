"""Compositions of drifts and kicks, for fields in position q and velocity p: one stepper, each method a splitting.

A drift is the flow of q' = velocity at fixed p and lets the time pass; a kick is the flow of p' = force at fixed q and
at a fixed time. Where both are exact the map is symplectic on a separable Hamiltonian field, whatever the step.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from solvers.base.solver import Solver, register
from solvers.base.state import axpy, components, increment, packed
from solvers.errors import PairingError
from solvers.methods.explicit import BOSH3, EULER, MIDPOINT, RK4, stepped
from solvers.methods.exponential import transported
from solvers.numerics.phi import phis
from solvers.numerics.tableau import ButcherTableau, Splitting
from solvers.protocol import ControlPath, Time, describe, structure

S = TypeVar("S", Tensor, tuple[Tensor, ...])

#: The Runge-Kutta method that stands in for a flow without closed form, by the order it has to keep.
SUBSTITUTES = {1: EULER, 2: MIDPOINT, 3: BOSH3, 4: RK4}


class Flows:
    """The exact flows of drift and kick during one step, on a conformal field.

    At fixed q the kick p' = F - G p, G the damping and F the force without it, is solved exactly:

        p+ = exp(-G h) p + h phi_1(-G h) F

    so that a composition keeps its order, and multiplies the symplectic form by exp(-G h).

    Source: McLachlan & Quispel, What kinds of dynamics are there?, Nonlinearity 14 (2001), on conformal flows; Bhatt,
    Floyd, Moore, Second order conformal symplectic schemes, J. Sci. Comput. 66 (2016).
    """

    def __init__(self, field: Any, t: Time, dt: Time, control: ControlPath) -> None:
        self.field, self.t, self.dt, self.control = field, t, dt, control
        self.h = increment(field, dt)
        damping = getattr(field, "damping", None)
        self.damping: Any = None if damping is None else damping()
        self._decays: dict[float, tuple[Any, Any]] = {}

    def at(self, passed: float) -> Time:
        """The time when a fraction of the step has passed."""
        return self.t + passed * self.dt if passed else self.t

    def increment(self, fraction: float) -> Time:
        """The increment of a move that takes a fraction of the step."""
        return self.h if fraction == 1 else fraction * self.h

    def decay(self, fraction: float) -> tuple[Any, Any]:
        """exp(-G h) and h phi_1(-G h) of a move; computed once for moves of the same size."""
        if fraction not in self._decays:
            h = self.increment(fraction)
            exponential, phi = _exponential_and_phi(-self.damping * h)
            self._decays[fraction] = exponential, h * phi
        return self._decays[fraction]

    def undamped_force(self, passed: float, q: Tensor, p: Tensor) -> Tensor:
        """F(q): the force at p = 0 where there is damping, since F = force + G p would cancel."""
        at = self.at(passed)
        force: Tensor = self.field.force(at, q, p if self.damping is None else torch.zeros_like(p), self.control(at))
        return force

    def kick(self, fraction: float, before: float, after: float, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The kick of a fraction of the step."""
        force = self.undamped_force(before, q, p)
        if self.damping is None:
            return q, axpy(p, self.increment(fraction), force)
        exponential, h = self.decay(fraction)
        return q, axpy(exponential * p, h, force)

    def drift(self, fraction: float, before: float, after: float, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The drift of a fraction of the step, from the time `before` to the time `after`."""
        at = self.at((before + after) / 2)
        return axpy(q, self.increment(fraction), self.field.velocity(at, q, p, self.control(at))), p


def _exponential_and_phi(z: Any) -> tuple[Any, Any]:
    """exp(z) and phi_1(z) = (exp(z) - 1) / z, of a number or a tensor."""
    if isinstance(z, Tensor):
        exponential, phi = phis(z, 1)
        return exponential, phi
    if z > 700:
        # math.exp raises where a tensor becomes infinite.
        return math.inf, math.inf
    return math.exp(z), math.expm1(z) / z if z else 1.0


class NewtonianFlows(Flows):
    """The exact flows where q' = p, with the damping in the drift q' = p, p' = -G p, which is linear.

    The kick depends on q alone then and the drift is linear in p, so that [kick, [kick, [kick, drift]]] = 0.
    """

    def kick(self, fraction: float, before: float, after: float, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The kick of a fraction of the step."""
        return q, axpy(p, self.increment(fraction), self.undamped_force(before, q, p))

    def drift(self, fraction: float, before: float, after: float, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The damped drift: q+ = q + h phi_1(-G h) p, p+ = exp(-G h) p."""
        if self.damping is None:
            return axpy(q, self.increment(fraction), p), p
        exponential, h = self.decay(fraction)
        return q + h * p, exponential * p


class SubstituteFlows(Flows):
    """The flows by a Runge-Kutta method, on any partitioned field; a damping that is declared is exact still."""

    def __init__(self, field: Any, t: Time, dt: Time, control: ControlPath, tableau: ButcherTableau) -> None:
        super().__init__(field, t, dt, control)
        self.tableau = tableau

    def kick(self, fraction: float, before: float, after: float, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The kick of a fraction of the step."""
        at, h = self.at(before), self.increment(fraction)
        u = self.control(at)
        if self.damping is None:
            return q, stepped(self.tableau, lambda c, p: self.field.force(at, q, p, u), h, p)

        def slope(c: float, p: Tensor) -> Tensor:
            undamped: Tensor = self.field.force(at, q, p, u) + self.damping * p
            return undamped

        return q, transported(self.tableau, slope, lambda c, p: self.decay(c * fraction)[0] * p, h, p)

    def drift(self, fraction: float, before: float, after: float, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The drift of a fraction of the step."""

        def slope(c: float, q: Tensor) -> Tensor:
            at = self.at(before + c * fraction)
            velocity: Tensor = self.field.velocity(at, q, p, self.control(at))
            return velocity

        return stepped(self.tableau, slope, self.increment(fraction), q), p


class PublishedFlows(Flows):
    """Euler steps with everything at the start of the step, damping included: what the published codes do.

    A kick multiplies p by 1 - G h, and cannot be undone where that is zero.
    """

    @functools.cached_property
    def u(self) -> Any:
        """The input of both moves."""
        return self.control(self.t)

    def kick(self, fraction: float, before: float, after: float, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The whole kick, or with a negative fraction what undoes it."""
        h = self.increment(fraction)
        if fraction > 0 or self.damping is None:
            return q, axpy(p, h, self.field.force(self.t, q, p, self.u))
        return q, axpy(p, h, self.undamped_force(0.0, q, p)) / (1 + h * self.damping)

    def drift(self, fraction: float, before: float, after: float, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """The whole drift."""
        return axpy(q, self.increment(fraction), self.field.velocity(self.t, q, p, self.u)), p


@dataclass(frozen=True)
class Composition(Solver):
    """Drifts and kicks in turn, each for its fraction of the step.

    On a conformal field (separable up to linear damping) they are exact: see `Flows`. Where the velocity sees q or the
    force sees p otherwise, each is a step of a Runge-Kutta method of the same order. `stages` counts the kicks.

    Attributes:
        splitting: the fractions.
        published: take each move as an Euler step, damping included.
    """

    splitting: Splitting | None = None
    published: bool = False

    family: ClassVar[str] = "symplectic"
    split: ClassVar[bool] = True

    def step(self, field: Any, t: Time, dt: Time, state: S, control: ControlPath) -> S:
        """One step; see `Solver.step`."""
        assert self.splitting is not None
        flows, (q, p) = self.flows(field, t, dt, control), components(state)
        for kind, fraction, before, after in self.splitting.moves:
            q, p = (flows.kick if kind == "kick" else flows.drift)(fraction, before, after, q, p)
        return _like(state, (q, p))

    def unstep(self, field: Any, t: Time, dt: Time, state: S, control: ControlPath) -> S:
        """The step taken back, move by move; see `Solver.unstep`.

        Raises:
            PairingError: the field is not separable up to linear damping.
        """
        assert self.splitting is not None
        if not self.undoes(field):
            raise PairingError(
                f"solver {self.name!r} can only be undone on a separable or conformal field, which {describe(field)} "
                "does not declare: keep the states (gradient 'backprop')"
            )
        flows, (q, p) = self.flows(field, t, dt, control), components(state)
        for kind, fraction, before, after in reversed(self.splitting.moves):
            q, p = (flows.kick if kind == "kick" else flows.drift)(-fraction, after, before, q, p)
        return _like(state, (q, p))

    def undoes(self, field: Any) -> bool:
        """Whether `unstep` works on this field."""
        return self.reversible and "conformal" in structure(field)

    def flows(self, field: Any, t: Time, dt: Time, control: ControlPath) -> Flows:
        """How drifts and kicks are taken on this field."""
        assert self.splitting is not None
        if self.published:
            return PublishedFlows(field, t, dt, control)
        if self.splitting.newtonian:
            return NewtonianFlows(field, t, dt, control)
        if "conformal" in structure(field):
            return Flows(field, t, dt, control)
        return SubstituteFlows(field, t, dt, control, SUBSTITUTES[min(int(self.order), 4)])


def _like(state: S, parts: tuple[Tensor, Tensor]) -> S:
    """The new components in the form of the old state."""
    return parts if isinstance(state, tuple) else packed(parts)


def composition(name: str, splitting: Splitting, needs: str = "partitioned", published: bool = False) -> Composition:
    """A method from its splitting; `solvers.register` makes it known by name."""
    stages = sum(1 for kick in splitting.kicks if kick)
    return Composition(name, splitting.order, stages, (needs,), True, True, splitting=splitting, published=published)


def verlets(order: int, *half: float) -> Splitting:
    """Steps of Störmer-Verlet (drift first) one after the other: `half` of their sizes, outermost first.

    The sizes read the same backwards and sum to 1; the one in the middle is what is left.
    """
    sizes = (*half, 1 - 2 * math.fsum(half), *reversed(half))
    inner = tuple((a + b) / 2 for a, b in itertools.pairwise(sizes))
    return Splitting((sizes[0] / 2, *inner, sizes[-1] / 2), sizes, order, symmetric=True)


KICK_DRIFT = Splitting((1.0,), (1.0,), order=1, kick_first=True)
DRIFT_KICK = Splitting((1.0,), (1.0,), order=1)
STORMER_VERLET = Splitting((1.0,), (1 / 2, 1 / 2), order=2, kick_first=True, symmetric=True)
# Ruth, IEEE Trans. Nucl. Sci. 30 (1983).
RUTH3 = Splitting((2 / 3, -2 / 3, 1.0), (7 / 24, 3 / 4, -1 / 24), order=3, kick_first=True)
# Forest & Ruth, Physica D 43 (1990); Yoshida, Phys. Lett. A 150 (1990), eq. 2.11.
FOREST_RUTH = verlets(4, 1 / (2 - 2 ** (1 / 3)))
# McLachlan & Atela, The accuracy of symplectic integrators, Nonlinearity 5 (1992), table 2: four stages, order 4 for a
# kinetic energy quadratic in p.
MCLACHLAN_ATELA4 = Splitting(
    (0.5153528374311229364, -0.085782019412973646, 0.4415830236164665242, 0.1288461583653841854),
    (0.1344961992774310892, -0.2248198030794208058, 0.7563200005156682911, 0.3340036032863214255),
    order=4,
    kick_first=True,
    newtonian=True,
)


def _pefrl() -> Splitting:
    # Omelyan, Mryglod, Folk, Comput. Phys. Commun. 146 (2002), eq. 20-22: position-extended Forest-Ruth-like.
    xi, scale, chi = 0.1786178958448091, -0.2123418310626054, -0.6626458266981849e-1
    kick = (1 - 2 * scale) / 2
    return Splitting((xi, chi, 1 - 2 * (chi + xi), chi, xi), (kick, scale, scale, kick), order=4, symmetric=True)


# Yoshida, Construction of higher order symplectic integrators, Phys. Lett. A 150 (1990): solution A of table 1 and
# solution D of table 2, printed there to 15 digits, here carried to 25 by Newton's method on the order conditions.
YOSHIDA6 = verlets(6, 0.7845136104775572638194976, 0.2355732133593581336847932, -1.177679984178871006946416)
YOSHIDA8 = verlets(
    8,
    0.9148442462297915667487935,
    0.253693336566211354146146,
    -1.444852236860605157694731,
    -0.1582406353680501752040668,
    1.938139137622525986579186,
    -1.960610232975310807607633,
    0.1027998493917964406981151,
)

register(composition("semi_implicit_euler", KICK_DRIFT, published=True), "symplectic_euler")
register(composition("symplectic_euler_dk", DRIFT_KICK))
register(composition("stormer_verlet", STORMER_VERLET))
register(composition("position_verlet", verlets(2)))
register(composition("ruth3", RUTH3))
register(composition("forest_ruth", FOREST_RUTH), "yoshida4")
register(composition("mclachlan_atela4", MCLACHLAN_ATELA4, needs="newtonian"))
register(composition("pefrl", _pefrl()))
register(composition("yoshida6", YOSHIDA6, needs="conformal"))
register(composition("yoshida8", YOSHIDA8, needs="conformal"))
