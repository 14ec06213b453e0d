"""One-call use: integrate a field from a state over given times, with any solver and gradient."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.batch import Rows
from solvers.adaptive.driver import Driver, Status
from solvers.adaptive.events import Event, EventWatch, Occurrences
from solvers.adaptive.native import Native
from solvers.adaptive.outputs import Outputs
from solvers.adaptive.shared import Adaptive
from solvers.base.clock import is_late
from solvers.base.control import Held, get_control
from solvers.base.counted import Converted, Counted, Tally
from solvers.base.gradient import Gradient, get_gradient
from solvers.base.pairing import check
from solvers.base.solver import Solver, get
from solvers.base.values import exact, finite, host, working
from solvers.errors import InputError, NumericalError, PairingError
from solvers.gradients.adjoint import Adjoint
from solvers.protocol import ControlPath, Time, bind, check_arguments, describe, structure
from solvers.run.current import check_current, driving
from solvers.run.intervals import StepPlan, by_intervals
from solvers.run.sampled import Sampled, Segments, spans_of

#: What `integrate` takes as an input: nothing, u(t), a constant u `(batch, channels)`, or known samples of it.
Input = Callable[[Time], Any] | Tensor | Sampled | None


@dataclass(frozen=True)
class Statistics:
    """What each sample cost, `(batch,)` integers each.

    Attributes:
        steps: accepted steps.
        rejections: steps that were tried and taken back.
        evaluations: evaluations of the right-hand side.
    """

    steps: Tensor
    rejections: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class Integration:
    """The result of `integrate`.

    Attributes:
        times: `(time,)` or `(batch, time)`, in float64 where the device has it.
        states: `(batch, time, components, hidden)`; NaN at times that a sample did not reach.
        status: one per sample; `status.message` says it in words.
        statistics: what it cost.
        events: the crossings of each event, in the order in which the events were given.
    """

    times: Tensor
    states: Tensor
    status: tuple[Status, ...]
    statistics: Statistics
    events: tuple[Occurrences, ...] = ()

    @property
    def success(self) -> bool:
        """Whether every sample reached its last time, or an event that stopped it."""
        return all(status in (Status.SUCCESS, Status.EVENT) for status in self.status)


def integrate(
    field: Any,
    state0: Tensor,
    times: Tensor | Sequence[float],
    control: Input = None,
    method: str | dict[str, Any] | Solver = "native_dopri5",
    gradient: str | Gradient = "backprop",
    substeps: int = 1,
    dt: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_dt: float | None = None,
    events: Event | Sequence[Event] | None = None,
    throw: bool = True,
) -> Integration:
    """Integrate d state/dt = f(t, state, u(t)) from times[0], where the state is `state0`, over the other times.

    Native methods take steps that do not depend on the times asked for (dense output), each sample its own; those of
    torchdiffeq do so where all samples share their times and the input does not jump. All others step from time to
    time, and so does everything under another gradient than backprop.

    Args:
        field: a function f(t, state, u) or a module: t `(batch, 1)` or a number, state `(batch, components, hidden)`,
            u as the control gives it (None without one). t is of the type of the state, or in float64 where that
            cannot tell the times apart, as seconds since 1970 in float32. Under a native method the field sees the
            samples that are still on their way, as a smaller batch, unless `compact` is False.
        state0: `(batch, components, hidden)`.
        times: `(time,)` or `(batch, time)`, increasing or decreasing (then backward in time).
        control: the input: None, a function u(t) without jumps, a constant tensor `(batch, channels)`, or `Sampled`. A
            controlled field is given its derivative, which is known of constants and of `Sampled`.
        method: a solver, by name, as a mapping `{"name": ..., **options}`, or as a value.
        gradient: how the states are differentiated, by name or as a value.
        substeps: equal steps between two times, for methods of fixed step.
        dt: instead of `substeps`, the longest step: each sample takes the fewest equal steps no longer than that.
        rtol, atol: tolerances of an adaptive method; `rtol` below two units in the last place of the state's type is
            taken for that.
        max_dt: the longest step of any method.
        events: what to record, or to stop at; native methods with backprop only.
        throw: raise where a sample fails; otherwise its status says so, and the other samples go on.

    Raises:
        InputError: arguments that do not fit.
        NumericalError: a sample could not be integrated, with `throw`.
    """
    if not callable(field):
        raise InputError(f"field is a {type(field).__name__}, expected a function f(t, state, u) or a module")
    check_arguments(f"field {describe(field)!r}", field, ("t", "state", "u"))
    solver = _with_tolerances(get(method), rtol, atol)
    chosen = get_gradient(gradient)
    if "differential" not in structure(field):
        raise PairingError(
            f"integrate follows a right-hand side, and {describe(field)} is a closed form alone: use solvers.solve"
        )
    check(field, solver, chosen, get_control(control.control) if isinstance(control, Sampled) else None)
    _check_steps(solver, substeps, dt, max_dt)
    watched = _events(events)
    _check_state(state0)
    clock = _clock(times, state0)
    path = _path(control, state0)
    check_current(field, state0, clock, path)
    path = driving(field, path)
    if len(state0) and not state0.numel():
        return _empty(state0, clock, len(watched))
    if isinstance(solver, Native) and chosen.name == "backprop":
        return _native(field, _bounded(solver, max_dt), state0, clock, path, watched, throw)
    if watched:
        raise InputError(
            f"events need a native method and gradient 'backprop', got {solver.name!r} and {chosen.name!r}: "
            "use method='native_dopri5'"
        )
    one_call = isinstance(solver, Adaptive) and chosen.name == "backprop" and max_dt is None
    if one_call and _joint(clock) and state0.numel() and not isinstance(path, Sampled):
        try:
            assert isinstance(solver, Adaptive)
            return _in_one_call(field, solver, state0, clock, path)
        except NumericalError:
            if throw:
                raise
    return _stepwise(field, solver, chosen, state0, clock, path, substeps, _least(dt, max_dt), throw)


def _events(events: Any) -> list[Event]:
    """The events as a list."""
    if events is None or isinstance(events, Event):
        return [] if events is None else [events]
    given = list(events) if isinstance(events, Iterable) else [events]
    if not all(isinstance(event, Event) for event in given):
        raise InputError(
            "events are not all solvers.Event: wrap each function g(t, state), as in Event(lambda t, x: x[:, 0, 0])"
        )
    return given


def _empty(state: Tensor, times: Tensor, events: int) -> Integration:
    """The states of nothing: components or channels are none."""
    if events:
        raise InputError(f"state0 is empty, {tuple(state.shape)}, and an empty state meets no event: leave events out")
    states = state.unsqueeze(1).expand(-1, times.shape[-1], -1, -1)
    return Integration(times, states, (Status.SUCCESS,) * len(state), _statistics(Tally(len(state)), state))


def _native(
    field: Any,
    solver: Native,
    state: Tensor,
    times: Tensor,
    path: ControlPath | Sampled,
    events: list[Event],
    throw: bool,
) -> Integration:
    """Through the per-sample driver: one run over each piece of the input, outputs by dense output."""
    batch, count = len(state), times.shape[-1]
    per_sample = times.expand(batch, -1)
    outputs, late = Outputs(batch, count), _late(times, state.dtype)
    watch = EventWatch(events, batch, state.dtype, late) if events else None
    outputs.put(host(per_sample == per_sample[:, :1]), state.to(working(state.dtype)))
    driver = Driver(solver, batch, watch, outputs, throw)
    segments = Segments.of(times[..., [0, -1]], path, times.dtype)
    bounds = segments.bounds.expand(batch, -1)
    bound, x = Counted(bind(field)), state.to(working(state.dtype))
    for j in range(segments.count):
        start, whole = bounds[:, j : j + 1], bounds[:, j : j + 2].diff()
        still = whole == 0
        fractions = (per_sample - start) / torch.where(still, 1.0, whole)
        outputs.enter(torch.where(still, -1.0, fractions))
        x = driver.advance(Rows(bound, start, spans_of(bounds[:, j : j + 2]), state, segments.paths[j], late), x)
    occurrences = watch.collect(state) if watch is not None else ()
    status = tuple(Status(int(value)) for value in driver.tally.status)
    return Integration(times, outputs.collect().to(state.dtype), status, _statistics(driver.tally, state), occurrences)


def _in_one_call(field: Any, solver: Adaptive, state: Tensor, times: Tensor, path: ControlPath) -> Integration:
    """Through one call of torchdiffeq over times that all samples share."""
    late = _late(times, state.dtype)
    counted = Converted(bind(field), state.dtype, late)
    counted.tally = Tally(len(state))
    (span,) = spans_of(times[[0, -1]])
    start, length = (x if late else x.to(working(state.dtype)) for x in (times[0], span))
    states = solver.along(counted, start, length, state, path, (times - times[0]) / (times[-1] - times[0]))
    status = (Status.SUCCESS,) * len(state)
    return Integration(times, states.transpose(0, 1), status, _statistics(counted.tally, state))


def _stepwise(
    field: Any,
    solver: Solver,
    gradient: Gradient,
    state: Tensor,
    times: Tensor,
    path: ControlPath | Sampled,
    substeps: int,
    longest: float | None,
    throw: bool,
) -> Integration:
    """Through the loop, from time to time."""
    segments = Segments.of(times, path, state.dtype).driven(solver, state.dtype)
    # A part of a Brownian path is drawn for the whole batch, so that all samples take their steps together.
    plan = StepPlan.of(segments, substeps, longest, state.dtype, alike=solver.alike)
    if isinstance(gradient, Adjoint) and isinstance(solver, Native):
        rtol, atol = gradient.rtol or solver.rtol, gradient.atol or solver.atol
        gradient = dataclasses.replace(gradient, rtol=rtol, atol=atol)
    states, tally, status = by_intervals(field, solver, gradient, plan, state, throw)
    if segments.places is not None:
        places = segments.places.expand(len(state), -1)
        states = states.gather(1, places[..., None, None].expand(-1, -1, *state.shape[1:]))
    return Integration(times, states, tuple(status), _statistics(tally, state))


def _late(times: Tensor, dtype: torch.dtype) -> bool:
    """Whether a field and functions of the user's get their times in the precision of clocks."""
    return is_late(times[..., 0], times[..., -1] - times[..., 0], dtype)


