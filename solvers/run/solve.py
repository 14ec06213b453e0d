"""The loop: one solver stepped over every interval of a sampled input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.control import Control, Paths
from solvers.base.counted import Converted, Counted, Tally
from solvers.base.drive import driven
from solvers.base.gradient import Gradient
from solvers.base.loop import Loop
from solvers.base.pairing import check, check_steps
from solvers.base.solver import Solver
from solvers.base.substeps import Division, bounded
from solvers.base.values import finite, non_finite_sample
from solvers.compiled.passes.states import States
from solvers.errors import NonFiniteStateError, NumericalError
from solvers.methods.impulsive import Impulsive
from solvers.protocol import ControlPath, bind, structure
from solvers.run import backend
from solvers.run.record import PLAIN, Record
from solvers.run.trust import trusted


@dataclass(frozen=True)
class Trajectory:
    """The states of a solve.

    Attributes:
        solver: what made them.
        steps: the state after each entry of the clock of `division`, in the form the solver carries it.
        division: the intervals, cut into steps where these were bounded.
        evaluations: right-hand-side evaluations, each for the whole batch.
        record: which path computed them, and why.
    """

    solver: Solver
    steps: Sequence[Any]
    division: Division
    evaluations: int
    record: Record = PLAIN

    def states(self) -> Tensor:
        """The state after each interval, `(batch, time, components, hidden)`."""
        if isinstance(self.steps, States):
            return self.division.ends(self.steps.states())
        return self.division.ends(torch.stack([self.solver.close(carried) for carried in self.steps], dim=1))

    def positions(self) -> Tensor:
        """The first component after each interval, `(batch, time, hidden)`."""
        if isinstance(self.steps, States):
            return self.division.ends(self.steps.positions())
        # Stacked time first, so that each step is one contiguous block, and seen batch first.
        stacked = torch.stack([self.solver.position(carried) for carried in self.steps])
        return self.division.ends(stacked.transpose(0, 1))

    def end(self) -> Tensor:
        """The state after the last interval, `(batch, components, hidden)`."""
        return self.solver.close(self.steps[-1])


def solve(
    field: Any,
    solver: Solver,
    gradient: Gradient,
    control: Control,
    clock: Clock,
    samples: Sequence[Tensor],
    state: Tensor,
    substeps: int = 1,
    max_dt: float | None = None,
    positions_only: bool = False,
    jumps: bool = True,
) -> Trajectory:
    """Step `field` from `state` over the intervals of `clock`, driven by the input currents `samples`.

    Args:
        field: right-hand side with the structure that `solver` needs.
        solver, gradient, control: values from their registries.
        clock: intervals; interval i ends at sample i. For a controlled field no time passes in the first one.
        samples: input current at each sample, `(batch, channels)` each.
        state: `(batch, components, hidden)` at the start of the first interval.
        substeps: equal steps per interval.
        max_dt: the longest step: a sample whose span is longer takes more, equal steps.
        positions_only: the trajectory will be asked for its positions and its end alone, so that nothing else need
            be kept of it; a gradient that saves memory may then do without the rest.
        jumps: the intervals end at samples, at which the state of an impulsive field jumps.

    Raises:
        PairingError: the field lacks what the solver needs.
        NumericalError: the state became non-finite, or an adaptive solver gave up.
    """
    check(field, solver, gradient, control)
    paths, clock = driven(field, control, samples, clock)
    return _stepped(field, solver, gradient, paths, clock, state, substeps, max_dt, positions_only, jumps)


def solve_paths(
    field: Any,
    solver: Solver,
    gradient: Gradient,
    paths: Sequence[ControlPath],
    clock: Clock,
    state: Tensor,
    substeps: int = 1,
    max_dt: float | None = None,
    positions_only: bool = False,
    jumps: bool = True,
    tally: Tally | None = None,
) -> Trajectory:
    """Like `solve`, where the path of what the field is given is there already, on each interval.

    A method that chooses its steps enters them in the `tally`.
    """
    check(field, solver, gradient)
    return _stepped(field, solver, gradient, paths, clock, state, substeps, max_dt, positions_only, jumps, tally)


def _stepped(
    field: Any,
    solver: Solver,
    gradient: Gradient,
    paths: Sequence[ControlPath],
    clock: Clock,
    state: Tensor,
    substeps: int,
    max_dt: float | None,
    positions_only: bool,
    jumps: bool,
    tally: Tally | None = None,
) -> Trajectory:
    check_steps(field, substeps, max_dt)
    trusted(field, solver, paths, clock, state)
    counted = Counted(bind(field))
    finer = clock.finer(state.dtype)
    if finer or not clock.tensors:
        late = clock.late(state.dtype)
        counted = Converted(counted.field, state.dtype, late) if finer or late else counted
    counted.tally = tally
    paths = solver.driven(paths, clock)
    division = bounded(clock, paths, substeps, max_dt, state.dtype, solver.alike)
    if jumps and "impulsive" in structure(field):
        solver, division = Impulsive.over(solver, division, state)
    loop = Loop(counted, solver, division.paths, division.clock, division.substeps)
    states: Sequence[Any] | None
    try:
        states, record = backend.attempt(field, loop, gradient, state, positions_only)
        if states is None:
            if isinstance(loop.paths, Paths):
                loop.paths.settle()
            states = gradient.run(loop, state)
        _check_finite(states, loop, state)
    except NumericalError as error:
        if error.step is not None:
            error.step = division.owner(error.step, error.sample)
        raise
    return Trajectory(solver, states, division, counted.evaluations, record)


def _check_finite(states: Sequence[Any], loop: Loop, start: Tensor) -> None:
    """Refuse a trajectory that left the numbers.

    Looking at the last state is enough, and cheap: every method adds to the state, so a NaN or an infinity stays.
    """
    if not states:
        return
    last = states.end if isinstance(states, States) else loop.solver.close(states[-1])
    if finite(last):
        return
    if isinstance(states, States) and not states.complete:
        # Which state was the first is seen in all of them alone: they are computed again.
        with torch.no_grad():
            states = loop.advance(loop.solver.open(start), 0, len(loop))
    for i, state in enumerate(states):
        sample = non_finite_sample(loop.solver.close(state))
        if sample is not None:
            solver, time = loop.solver.name, loop.clock.time_at(i, sample)
            raise NonFiniteStateError(
                f"the state became non-finite under solver {solver!r}", sample=sample, step=i, time=time
            )
