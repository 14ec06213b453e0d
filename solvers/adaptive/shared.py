"""Adaptive methods through torchdiffeq, one interval between samples at a time.

Each interval is mapped to s in [0, 1], dx/ds = dt f(t + s dt, x, u), so that samples with different clocks go through
one call, and the driver never steps across a jump of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torchdiffeq
from torch import Tensor
from torchdiffeq._impl.odeint import SOLVERS as DRIVERS
from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _ButcherTableau

from solvers.adaptive.embedded import TSIT5_A, TSIT5_ERROR
from solvers.adaptive.embedded import tsit5_dense as _tsit5_dense
from solvers.adaptive.tolerance import attainable
from solvers.base.control import is_between
from solvers.base.counted import Converted, enter
from solvers.base.solver import Solver, register
from solvers.base.state import increment, over_state, parts_of
from solvers.base.values import differentiated, exact, non_finite_sample, working
from solvers.errors import InputError, NonFiniteStateError, PairingError, StepLimitError, StepUnderflowError
from solvers.protocol import ControlPath, Time, check_slope

#: Methods whose dense output has the order of their error estimate. The others end a step at each time asked for:
#: torchdiffeq lays a quartic through each step, for which dopri8 takes too long steps and which for bosh3 and
#: adaptive_heun goes through a midpoint of lower order than theirs.
DENSE = frozenset({"dopri5", "tsit5"})


@dataclass(frozen=True)
class Adaptive(Solver):
    """An embedded Runge-Kutta pair whose step size follows the estimated error, err_i <= atol + rtol |x_i|.

    The error is measured per sample, as a root mean square over components and channels, and the worst sample
    decides: no sample hides in the average of its batch.

    Attributes:
        rtol: relative tolerance; see `attainable` for the least one.
        atol: absolute tolerance.
        max_steps: attempted steps in one interval before the solver gives up.
    """

    rtol: float = field(default=1e-6, metadata={"option": True})
    atol: float = field(default=1e-8, metadata={"option": True})
    max_steps: int = field(default=10_000, metadata={"option": True})

    family: ClassVar[str] = "adaptive"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in self.options.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"{name} of solver {self.name!r} is {value!r}, expected a positive number")

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """The whole interval from t to t + dt, in as many steps as the tolerances ask; see `Solver.step`.

        Raises:
            NonFiniteStateError, StepLimitError, StepUnderflowError: the interval could not be finished.
        """
        if not state.numel():
            return state
        return self.along(field, t, dt, state, control, torch.tensor([0.0, 1.0], dtype=working(state.dtype)))[-1]

    def along(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath, fractions: Tensor) -> Tensor:
        """The states at increasing fractions of an interval, from its start, in one call: `(fractions, *state)`."""
        if differentiated(state):
            raise PairingError(
                f"solver {self.name!r} is driven by torchdiffeq, which cannot run inside torch.func: use a native "
                "method such as 'native_dopri5', or torch.autograd"
            )
        watched = _Watched(unit_slope(field, t, dt, control), self)
        states: Tensor = watched.along(state, fractions.to(state.device), worst_sample)
        enter(field, watched.accepted, watched.rejected, watched.evaluations)
        return states


def unit_slope(field: Any, t: Time, dt: Time, control: ControlPath) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/ds = dt f(t + s dt, x, u) on one interval, for s in [0, 1].

    A path between samples is asked in the precision of the clock; so is a field that is late on it (`Converted`).
    """
    late = isinstance(field, Converted) and field.late
    precise = late or is_between(control)

    def slope(s: Tensor, x: Tensor) -> Tensor:
        at = t + (s.to(exact(s.device, s.dtype)) if precise else s) * dt
        rounded = at if late else at.to(x.dtype)
        # Not once for all: who differentiates slopes one by one needs a graph of it for each.
        h = over_state(increment(field, dt))
        return h * check_slope(field, x, field(rounded, x, control(at)))

    return slope