def _statistics(tally: Tally, state: Tensor) -> Statistics:
    counts = (tally.steps, tally.rejections, tally.evaluations)
    return Statistics(*(torch.from_numpy(count).to(state.device) for count in counts))


def _with_tolerances(solver: Solver, rtol: float | None, atol: float | None) -> Solver:
    tolerances = {"rtol": rtol, "atol": atol}
    return solver.with_options(**{name: value for name, value in tolerances.items() if value is not None})


def _bounded(solver: Native, max_dt: float | None) -> Native:
    longest = _least(solver.max_step, max_dt)
    bounded = solver if longest is None else solver.with_options(max_step=longest)
    assert isinstance(bounded, Native)
    return bounded


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _joint(times: Tensor) -> bool:
    """Whether one call of torchdiffeq can go along these times: all samples share them, and no two are the same."""
    return times.dim() == 1 and times.shape[0] > 1 and bool((host(times.detach().diff()) != 0).all())


def _path(control: Input, state: Tensor) -> ControlPath | Sampled:
    """The input as a path, or as samples."""
    if control is None or isinstance(control, Tensor):
        return Held(control)  # type: ignore[arg-type]
    if isinstance(control, Sampled):
        if len(control.samples) != len(state):
            raise InputError(f"control has {len(control.samples)} samples in its batch, the state has {len(state)}")
        return control
    if not callable(control):
        raise InputError(
            f"control is a {type(control).__name__}, expected None, a function u(t), a tensor (batch, channels) or "
            "a solvers.Sampled"
        )
    return control


