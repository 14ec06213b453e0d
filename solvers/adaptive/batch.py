"""What the per-sample driver steps: the right-hand side of some samples of a batch, and the steps taken with it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from solvers.base.control import Held, is_between
from solvers.base.counted import Converted
from solvers.base.state import increment
from solvers.base.values import working
from solvers.protocol import ControlPath, Time

#: A small array on the host, one number per row.
Array = np.ndarray


class Rows:
    """The right-hand side of some samples of a batch: dx/ds = h f(t + s dt, x, u(t + s dt)), s in [0, 1].

    The batch is flattened to one axis; `index` lists the samples that are left of it (all of them when None). Clocks
    are kept in float64 where the device has it, so that short steps late on a float32 clock do not merge; so are the
    times at which a path between samples is asked for. The field gets its times in the type of `state`, those of a
    solve that is `late` excepted. Steps are taken in single precision at least, whatever the type of the state.
    """

    def __init__(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath, late: bool = False) -> None:
        self.field, self.control, self.batch = Converted(field, state.dtype, late), control, state.shape[:-2]
        self.dtype, self.device = state.dtype, state.device
        clock = working(state.dtype) if state.device.type == "mps" else torch.float64
        self.t, self.dt = self._per_sample(t, clock), self._per_sample(dt, clock)
        self.h = self._per_sample(increment(field, dt), working(state.dtype)).unsqueeze(-2)
        self.index: Tensor | None = None
        # A held input does not depend on the time, and a function of the user's gets it as the field does.
        self.clock = clock if late or is_between(control) else state.dtype
        self.whole = self.t.to(self.clock)

    def _per_sample(self, value: Time, dtype: torch.dtype) -> Tensor:
        # A number is not made a tensor of the default dtype on the way: that would round it to float32.
        tensor = value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype, device=self.device)
        width = tensor.shape[-1] if tensor.dim() else 1
        return tensor.expand(*self.batch, width).reshape(-1, width)

    def select(self, keep: Tensor) -> Rows:
        """The rows listed in `keep`."""
        chosen = object.__new__(Rows)
        chosen.__dict__.update(self.__dict__)
        chosen.t, chosen.dt, chosen.h = (x.index_select(0, keep) for x in (self.t, self.dt, self.h))
        chosen.index = keep if self.index is None else self.index.index_select(0, keep)
        if isinstance(self.control, Held) and len(self.batch) == 1:
            # A held input does not depend on the time: it is cut once, and no longer at every stage.
            chosen.control, chosen.index = Held(_cut(self.control.value, self.t.shape[0], keep)), None
        return chosen

    def times(self, fractions: Array) -> tuple[Tensor, ...]:
        """The times t + s dt, `(rows, 1)` each, of fractions s `(points, rows)`."""
        s = torch.from_numpy(fractions).to(self.t).unsqueeze(-1)
        return torch.addcmul(self.t, s, self.dt).to(self.clock).unbind(0)

    def slope(self, time: Tensor, x: Tensor) -> Tensor:
        """The field f at its own time, `(rows, components, hidden)`."""
        slope: Tensor = self.field(time, x, self.input(time))
        return slope

    def input(self, time: Tensor) -> Any:
        """U of the rows: a path speaks of the whole batch, so it is asked for all of it."""
        if self.index is None and len(self.batch) == 1:
            return self.control(time)
        whole = time
        if self.index is not None:
            whole = self.whole.expand(-1, time.shape[-1]).index_copy(0, self.index, time)
        u = self.control(whole.reshape(*self.batch, -1))
        axes = len(self.batch)
        if not isinstance(u, Tensor) or u.dim() <= axes or u.shape[:axes] != self.batch:
            return u
        u = u.reshape(-1, *u.shape[axes:])
        return u if self.index is None else u.index_select(0, self.index)


def _cut(value: Any, samples: int, keep: Tensor) -> Any:
    """The rows `keep` of an input with one row per sample; anything else is shared by all samples."""
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == samples:
        return value.index_select(0, keep)
    return value


class Attempt(NamedTuple):
    """A step that was tried.

    Attributes:
        end: the state at its end.
        slope: the slope there, with which the next step starts.
        error: the estimated error of `end`; NaN where the step could not be taken.
        h, slopes: what dense output is made of, start + h sum of weights_i slopes_i.
        evaluations: of the field, for every row.
        unsolved: rows whose implicit equations were not solved.
    """

    end: Tensor
    slope: Tensor
    error: Tensor
    h: Tensor
    slopes: list[Tensor]
    evaluations: int
    unsolved: Array | None = None


class PerSample(Protocol):
    """What the driver asks of a method under which every sample takes steps of its own."""

    @property
    def name(self) -> str:
        """Of the solver, for messages."""

    @property
    def rtol(self) -> float:
        """Relative tolerance."""

    @property
    def atol(self) -> float:
        """Absolute tolerance."""

    @property
    def max_steps(self) -> int:
        """Attempted steps in one interval before a sample gives up."""

    @property
    def first_step(self) -> float | None:
        """The first step of an interval, in time; estimated when None."""

    @property
    def min_step(self) -> float:
        """The shortest step, in time."""

    @property
    def max_step(self) -> float | None:
        """The longest step, in time."""

    @property
    def compact(self) -> bool:
        """Whether samples that are done leave the batch."""

    @property
    def error_order(self) -> int:
        """Order of the error estimate of one step."""

    def attempt(self, rows: Rows, x: Tensor, slope: Tensor, s: Array, ds: Array) -> Attempt:
        """One step of length `ds` from `x` at `s`, whose first slope is known."""

    def interpolate(self, theta: Tensor) -> Tensor:
        """Weights of the slopes at fractions theta `(points,)` of a step, `(stages, points)`."""


class Round(NamedTuple):
    """The steps of one round, with the states inside them.

    Attributes:
        rows: the right-hand sides.
        ids: the sample of each row.
        taken: whether the step of the row was accepted.
        s, ds: start and length of each step, in fractions of the interval.
        reached: where each row is after the round; at 1 exactly once it has arrived.
        start: the state at the start.
    """

    solver: PerSample
    rows: Rows
    attempt: Attempt
    ids: Array
    taken: Array
    s: Array
    ds: Array
    reached: Array
    start: Tensor

    def state(self, which: Array, theta: Tensor) -> Tensor:
        """Dense output of the rows `which` at fractions theta of their steps; differentiable in theta."""
        at = torch.from_numpy(which).to(self.start.device)
        weights = self.solver.interpolate(theta).to(self.start.dtype)
        slopes = torch.stack(self.attempt.slopes).index_select(1, at)
        moved = (weights[..., None, None] * slopes).sum(0)
        return self.start.index_select(0, at).addcmul(self.attempt.h.index_select(0, at), moved)

    def time(self, which: Array, theta: Tensor) -> Tensor:
        """The time there, `(points, 1)`."""
        at = torch.from_numpy(which).to(self.start.device)
        s = self.numbers(self.s[which]) + theta * self.numbers(self.ds[which])
        return torch.addcmul(self.rows.t.index_select(0, at), s.unsqueeze(-1), self.rows.dt.index_select(0, at))

    def numbers(self, values: Array) -> Tensor:
        """Numbers of the host as a tensor beside the clocks."""
        return torch.from_numpy(values).to(self.rows.t)
