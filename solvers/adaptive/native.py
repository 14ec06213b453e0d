"""Native adaptive methods: each sample of a batch takes steps of its own and does not pay for a harder one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from solvers.adaptive.batch import Array, Attempt, Rows
from solvers.adaptive.driver import Driver
from solvers.adaptive.embedded import BOSH3, DOPRI5, TSIT5, EmbeddedPair, ImplicitPair, dense_weights
from solvers.base.counted import Tally, enter
from solvers.base.solver import Solver, register
from solvers.base.values import working
from solvers.errors import InputError, PairingError
from solvers.protocol import ControlPath, Time


@dataclass(frozen=True)
class Native(Solver):
    """An embedded Runge-Kutta pair under the per-sample driver.

    A step is accepted where the root mean square over components and channels of error / (atol + rtol |x|) is at most
    1, for each sample alone. Differentiable by backprop through the accepted steps, with step sizes as constants.

    Attributes:
        pair: the methods.
        rtol, atol: relative and absolute tolerance; see `attainable` for the least relative one.
        max_steps: attempted steps in one interval before a sample gives up.
        first_step: first step, in units of time; chosen per sample when left out.
        min_step, max_step: bounds on every step, in units of time; only the step that ends an interval may be shorter.
        compact: evaluate the field for the samples that have not arrived, as a smaller batch. A field that holds
            tensors with one row per sample needs False (or must take them from u, which is cut to the batch). With
            False a sample whose first slope is not finite stays in the batch, where it makes the gradients of
            shared parameters NaN if `integrate` does not throw.
    """

    pair: EmbeddedPair | ImplicitPair | None = None
    rtol: float = field(default=1e-6, metadata={"option": True})
    atol: float = field(default=1e-8, metadata={"option": True})
    max_steps: int = field(default=10_000, metadata={"option": True})
    first_step: float | None = field(default=None, metadata={"option": True})
    min_step: float = field(default=0.0, metadata={"option": True})
    max_step: float | None = field(default=None, metadata={"option": True})
    compact: bool = field(default=True, metadata={"option": True})

    family: ClassVar[str] = "adaptive"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "max_steps", "first_step", "min_step", "max_step"):
            value = getattr(self, name)
            if not _fits(value, zero=name == "min_step", none=name in ("first_step", "max_step")):
                raise InputError(f"{name} of solver {self.name!r} is {value!r}, expected a positive number")
        if not isinstance(self.compact, bool):
            raise InputError(f"compact of solver {self.name!r} is {self.compact!r}, expected True or False")
        if self.max_step is not None and self.max_step < self.min_step:
            raise InputError(
                f"max_step of solver {self.name!r} is {self.max_step:g}, below its min_step {self.min_step:g}: raise it"
            )

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """The whole interval from t to t + dt, every sample in its own steps; see `Solver.step`.

        Raises:
            NonFiniteStateError, StepLimitError, StepUnderflowError, ConvergenceError: a sample could not finish.
        """
        end, tally = self.run(field, t, dt, state, control)
        enter(field, tally.steps, tally.rejections, tally.evaluations)
        return end

    def run(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> tuple[Tensor, Tally]:
        """The same, with what it took for each sample of the flattened batch."""
        x = state.reshape(math.prod(state.shape[:-2]), *state.shape[-2:])
        driver = Driver(self, len(x))
        if x.numel():
            x = driver.advance(Rows(field, t, dt, state, control), x.to(working(x.dtype))).to(x.dtype)
        return x.reshape(state.shape), driver.tally

    @property
    def error_order(self) -> int:
        """Order of the error estimate of one step."""
        assert self.pair is not None
        return self.pair.embedded_order + 1

    def interpolate(self, theta: Tensor) -> Tensor:
        """Weights of the slopes at fractions theta `(points,)` of a step, `(stages, points)`."""
        assert self.pair is not None
        return dense_weights(self.pair.dense, theta)

    def attempt(self, rows: Rows, x: Tensor, slope: Tensor, s: Array, ds: Array) -> Attempt:
        """One step of length `ds` from `x` at `s`, whose first slope is known; see `Attempt`."""
        raise PairingError(f"solver {self.name!r} defines no attempt: subclass Native and implement it")


def _fits(value: Any, zero: bool, none: bool) -> bool:
    """Whether an option is a positive number, or one of the other values it may have."""
    if value is None:
        return none
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < float("inf") or (zero and value == 0)


@dataclass(frozen=True)
class NativeExplicit(Native):
    """An explicit pair under the per-sample driver: one evaluation less than stages, the last slope is reused."""

    def attempt(self, rows: Rows, x: Tensor, slope: Tensor, s: Array, ds: Array) -> Attempt:
        """One step of the tableau, whose first slope is the last one of the step before."""
        pair = self.pair
        assert isinstance(pair, EmbeddedPair)
        h = rows.h * torch.from_numpy(ds).to(x).view(-1, 1, 1)
        times = rows.times(s + np.multiply.outer(pair.c[1:], ds))
        slopes, end = [slope], x
        for a, time in zip(pair.a[1:], times, strict=True):
            end = x.addcmul(h, weighted(a, slopes))
            slopes.append(rows.slope(time, end))
        with torch.no_grad():
            error = h * weighted(pair.error, slopes)
        return Attempt(end, slopes[-1], error, h, slopes, len(times))


def weighted(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """Sum of weights_i terms_i."""
    total = terms[0] * weights[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        if weight:
            total.add_(term, alpha=weight)
    return total


for _name, _pair in (("native_bosh3", BOSH3), ("native_dopri5", DOPRI5), ("native_tsit5", TSIT5)):
    register(NativeExplicit(_name, _pair.order, _pair.stages - 1, pair=_pair))
