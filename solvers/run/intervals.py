"""A one-call solve through the loop, interval by interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.driver import Status
from solvers.base.clock import Clock
from solvers.base.counted import Tally
from solvers.base.gradient import Gradient
from solvers.base.solver import Solver
from solvers.base.substeps import Division, divide, step_counts
from solvers.base.values import host
from solvers.errors import NumericalError
from solvers.run.sampled import Segments
from solvers.run.solve import solve_paths


@dataclass(frozen=True)
class StepPlan:
    """The steps of each interval: as many for each sample as its own span asks for.

    Attributes:
        segments: the intervals.
        counts: equal steps in each interval, `(count,)` or `(batch, count)`.
        dtype: that of the state.
    """

    segments: Segments
    counts: np.ndarray
    dtype: torch.dtype

    @classmethod
    def of(
        cls, segments: Segments, substeps: int, longest: float | None, dtype: torch.dtype, alike: bool = False
    ) -> StepPlan:
        """At least `substeps` in each interval, and no step longer than `longest`; see `step_counts`."""
        spans = host(segments.bounds.detach().diff(dim=-1)).astype(np.float64)
        counts = step_counts(spans, substeps, longest, torch.float64, alike)
        return cls(segments, counts, dtype)

    def steps(self, reached: np.ndarray) -> np.ndarray:
        """Steps of each sample, in the intervals it `reached` the end of and that are not empty."""
        nonempty = host(self.segments.bounds.detach().diff(dim=-1)) != 0
        steps: np.ndarray = np.where(nonempty & reached, self.counts, 0).sum(-1)
        return steps

    def divided(self) -> Division:
        """The intervals cut into their steps."""
        columns = list(self.segments.columns(self.dtype))
        starts, spans = zip(*columns, strict=True) if columns else ((), ())
        return divide(Clock(starts, spans), self.segments.paths, self.counts)


def by_intervals(
    field: Any, solver: Solver, gradient: Gradient, plan: StepPlan, state: Tensor, throw: bool
) -> tuple[Tensor, Tally, list[Status]]:
    """The states at the bounds of the segments `(batch, bounds, components, hidden)`, what they cost and the statuses.

    Without `throw` a sample that fails is stopped before the interval in which it does, and the batch starts again.
    """
    division = plan.divided()
    clock = division.clock
    status, stops = [Status.SUCCESS] * len(state), np.full(len(state), len(clock))
    while True:
        tally = Tally(len(state))
        stopped = clock if (stops == len(clock)).all() else _stopped(clock, stops, state)
        try:
            trajectory = solve_paths(
                field, solver, gradient, division.paths, stopped, state, division.substeps, jumps=False, tally=tally
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
                return _nothing(state, plan.segments.count + 1), tally, status
    after = [division.ends(trajectory.states())] if len(clock) else []
    states = torch.cat((state.unsqueeze(1), *after), 1)
    marks = np.arange(1, len(clock) + 1) if division.marks is None else division.marks
    marks = np.broadcast_to(marks, (len(state), marks.shape[-1]))
    reached = np.pad(marks, ((0, 0), (1, 0))) <= stops[:, None]
    if not reached.all():
        states = torch.where(torch.from_numpy(reached).to(state.device)[..., None, None], states, torch.nan)
    if not tally.entered:
        tally.enter(plan.steps(reached[:, 1:]), 0, trajectory.evaluations)
    return states, tally, status


def _nothing(state: Tensor, count: int) -> Tensor:
    states = state.new_full((len(state), count, *state.shape[1:]), torch.nan)
    return torch.cat((state.unsqueeze(1), states[:, 1:]), 1)


def _stopped(clock: Clock, stops: np.ndarray, state: Tensor) -> Clock:
    """The clock with no time passing for a sample from the interval at which it stops."""
    last = torch.from_numpy(stops).to(state.device).unsqueeze(-1)
    spans = tuple(torch.where(last > i, torch.as_tensor(dt).to(state), 0.0) for i, dt in enumerate(clock.spans))
    return Clock(clock.starts, spans)