def integrate_unit(
    slope: Callable[..., Any],
    start: Any,
    tolerances: Adaptive,
    reverse: bool = False,
    norm: Callable[[Any], Tensor] | None = None,
    between: Sequence[float] = (),
) -> Any:
    """Integrate dx/ds = slope(s, x) from s = 0 to 1 (from 1 to 0 with `reverse`), landing on the end exactly.

    Args:
        slope: the right-hand side.
        start: a tensor, whose first axis is the batch, or a tuple of tensors.
        tolerances: method, rtol, atol and max_steps.
        reverse: from 1 to 0.
        norm: of the scaled error; the worst sample's root mean square when left out.
        between: fractions at which the state is wanted too, in the direction of integration.

    Returns:
        the state at the end; with `between`, the states there and at the end, stacked.
    """
    first = start[0] if isinstance(start, tuple) else start
    if first.numel() == 0 and not between:
        return start
    ends = (1.0, 0.0) if reverse else (0.0, 1.0)
    times = torch.tensor([ends[0], *between, ends[1]], dtype=working(first.dtype), device=first.device)
    path = _Watched(slope, tolerances).along(start, times, norm or worst_sample)
    wanted = slice(1, None) if between else -1
    return tuple(x[wanted] for x in path) if isinstance(path, tuple) else path[wanted]


def worst_sample(error: Tensor) -> Tensor:
    """The largest root mean square over the samples of a batch."""
    if error.dim() < 3:
        return error.square().mean().sqrt()
    return error.square().mean(dim=(-2, -1)).max().sqrt()


