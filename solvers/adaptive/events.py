"""Events: where a scalar function of time and state crosses zero, for each sample of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.batch import Array, Round, Rows
from solvers.base.values import exact
from solvers.errors import InputError
from solvers.protocol import check_arguments

#: Units in the last place of a time within which a crossing is where the solve starts.
START = 32
#: Parts of a step at whose ends the sign of an event function is looked at.
PARTS = 4


@dataclass(frozen=True)
class Event:
    """A zero crossing of g(t, state).

    Attributes:
        function: g, from times `(batch,)` and states `(batch, components, hidden)` to `(batch,)`; samples that have
            arrived are left out of the batch.
        direction: 1 for crossings from below, -1 from above, 0 for both. What starts at zero has not crossed it, nor
            has what is there to the rounding of the time, as after a stop at this event.
        terminal: stop the sample there; otherwise record the crossing and go on.

    A pair of crossings closer to each other than a quarter of a step can be missed: bound the step with `max_dt`.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    direction: int = 0
    terminal: bool = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"the function of an event is {self.function!r}, expected a callable g(t, state)")
        check_arguments("the function of an event", self.function, ("t", "state"))
        if isinstance(self.direction, bool) or self.direction not in (-1, 0, 1):
            raise InputError(f"the direction of an event is {self.direction!r}, expected -1, 0 or 1")
        if not isinstance(self.terminal, bool):
            raise InputError(f"terminal of an event is {self.terminal!r}, expected True or False")

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        """G at times `(batch, 1)`, checked."""
        value = self.function(time.squeeze(-1), state)
        if not isinstance(value, Tensor) or value.shape != state.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"an event function gave {got} for states of shape {tuple(state.shape)}, expected one number per "
                f"sample, {tuple(state.shape[:1])}: take the entry that should cross zero, such as state[:, 0, 0]"
            )
        return value

    def crossed(self, before: Array, after: Array) -> Array:
        """Where the sign has changed in the wanted direction."""
        rising, falling = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
        crossed: Array = {1: rising, -1: falling, 0: rising | falling}[self.direction]
        return crossed


@dataclass(frozen=True)
class Occurrences:
    """The crossings of one event, in the order in which each sample met them; NaN where there are fewer.

    Both are differentiable: a crossing moves with the state by the implicit-function theorem, to its third derivative.
    Where g does not move with the time at the crossing, as a sign, there is no derivative, and asking for it is an
    error.

    Attributes:
        time: `(batch, k)`, k the largest number of crossings of any sample and at least 1, in the precision of the
            times.
        state: the states there, `(batch, k, components, hidden)`.
    """

    time: Tensor
    state: Tensor

    @property
    def count(self) -> Tensor:
        """Crossings of each sample, `(batch,)`."""
        return (~self.time.isnan()).sum(1)


@dataclass(frozen=True)
class _Crossing:
    """Crossings of one event in one part of the steps of a round: rows of the round, and fractions of the step."""

    event: int
    rows: Array
    theta: Array


