"""The per-sample adaptive driver: every sample of a batch takes steps of its own size from s = 0 to 1 of its interval.

Step sizes, errors and decisions are small float64 arrays on the host; states and slopes stay tensors where they are.
Samples that have arrived leave the batch, so nothing is evaluated for them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.batch import Array, Attempt, PerSample, Round, Rows
from solvers.adaptive.controller import Progress, StepController
from solvers.adaptive.tolerance import attainable
from solvers.base.values import host
from solvers.errors import ConvergenceError, NonFiniteStateError, NumericalError, StepLimitError, StepUnderflowError
from solvers.protocol import check_slope


class Status(IntEnum):
    """How the solve of one sample ended."""

    SUCCESS = 0
    EVENT = 1
    NON_FINITE = 2
    STEP_LIMIT = 3
    STEP_UNDERFLOW = 4
    NOT_CONVERGED = 5

    @property
    def message(self) -> str:
        """The status in words."""
        return _MESSAGES[self]

    @classmethod
    def of(cls, error: NumericalError) -> Status:
        """The status that an error stands for."""
        return next((status for status, kind in _ERRORS.items() if isinstance(error, kind)), cls.NON_FINITE)


_MESSAGES = {
    Status.SUCCESS: "reached the last time",
    Status.EVENT: "stopped at a terminal event",
    Status.NON_FINITE: "the state, its slope or its derivative became non-finite",
    Status.STEP_LIMIT: "used up max_steps",
    Status.STEP_UNDERFLOW: "no step was short enough",
    Status.NOT_CONVERGED: "an implicit equation was not solved",
}
_ERRORS: dict[Status, type[NumericalError]] = {
    Status.NON_FINITE: NonFiniteStateError,
    Status.STEP_LIMIT: StepLimitError,
    Status.STEP_UNDERFLOW: StepUnderflowError,
    Status.NOT_CONVERGED: ConvergenceError,
}


class Watch(Protocol):
    """What looks for events inside the steps."""

    def enter(self, rows: Rows, x: Tensor, ids: Array) -> None:
        """Look at the start of an interval."""
        ...

    def look(self, round_: Round) -> tuple[Array, Array, Tensor] | None:
        """The rows that stop inside their steps, the fractions of the steps at which they do, and their states."""
        ...


class Recorder(Protocol):
    """What takes states out of the steps."""

    def take(self, round_: Round, reached: Array) -> None:
        """Take what lies inside the accepted steps, up to the fractions of the interval that were reached."""
        ...


class Driver:
    """Carries a batch over one interval after the other; step sizes and the tally last.

    Args:
        solver: the method.
        samples: size of the flattened batch.
        watch, recorder: what looks into the steps.
        throw: raise at the first sample that fails; otherwise it stops there, with its status in the tally.
    """

    def __init__(
        self,
        solver: PerSample,
        samples: int,
        watch: Watch | None = None,
        recorder: Recorder | None = None,
        throw: bool = True,
    ) -> None:
        self.solver, self.watch, self.recorder, self.throw = solver, watch, recorder, throw
        self.tally = Progress(samples)

    def advance(self, rows: Rows, x: Tensor) -> Tensor:
        """The states at the ends of the intervals of `rows` from the states x, `(samples, components, hidden)`.

        Raises:
            NonFiniteStateError, StepLimitError, StepUnderflowError: a sample could not finish, unless told not to.
        """
        self.rows, self.x, self.slope, self.calls = rows, x, x, 0
        self.rtol = attainable(self.solver.rtol, rows.dtype)
        self.arrived: list[tuple[Array, Tensor]] = []
        span = host(rows.dt.detach().abs().amax(1)).astype(np.float64)
        # A learned span of zero is stepped over too: the state stays, but its derivative is the slope.
        moving = (span > 0) | (torch.is_grad_enabled() and rows.dt.requires_grad)
        live = moving & (self.tally.status == Status.SUCCESS)
        self.controller = StepController(self.solver, self.tally, span, live, 1e3 * torch.finfo(x.dtype).tiny)
        self._retire()
        if self.controller.live.any():
            self._begin()
        while np.count_nonzero(self.controller.live):
            self._round()
        return self._gather()

    def _begin(self) -> None:
        """First slopes and first steps."""
        (now,) = self.rows.times(self.controller.s[None])
        self.slope = check_slope(self.rows.field, self.x, self._evaluate(now, self.x))
        for value, what in ((self.x, "state"), (self.slope, "slope")):
            bad = ~host(torch.isfinite(value).flatten(1).all(1))
            self._fail(bad & self.controller.live, Status.NON_FINITE, f"the {what} became non-finite")
        self._retire()
        unknown = np.isnan(self.controller.ds) & self.controller.live
        if unknown.any():
            self.controller.ds = np.where(unknown, self._first_steps(), self.controller.ds)
        if self.watch is not None:
            self.watch.enter(self.rows, self.x, self.controller.ids)

    def _evaluate(self, time: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.rows.slope(time, x)

    @torch.no_grad()
    def _first_steps(self) -> Array:
        """A first step from the size of the slope and of its change (Hairer, Norsett, Wanner, II.4)."""
        if self.solver.first_step is not None:
            steps: Array = self.solver.first_step / np.maximum(self.controller.span, 1e-300)
            return steps
        slope = self.rows.h * self.slope
        scale = self.solver.atol + self.rtol * self.x.abs()
        size, speed = _rms(self.x / scale), _rms(slope / scale)
        with np.errstate(all="ignore"):
            trial = np.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
            trial = np.maximum(np.minimum(np.nan_to_num(trial), 1.0), self.controller.floor)
            (time,) = self.rows.times(trial[None])
            there = self.x + slope * torch.from_numpy(trial).to(self.x)[:, None, None]
            change = _rms((self.rows.h * self._evaluate(time, there) - slope) / scale) / trial
            fastest = np.maximum(speed, np.where(np.isfinite(change), change, 0.0))
            second = (0.01 / fastest) ** (1 / self.solver.error_order)
            second = np.where(fastest > 1e-15, second, np.maximum(1e-6, 1e-3 * trial))
        first: Array = np.minimum(100 * trial, second)
        return first

    def _round(self) -> None:
        """One attempted step of every sample that has not arrived."""
        controller = self.controller
        s, ds = controller.s, controller.propose()
        attempt = self._attempt(s, ds)
        error = self._errors(attempt)
        taken = controller.judge(ds, error)
        if attempt.end.requires_grad and not np.isfinite(error).all():
            # Even with no weight in the result, a step into NaN would spoil the gradients of shared parameters.
            attempt = self._attempt(s, np.where(taken, ds, 0.0))
        count = np.count_nonzero(taken)
        if count:
            self._move(Round(self.solver, self.rows, attempt, controller.ids, taken, s, ds, controller.s, self.x))
        if count < len(taken):
            short = controller.live & ~taken & (ds <= controller.floor)
            if attempt.unsolved is not None:
                self._fail(short & attempt.unsolved, Status.NOT_CONVERGED, "the stages could not be solved for")
                short &= ~attempt.unsolved
            what = "the state" if attempt.unsolved is None else "the state, its slope or the derivative of the field"
            self._fail(short & ~np.isfinite(error), Status.NON_FINITE, f"{what} became non-finite")
            self._fail(short & controller.live, Status.STEP_UNDERFLOW, "the step shrank to nothing")
        controller.live &= controller.s < 1
        limit = self.solver.max_steps
        if controller.rounds >= limit:
            self._fail(
                controller.live & (controller.tried >= limit), Status.STEP_LIMIT, f"max_steps = {limit:g} was used up"
            )
        self._retire()

    def _attempt(self, s: Array, ds: Array) -> Attempt:
        attempt = self.solver.attempt(self.rows, self.x, self.slope, s, ds)
        self.calls += attempt.evaluations
        return attempt

    def _errors(self, attempt: Attempt) -> Array:
        """Error of each sample over the tolerance: a root mean square over components and channels."""
        end = attempt.end.detach()
        scale = torch.maximum(self.x.detach().abs(), end.abs()).mul_(self.rtol).add_(self.solver.atol)
        # An infinite end would hide its error behind its own size: inf - inf is NaN and keeps it in sight.
        return _rms(torch.addcdiv(end - end, attempt.error, scale))

    def _move(self, round_: Round) -> None:
        """Move the samples whose steps were taken, to the ends of the steps or to the events inside them."""
        attempt, reached = round_.attempt, round_.reached
        stops = None if self.watch is None else self.watch.look(round_)
        if stops is not None:
            rows, theta, _ = stops
            reached = reached.copy()
            reached[rows] = round_.s[rows] + theta * round_.ds[rows]
        if self.recorder is not None:
            self.recorder.take(round_, reached)
        if np.count_nonzero(round_.taken) == len(round_.taken):
            self.x, self.slope = attempt.end, attempt.slope
        else:
            chosen = torch.from_numpy(round_.taken).to(self.x.device)[:, None, None]
            self.x = torch.where(chosen, attempt.end, self.x)
            self.slope = torch.where(chosen, attempt.slope, self.slope)
        if stops is not None:
            self.x = self.x.index_copy(0, torch.from_numpy(stops[0]).to(self.x.device), stops[2])
            self.tally.status[self.controller.ids[stops[0]]] = Status.EVENT
            self.controller.live[stops[0]] = False

    def _fail(self, rows: Array, status: Status, what: str) -> None:
        """Stop rows with a status, or raise it."""
        if not rows.any():
            return
        if self.throw:
            row = int(rows.nonzero()[0][0])
            s, sample = float(self.controller.s[row]), int(self.controller.ids[row])
            time = float(self.rows.t[row, 0] + s * self.rows.dt[row, 0])
            unsolved = status == Status.NOT_CONVERGED
            message = f"{what} under solver {self.solver.name!r} at {s:.3g} of an interval"
            error = (
                ConvergenceError(message, samples=(sample,)) if unsolved else _ERRORS[status](message, sample=sample)
            )
            if isinstance(error, NonFiniteStateError):
                error.adaptively()
            error.time = time
            raise error
        self.tally.status[self.controller.ids[rows]] = status
        self.controller.live[rows] = False

    def _retire(self) -> None:
        """Let the samples that are done leave the batch."""
        live = self.controller.live
        if np.count_nonzero(live) == len(live) or not self.solver.compact:
            return
        done, keep = (torch.from_numpy(rows.nonzero()[0]).to(self.x.device) for rows in (~live, live))
        self.arrived.append((self.controller.ids[~live], self.x.index_select(0, done)))
        self.x, self.slope = self.x.index_select(0, keep), self.slope.index_select(0, keep)
        self.rows = self.rows.select(keep)
        self.controller.drop(~live, self.calls)

    def _gather(self) -> Tensor:
        """The states of all samples in their order."""
        self.arrived.append((self.controller.ids, self.x))
        self.controller.drop(np.ones(len(self.controller.ids), dtype=bool), self.calls)
        if len(self.arrived) == 1:
            return self.x
        ids = np.concatenate([ids for ids, _ in self.arrived])
        order = torch.from_numpy(np.argsort(ids)).to(self.x.device)
        return torch.cat([x for _, x in self.arrived]).index_select(0, order)


def _rms(x: Tensor) -> Array:
    """Root mean square of each sample."""
    norm = host(torch.linalg.vector_norm(x, dim=(-2, -1))).astype(np.float64)
    rms: Array = norm / (x.shape[-1] * x.shape[-2]) ** 0.5
    return rms
