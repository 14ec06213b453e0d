"""The loop: one solver stepped over every interval of a sampled input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.adaptive import non_finite_sample
from solvers.clock import Clock
from solvers.control import Control
from solvers.errors import InputError, NonFiniteStateError, NumericalError
from solvers.gradient import Gradient
from solvers.pairing import check
from solvers.protocol import ControlPath, State, Time, bind, components, describe, packed
from solvers.solver import Solver
from solvers.statistics import Counted

Advance = Callable[[Any, Time, Time, Any, ControlPath], Any]


@dataclass(frozen=True)
class Trajectory:
    """The states of a solve.

    Attributes:
        steps: the state after each interval, in the form the solver carries it.
        evaluations: right-hand-side evaluations, each for the whole batch.
    """

    steps: list[State]
    evaluations: int

    def states(self) -> Tensor:
        """The state after each interval, `(batch, time, components, hidden)`."""
        return torch.stack([packed(state) for state in self.steps], dim=1)

    def positions(self) -> Tensor:
        """The first component after each interval, `(batch, time, hidden)`."""
        # Stacked time first, so that each step is one contiguous block, and seen batch first.
        return torch.stack([components(state)[0] for state in self.steps]).transpose(0, 1)

    def end(self) -> Tensor:
        """The state after the last interval, `(batch, components, hidden)`."""
        return packed(self.steps[-1])


@dataclass(frozen=True)
class Loop:
    """A field, a solver and an input, ready to be stepped from any interval to any later one."""

    field: Any
    solver: Solver
    paths: Sequence[ControlPath]
    clock: Clock
    substeps: int

    def __len__(self) -> int:
        return len(self.clock)

    def substeps_of(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """One interval in `substeps` equal steps."""
        if self.substeps == 1:
            return self.solver.step(field, t, dt, state, control)
        h = dt / self.substeps
        for i in range(self.substeps):
            state = self.solver.step(field, t + i * h, h, state, control)
        return state

    def advance(self, start: Tensor, first: int, last: int, interval: Advance | None = None) -> list[State]:
        """The states after intervals `first` to `last` - 1; `interval` replaces the plain stepping of one."""
        states: list[State] = []
        state: State = start.unbind(-2) if self.solver.split and interval is None else start
        interval = interval or self.substeps_of
        for i in range(first, last):
            try:
                state = interval(self.field, self.clock.starts[i], self.clock.spans[i], state, self.paths[i])
            except NumericalError as error:
                raise error.at(step=i, time=self.clock.time_at(i, error.sample)) from None
            if i == first and (
                len(after := components(state)) != start.shape[-2] or after[0].shape != start[..., 0, :].shape
            ):
                raise self._shape_error(start, state)
            states.append(state)
        return states

    def _shape_error(self, before: Tensor, after: State) -> InputError:
        return InputError(
            f"a step of {describe(self.field)} turned a state of shape {tuple(before.shape)} into "
            f"{tuple(packed(after).shape)}: "
            "forward must return the shape of the state (*batch, components, hidden), while u and t broadcast against "
            "one component (*batch, hidden); take components apart with state.unbind(-2)"
        )


def solve(
    field: Any,
    solver: Solver,
    gradient: Gradient,
    control: Control,
    clock: Clock,
    samples: Sequence[Tensor],
    state: Tensor,
    substeps: int = 1,
) -> Trajectory:
    """Step `field` from `state` over the intervals of `clock`, driven by the input currents `samples`.

    Args:
        field: right-hand side with the structure that `solver` needs.
        solver, gradient, control: values from their registries.
        clock: intervals; interval i ends at sample i.
        samples: input current at each sample, `(batch, channels)` each.
        state: `(batch, components, hidden)` at the start of the first interval.
        substeps: equal steps per interval.

    Raises:
        PairingError: the field lacks what the solver needs.
        NumericalError: the state became non-finite, or an adaptive solver gave up.
    """
    check(field, solver, gradient)
    counted = Counted(bind(field))
    loop = Loop(counted, solver, control.paths(samples, clock), clock, substeps)
    states = gradient.run(loop, state)
    _check_finite(states, loop)
    return Trajectory(states, counted.evaluations)


def _check_finite(states: list[State], loop: Loop) -> None:
    """Refuse a trajectory that left the numbers.

    Looking at the last state is enough, and cheap: every method adds to the state, so a NaN or an infinity stays.
    """
    if not states or torch.compiler.is_compiling() or non_finite_sample(states[-1]) is None:
        return
    for i, state in enumerate(states):
        sample = non_finite_sample(state)
        if sample is not None:
            solver, time = loop.solver.name, loop.clock.time_at(i, sample)
            raise NonFiniteStateError(
                f"the state became non-finite under solver {solver!r}", sample=sample, step=i, time=time
            )