class EventWatch:
    """Looks for the crossings of `events` inside the steps of the per-sample driver.

    Args:
        events: what to look for.
        samples: size of the batch.
        dtype: of the states that the functions get, and of the times.
        late: give the functions their times in the precision of the clock.
    """

    def __init__(self, events: Sequence[Event], samples: int, dtype: torch.dtype, late: bool = False) -> None:
        self.events, self.samples, self.dtype, self.late = events, samples, dtype, late
        self.values = np.zeros((len(events), samples))
        self.fresh = np.ones(samples, dtype=bool)
        self.found: list[list[tuple[Array, Tensor, Tensor]]] = [[] for _ in events]

    @torch.no_grad()
    def enter(self, rows: Rows, x: Tensor, ids: Array) -> None:
        """Note the signs at the start of an interval."""
        for i, event in enumerate(self.events):
            self.values[i, ids] = _host(self._asked(event, rows.t[:, :1], x))

    def _asked(self, event: Event, time: Tensor, state: Tensor) -> Tensor:
        """G at times `(batch, 1)`, in the types that it knows."""
        return event(time if self.late else time.to(self.dtype), state.to(self.dtype))

    def look(self, round_: Round) -> tuple[Array, Array, Tensor] | None:
        """Record the crossings of a round; the rows that stop, the fractions of their steps, and their states."""
        crossings = [crossing for i in range(len(self.events)) for crossing in self._crossings(i, round_)]
        self.fresh[round_.ids[round_.taken]] = False
        stop = np.full(len(round_.ids), np.inf)
        for crossing in crossings:
            if self.events[crossing.event].terminal:
                stop[crossing.rows] = np.minimum(stop[crossing.rows], crossing.theta)
        stopped: list[tuple[Array, Array, Tensor]] = []
        for crossing in crossings:
            keep = crossing.theta <= stop[crossing.rows]
            if not keep.any():
                continue
            rows, theta = crossing.rows[keep], crossing.theta[keep]
            time, state = self._differentiable(crossing.event, round_, rows, theta)
            self.found[crossing.event].append((round_.ids[rows], time, state))
            if self.events[crossing.event].terminal:
                stopped.append((rows, theta, state))
        return _first_of_each(stopped) if stopped else None

    @torch.no_grad()
    def _crossings(self, i: int, round_: Round) -> list[_Crossing]:
        """Bracket the sign changes of event `i` between the parts of the steps, and find them."""
        event, which = self.events[i], _asked(round_)
        ends = np.arange(PARTS + 1) / PARTS
        values = [self.values[i, round_.ids[which]]]
        values += [self._value(event, round_, which, np.full(len(which), theta)) for theta in ends[1:]]
        self.values[i, round_.ids[which]] = np.where(round_.taken[which], values[-1], values[0])
        crossings = []
        for low, high, before, after in zip(ends[:-1], ends[1:], values[:-1], values[1:], strict=True):
            hit = event.crossed(before, after) & round_.taken[which]
            if not hit.any():
                continue
            asked = which[hit] if round_.solver.compact else which
            wanted = hit[hit] if round_.solver.compact else hit
            bracket = (before[hit], after[hit]) if round_.solver.compact else (before, after)

            def value(theta: Array, asked: Array = asked) -> Array:
                return self._value(event, round_, asked, theta)

            roots = find_roots(value, np.full(len(asked), low), np.full(len(asked), high), *bracket, wanted)
            rows, theta = asked[wanted], roots[wanted]
            away = ~self._at_start(round_, rows, theta)
            crossings.append(_Crossing(i, rows[away], theta[away]))
        return crossings

    def _at_start(self, round_: Round, rows: Array, theta: Array) -> Array:
        """Which crossings are where the solve starts, to the rounding of the time."""
        fresh: Array = np.logical_and(self.fresh[round_.ids[rows]], round_.s[rows] == 0)
        if not fresh.any():
            return fresh
        t, dt = (_host(x[:, 0])[rows] for x in (round_.rows.t, round_.rows.dt))
        unit = torch.finfo(self.dtype).eps * np.maximum(np.abs(t), np.abs(t + dt))
        at_start: Array = np.logical_and(fresh, theta * round_.ds[rows] * np.abs(dt) <= START * unit)
        return at_start

    def _value(self, event: Event, round_: Round, which: Array, theta: Array) -> Array:
        at = round_.numbers(theta)
        return _host(self._asked(event, round_.time(which, at)[:, :1], round_.state(which, at)))

    def _differentiable(self, i: int, round_: Round, rows: Array, theta: Array) -> tuple[Tensor, Tensor]:
        """Times `(points,)` and states of crossings, as functions of whatever moves them.

        theta(p) solves g(p, theta) = 0: steps of Newton's method from the root, recorded, with a value of zero. From
        one that is right to the order n in p, a step leads to one that is right to 2 n + 1.
        """
        at = round_.numbers(theta)
        if torch.is_grad_enabled():
            state, value = round_.state(rows, at), self._value_at(i, round_, rows, at)
            mover = next((x for x in (state, value, round_.rows.t, round_.rows.dt) if x.requires_grad), None)
            if mover is not None:
                for _ in range(2):
                    at = self._newton(i, round_, rows, at, mover)
        return round_.time(rows, at)[:, 0], round_.state(rows, at)

    def _newton(self, i: int, round_: Round, rows: Array, at: Tensor, mover: Tensor) -> Tensor:
        """The next iterate from fractions `at` of the steps of rows; `mover` is one of the tensors it depends on."""
        at = at if at.requires_grad else at.requires_grad_(True)
        value, rates = self._value_at(i, round_, rows, at), torch.zeros_like(at)
        if value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), at, create_graph=True, allow_unused=True)
            rates = rates if found is None else found
        fixed = (rates == 0) | ~rates.isfinite()
        moved: Tensor = at - (value - value.detach()) / torch.where(fixed, 1.0, rates)
        if not bool(fixed.any()):
            return moved
        held: Tensor = _Held.apply(at.detach(), mover)  # type: ignore[no-untyped-call]
        return torch.where(fixed, held, moved)

    def _value_at(self, i: int, round_: Round, rows: Array, at: Tensor) -> Tensor:
        """Of event `i` at fractions of the steps of rows, as a recorded function of them."""
        which = rows if round_.solver.compact else np.arange(len(round_.ids))
        here = torch.from_numpy(np.searchsorted(which, rows)).to(at.device)
        full = at.new_zeros(len(which)).index_copy(0, here, at)
        value = self._asked(self.events[i], round_.time(which, full)[:, :1], round_.state(which, full))
        return value.index_select(0, here)

    def collect(self, like: Tensor) -> tuple[Occurrences, ...]:
        """What was recorded, for states like `like`."""
        return tuple(self._gather(records, like) for records in self.found)

    def _gather(self, records: list[tuple[Array, Tensor, Tensor]], like: Tensor) -> Occurrences:
        ids = np.concatenate([ids for ids, _, _ in records]) if records else np.zeros(0, np.int64)
        # The place of each crossing among those of its sample: rounds come in the order of time.
        order = np.argsort(ids, kind="stable")
        starts = np.searchsorted(ids[order], ids[order])
        place = np.empty(len(ids), np.int64)
        place[order] = np.arange(len(ids)) - starts
        count = max(1, int(place.max(initial=-1)) + 1)
        clock = records[0][1].dtype if records else exact(like.device, like.dtype)
        time = like.new_full((self.samples * count,), torch.nan, dtype=clock)
        state = like.new_full((self.samples * count, *like.shape[1:]), torch.nan)
        if records:
            places = torch.from_numpy(ids * count + place).to(like.device)
            time = time.index_copy(0, places, torch.cat([time for _, time, _ in records]))
            state = state.index_copy(0, places, torch.cat([state for _, _, state in records]).to(like.dtype))
        shape = (self.samples, count)
        return Occurrences(time.unflatten(0, shape), state.unflatten(0, shape))


