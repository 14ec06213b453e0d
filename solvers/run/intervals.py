"""A one-call solve through the loop, interval by interval, and through one call of torchdiffeq."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor

from solvers.adaptive.controller import Tally
from solvers.adaptive.driver import Status
from solvers.adaptive.native import Native
from solvers.adaptive.shared import Adaptive, _Watched, worst_sample
from solvers.base.clock import Clock
from solvers.base.gradient import Gradient
from solvers.base.solver import Solver
from solvers.base.state import increment, over_state
from solvers.base.substeps import Division, divide, step_counts
from solvers.errors import NumericalError
from solvers.methods.stochastic import Stochastic
from solvers.protocol import ControlPath, Time
from solvers.run.sampled import Pieces
from solvers.run.solve import Trajectory, solve_paths


@dataclass(frozen=True)
class BookedNative(Solver):
    """A native method that enters what it did in a book."""

    inner: Native | None = None
    book: list[Tally] = field(default_factory=list, compare=False)

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """The step of the method; see `Solver.step`."""
        assert self.inner is not None
        end, tally = self.inner.run(field, t, dt, state, control)
        self.book.append(tally)
        return end

    def forget(self) -> None:
        """Empty the book."""
        self.book.clear()


@dataclass(frozen=True)
class BookedAdaptive(Adaptive):
    """A method of torchdiffeq that enters accepted and rejected steps in a book."""

    book: list[int] = field(default_factory=lambda: [0, 0], compare=False)

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """The step of the method; see `Solver.step`."""
        if not state.numel():
            return state
        return self.along(field, t, dt, state, control, torch.tensor([0.0, 1.0], dtype=state.dtype))[-1]

    def forget(self) -> None:
        """Empty the book."""
        self.book[:] = [0, 0]

    def along(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath, fractions: Tensor) -> Tensor:
        """The states at increasing fractions of an interval, from its start, in one call: `(fractions, *state)`."""
        h = over_state(increment(field, dt))

        def slope(s: Tensor, x: Tensor) -> Tensor:
            at = t + s * dt
            scaled: Tensor = h * field(at, x, control(at))
            return scaled

        grid = fractions.to(state)
        options = {"norm": worst_sample, "step_t": grid[-1:].detach()}
        states: Tensor = torchdiffeq.odeint(
            _Booking(slope, self), state, grid, rtol=self.rtol, atol=self.atol, method=self.name, options=options
        )
        return states


class _Booking(_Watched):
    """Counts the steps of torchdiffeq's driver."""

    def callback_accept_step(self, s: Tensor, x: Any, ds: Tensor) -> None:
        """Called by the driver."""
        self.tolerances.book[0] += 1  # type: ignore[attr-defined]

    def callback_reject_step(self, s: Tensor, x: Any, ds: Tensor) -> None:
        """Called by the driver."""
        self.tolerances.book[1] += 1  # type: ignore[attr-defined]


def booked(solver: Solver) -> Solver:
    """The solver with a book, if it is adaptive."""
    if isinstance(solver, Native):
        return BookedNative(solver.name, solver.order, solver.stages, inner=solver)
    if isinstance(solver, Adaptive):
        return BookedAdaptive(solver.name, solver.order, solver.stages, **solver.options)
    if isinstance(solver, Stochastic) and solver.adaptive:
        return dataclasses.replace(solver, book=[0, 0])
    return solver


@dataclass(frozen=True)
class Plan:
    """The steps of each interval: as many for each sample as its own span asks for.

    Attributes:
        pieces: the intervals.
        counts: equal steps in each interval, `(count,)` or `(batch, count)`.
        dtype: that of the state.
    """

    pieces: Pieces
    counts: np.ndarray
    dtype: torch.dtype

    @classmethod
    def of(cls, pieces: Pieces, substeps: int, longest: float | None, dtype: torch.dtype, alike: bool = False) -> Plan:
        """At least `substeps` in each interval, and no step longer than `longest`; see `step_counts`."""
        spans = pieces.bounds.detach().diff(dim=-1).cpu().double().numpy()
        counts = step_counts(spans, substeps, longest, torch.float64, alike)
        return cls(pieces, counts, dtype)

    def steps(self, reached: np.ndarray | None = None) -> np.ndarray:
        """Steps of each sample (or of every one), in the intervals it `reached` the end of and that are not empty."""
        taken = self.pieces.bounds.detach().diff(dim=-1).cpu().numpy() != 0
        steps: np.ndarray = np.where(taken if reached is None else taken & reached, self.counts, 0).sum(-1)
        return steps

    def divided(self) -> Division:
        """The intervals cut into their steps."""
        columns = list(self.pieces.columns(self.dtype))
        starts, spans = zip(*columns, strict=True) if columns else ((), ())
        return divide(Clock(starts, spans), self.pieces.paths, self.counts)


def by_intervals(
    field: Any, solver: Solver, gradient: Gradient, plan: Plan, state: Tensor, throw: bool
) -> tuple[Tensor, Trajectory, list[Status]]:
    """The states at the bounds of the pieces `(batch, bounds, components, hidden)`, the trajectory and the statuses.

    Without `throw` a sample that fails is stopped before the interval in which it does, and the batch starts again.
    """
    division = plan.divided()
    clock, marks = division.clock, division.marks
    status, stops = [Status.SUCCESS] * len(state), np.full(len(state), len(clock))
    while True:
        if isinstance(solver, BookedNative | BookedAdaptive):
            solver.forget()
        stopped = clock if (stops == len(clock)).all() else _stopped(clock, stops, state)
        try:
            trajectory = solve_paths(
                field, solver, gradient, division.paths, stopped, state, division.substeps, jumps=False
            )
            break
        except NumericalError as error:
            if throw:
                raise
            failed = range(len(state)) if error.sample is None else [error.sample]
            for sample in failed:
                status[sample] = Status.of(error) if status[sample] == Status.SUCCESS else status[sample]
                # A slope that is not finite where the sample was stopped spoils it even there: stop one earlier.
                stops[sample] = min(error.step or 0, stops[sample] - 1)
            if (stops < 0).any():
                # Not even standing still works for this sample, so the batch cannot be stepped at all.
                status = [Status.of(error) if one == Status.SUCCESS else one for one in status]
                return _nothing(state, len(marks) + 1), Trajectory(solver, [], 0), status
    states = torch.stack([state, *(solver.close(trajectory.steps[mark - 1]) for mark in marks)], 1)
    reached = np.array([0, *marks])[None] <= stops[:, None]
    if not reached.all():
        states = torch.where(torch.from_numpy(reached).to(state.device)[..., None, None], states, torch.nan)
    return states, trajectory, status


def _nothing(state: Tensor, count: int) -> Tensor:
    states = state.new_full((len(state), count, *state.shape[1:]), torch.nan)
    return torch.cat((state.unsqueeze(1), states[:, 1:]), 1)


def _stopped(clock: Clock, stops: np.ndarray, state: Tensor) -> Clock:
    """The clock with no time passing for a sample from the interval at which it stops."""
    last = torch.from_numpy(stops).to(state.device).unsqueeze(-1)
    spans = tuple(torch.where(last > i, torch.as_tensor(dt).to(state), 0.0) for i, dt in enumerate(clock.spans))
    return Clock(clock.starts, spans)