class _Watched:
    """A slope under watch: counts, and turns each way torchdiffeq's driver can fail into an error that says where."""

    def __init__(self, slope: Callable[..., Any], tolerances: Adaptive) -> None:
        self.slope, self.tolerances = slope, tolerances
        self.attempts = self.accepted = self.rejected = self.evaluations = 0
        self.last: Any = None
        #: The slope that will be asked for next, where it is known.
        self.known: Any = None

    def along(self, start: Any, times: Tensor, norm: Callable[[Any], Tensor]) -> Any:
        """The states at these times, the first of which is that of `start`; stepped in single precision at least."""
        name, atol = self.tolerances.name, self.tolerances.atol
        rtol = max(attainable(self.tolerances.rtol, part.dtype) for part in parts_of(start))
        self.types = [part.dtype for part in parts_of(start)]
        wide = _like(start, [part.to(working(part.dtype)) for part in parts_of(start)])
        # Where a step ends, the state is there as exactly as it was computed.
        ends = (times[-1:] if name in DENSE else times[1:]).detach()
        first = self._first_step(wide, times.detach(), norm, rtol)
        options = {"norm": norm, "step_t": ends, "first_step": first}
        return self._own(torchdiffeq.odeint(self, wide, times, rtol=rtol, atol=atol, method=name, options=options))

    def _first_step(self, start: Any, times: Tensor, norm: Callable[[Any], Tensor], rtol: float) -> Tensor:
        """The first step, guessed as torchdiffeq does, but from no time beyond the last: none may be there.

        Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.4.
        """
        slope = self(times[0], start)
        with torch.no_grad():
            span, x, k = times[-1] - times[0], parts_of(start), parts_of(slope)
            scale = [self.tolerances.atol + rtol * part.abs() for part in x]

            def size(parts: Sequence[Tensor]) -> float:
                return float(norm(_like(start, [part / s for part, s in zip(parts, scale, strict=True)])).abs())

            near, speed = size(x), size(k)
            trial = min(1e-6 if min(near, speed) < 1e-5 else 0.01 * near / speed, float(span.abs()))
            step = trial * span.sign()
            moved = [part.addcmul(rate, step.to(rate.dtype)) for part, rate in zip(x, k, strict=True)]
            there = parts_of(self(times[0] + step, _like(start, moved)))
            # The driver asks for the first slope once more.
            self.known = self.last = slope
            change = size([after - before for before, after in zip(k, there, strict=True)]) / trial if trial else 0.0
            fastest = max(speed, change if math.isfinite(change) else 0.0)
            order = DRIVERS[self.tolerances.name].order
            second = (0.01 / fastest) ** (1 / order) if fastest > 1e-15 else max(1e-6, 1e-3 * trial)
            return times.new_tensor(min(100 * trial, second))

    def _own(self, parts: Any) -> Any:
        """Parts in the types of the start."""
        return _like(parts, [part.to(dtype) for part, dtype in zip(parts_of(parts), self.types, strict=True)])

    def __call__(self, s: Tensor, x: Any) -> Any:
        known, self.known = self.known, None
        if known is not None:
            return known
        self.evaluations += 1
        first = self.last is None
        slope = self.slope(s, self._own(x))
        self.last = _like(x, [k.to(part.dtype) for k, part in zip(parts_of(slope), parts_of(x), strict=True)])
        if first:
            self._check_finite(self.last, "slope")
        return self.last

    def _check_finite(self, value: Any, what: str) -> None:
        sample = non_finite_sample(value)
        if sample is not None:
            name = self.tolerances.name
            message = f"the {what} became non-finite under solver {name!r}"
            raise NonFiniteStateError(message, sample=sample).adaptively()

    def callback_step(self, s: Tensor, x: Any, ds: Tensor) -> None:
        """Called by the driver before each attempted step."""
        name, limit = self.tolerances.name, self.tolerances.max_steps
        self._check_finite(x, "state")
        self._check_finite(self.last, "slope")
        self.attempts += 1
        if self.attempts > limit:
            raise StepLimitError(
                f"solver {name!r} used up max_steps = {limit:g} at {float(s.detach()):.3g} of an interval",
                sample=_largest_sample(self.last),
            )
        if not s + ds > s:
            raise StepUnderflowError(
                f"the step of solver {name!r} shrank to {float(ds.detach()):.3g} of an interval",
                sample=_largest_sample(self.last),
            )

    def callback_accept_step(self, s: Tensor, x: Any, ds: Tensor) -> None:
        """Called by the driver."""
        self.accepted += 1

    def callback_reject_step(self, s: Tensor, x: Any, ds: Tensor) -> None:
        """Called by the driver."""
        self.rejected += 1


def _like(whole: Any, parts: list[Tensor]) -> Any:
    """Parts as a tuple where the whole is one, else the only one."""
    return tuple(parts) if isinstance(whole, tuple) else parts[0]


def _largest_sample(slope: Any) -> int | None:
    """The sample with the largest slope: the one that most likely drives the step size down."""
    if not isinstance(slope, Tensor) or slope.dim() < 2:
        return None
    return int(slope.detach().abs().reshape(slope.shape[0], -1).amax(1).argmax())


class _Tsit5(RKAdaptiveStepsizeODESolver):  # type: ignore[misc]
    """Tsit5 for torchdiffeq's driver, which brings the driver but not this pair."""

    order = 5
    tableau = _ButcherTableau(
        alpha=torch.tensor([0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0], dtype=torch.float64),
        beta=[torch.tensor(row, dtype=torch.float64) for row in TSIT5_A],
        c_sol=torch.tensor([*TSIT5_A[-1], 0.0], dtype=torch.float64),
        c_error=torch.tensor(TSIT5_ERROR, dtype=torch.float64),
    )
    mid = torch.tensor(_tsit5_dense(0.5), dtype=torch.float64)


DRIVERS["tsit5"] = _Tsit5

for _name, _order, _stages in (
    ("dopri5", 5, 6),
    ("dopri8", 8, 13),
    ("bosh3", 3, 3),
    ("adaptive_heun", 2, 2),
    ("tsit5", 5, 6),
):
    register(Adaptive(_name, _order, _stages))