class _Held(torch.autograd.Function):
    """Fractions at which an event is found, but with which it does not move: they have no derivative."""

    @staticmethod
    def forward(ctx: Any, at: Tensor, mover: Tensor) -> Tensor:
        """The fractions."""
        return at.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        """Nothing, if nothing is asked."""
        if bool((grad != 0).any()):
            raise InputError(
                "the time or state of an event was differentiated where its function has no slope in time, such as a "
                "sign or a comparison: let it give the number that crosses zero"
            )
        return None, None


def _host(value: Tensor) -> Array:
    host: Array = value.detach().cpu().double().numpy()
    return host


def _asked(round_: Round) -> Array:
    """The rows to evaluate an event function for: those that moved, or all where the batch must stay whole."""
    rows: Array = round_.taken.nonzero()[0] if round_.solver.compact else np.arange(len(round_.ids))
    return rows


def _first_of_each(stopped: list[tuple[Array, Array, Tensor]]) -> tuple[Array, Array, Tensor]:
    """One stop for each row, where several events stop it at the same time."""
    rows, theta = (np.concatenate([stop[i] for stop in stopped]) for i in (0, 1))
    unique, first = np.unique(rows, return_index=True)
    states = torch.cat([state for _, _, state in stopped])
    return unique, theta[first], states.index_select(0, torch.from_numpy(first).to(states.device))


def find_roots(
    function: Callable[[Array], Array], low: Array, high: Array, at_low: Array, at_high: Array, wanted: Array
) -> Array:
    """Zeros of functions of one number each, bracketed by a change of sign, to rounding.

    Inverse quadratic interpolation where it is safe, bisection elsewhere; all brackets advance together.

    Args:
        function: the values at one point of each bracket.
        low, high, at_low, at_high: the brackets and the values there.
        wanted: brackets to look into; the others are left alone.

    Source: Chandrupatla, A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function
    without using derivatives, Adv. Eng. Software 28 (1997).
    """
    x1, x2, f1, f2 = high, low, at_high, at_low
    t, best = np.full(len(low), 0.5), high
    active = wanted & (at_high != 0)
    for _ in range(100):
        if not active.any():
            break
        x = x1 + t * (x2 - x1)
        f = function(x)
        same = np.sign(f) == np.sign(f1)
        x3, f3 = np.where(same, x1, x2), np.where(same, f1, f2)
        x2, f2 = np.where(same, x2, x1), np.where(same, f2, f1)
        x1, f1 = x, f
        best = np.where(active, np.where(np.abs(f1) < np.abs(f2), x1, x2), best)
        with np.errstate(all="ignore"):
            tolerance = 2 * np.finfo(np.float64).eps / np.abs(x2 - x1)
            active = active & (tolerance < 0.5) & (f1 != 0) & (f2 != 0)
            xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
            safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
            quadratic = f1 / (f2 - f1) * f3 / (f2 - f3) + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
            t = np.where(safe & np.isfinite(quadratic), quadratic, 0.5)
            t = np.clip(t, np.minimum(tolerance, 0.5), np.maximum(1 - tolerance, 0.5))
    return best