def _check_state(state: Any) -> None:
    if not isinstance(state, Tensor) or state.dim() != 3 or not state.is_floating_point():
        got = f"{state.dtype} {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
        raise InputError(f"state0 is {got}, expected a floating tensor (batch, components, hidden)")
    if not finite(state):
        raise InputError("state0 has NaN or infinite entries, expected finite values")


def _clock(times: Any, state: Tensor) -> Tensor:
    """The times in the precision of clocks."""
    precision = exact(state.device, state.dtype)
    # A list is not made a tensor of the default dtype on the way: that would round it to float32.
    dtype = times.dtype if isinstance(times, Tensor) else precision
    try:
        clock = torch.as_tensor(times, dtype=dtype, device=state.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"times are {reprlib.repr(times)}, expected numbers: a tensor or a list of them") from None
    if clock.dim() not in (1, 2) or (clock.dim() == 2 and len(clock) != len(state)) or not clock.shape[-1]:
        raise InputError(f"times have shape {tuple(clock.shape)}, expected (time,) or ({len(state)}, time)")
    clock = clock.to(precision)
    values = host(clock)
    steps = np.diff(values)
    if not np.isfinite(values).all():
        raise InputError("times have NaN or infinite entries, expected finite values")
    if not ((steps >= 0).all(-1) | (steps <= 0).all(-1)).all():
        raise InputError("times turn around, expected them to increase or to decrease: sort them")
    return clock


def _check_steps(solver: Solver, substeps: Any, dt: Any, max_dt: Any) -> None:
    if isinstance(substeps, bool) or not isinstance(substeps, int) or substeps < 1:
        raise InputError(f"substeps is {substeps!r}, expected a positive integer")
    for name, value in (("dt", dt), ("max_dt", max_dt)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < float("inf")):
            raise InputError(f"{name} is {value!r}, expected a positive number")
    if solver.adaptive and (substeps > 1 or dt is not None):
        raise InputError(f"solver {solver.name!r} chooses its own steps: leave out substeps and dt, or give max_dt")
    if substeps > 1 and dt is not None:
        raise InputError("both substeps and dt were given: leave one of them out")
