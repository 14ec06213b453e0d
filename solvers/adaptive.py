"""Adaptive methods through torchdiffeq, one interval between samples at a time.

Each interval is mapped to s in [0, 1], dx/ds = dt f(t + s dt, x, u), so that samples with different clocks go through
one call, and the driver never steps across a jump of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torchdiffeq
from torch import Tensor
from torchdiffeq._impl.odeint import SOLVERS as DRIVERS
from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _ButcherTableau

from solvers.errors import InputError, NonFiniteStateError, StepLimitError, StepUnderflowError
from solvers.protocol import ControlPath, Time, increment, over_state
from solvers.solver import Solver, register


@dataclass(frozen=True)
class Adaptive(Solver):
    """An embedded Runge-Kutta pair whose step size follows the estimated error, err_i <= atol + rtol |x_i|.

    The error is measured per sample, as a root mean square over components and channels, and the worst sample
    decides: no sample hides in the average of its batch.

    Attributes:
        rtol: relative tolerance.
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
        h = over_state(increment(field, dt))

        def slope(s: Tensor, x: Tensor) -> Tensor:
            at = t + s * dt
            scaled: Tensor = h * field(at, x, control(at))
            return scaled

        end: Tensor = integrate_unit(slope, state, self)
        return end


def integrate_unit(slope: Callable[..., Any], start: Any, tolerances: Adaptive, reverse: bool = False) -> Any:
    """Integrate dx/ds = slope(s, x) from s = 0 to 1 (from 1 to 0 with `reverse`), landing on the end exactly.

    `start` is a tensor, whose first axis is the batch, or a tuple of tensors.
    """
    first = start[0] if isinstance(start, tuple) else start
    if first.numel() == 0:
        return start
    interval = torch.tensor([1.0, 0.0] if reverse else [0.0, 1.0], dtype=first.dtype, device=first.device)
    options: dict[str, Any] = {"step_t": interval[1:]}
    if not isinstance(start, tuple):
        options["norm"] = worst_sample
    path = torchdiffeq.odeint(
        _Watched(slope, tolerances),
        start,
        interval,
        rtol=tolerances.rtol,
        atol=tolerances.atol,
        method=tolerances.name,
        options=options,
    )
    return tuple(x[-1] for x in path) if isinstance(path, tuple) else path[-1]


def worst_sample(error: Tensor) -> Tensor:
    """The largest root mean square over the samples of a batch."""
    if error.dim() < 3:
        return error.square().mean().sqrt()
    return error.square().mean(dim=(-2, -1)).max().sqrt()


class _Watched:
    """A slope under watch: turns each way torchdiffeq's driver can fail into an error that says where."""

    def __init__(self, slope: Callable[..., Any], tolerances: Adaptive) -> None:
        self.slope, self.tolerances, self.attempts = slope, tolerances, 0
        self.last: Any = None

    def __call__(self, s: Tensor, x: Any) -> Any:
        self.last = self.slope(s, x)
        return self.last

    def callback_step(self, s: Tensor, x: Any, ds: Tensor) -> None:
        """Called by the driver before each attempted step."""
        name, limit = self.tolerances.name, self.tolerances.max_steps
        for value, what in ((x, "state"), (self.last, "slope")):
            sample = non_finite_sample(value)
            if sample is not None:
                raise NonFiniteStateError(f"the {what} became non-finite under solver {name!r}", sample=sample)
        self.attempts += 1
        if self.attempts > limit:
            raise StepLimitError(
                f"solver {name!r} used up max_steps = {limit:g} at {float(s):.3g} of an interval",
                sample=_largest_sample(self.last),
            )
        if not s + ds > s:
            raise StepUnderflowError(
                f"the step of solver {name!r} shrank to {float(ds):.3g} of an interval",
                sample=_largest_sample(self.last),
            )


def non_finite_sample(x: Any) -> int | None:
    """The first sample of a tensor (or of one in a tuple) with a NaN or infinite entry."""
    for part in x if isinstance(x, tuple) else (x,):
        finite = torch.isfinite(part)
        if not bool(finite.all()):
            return int((~finite).reshape(part.shape[0], -1).any(1).nonzero()[0]) if part.dim() > 1 else 0
    return None


def _largest_sample(slope: Any) -> int | None:
    """The sample with the largest slope: the one that most likely drives the step size down."""
    if not isinstance(slope, Tensor) or slope.dim() < 2:
        return None
    return int(slope.detach().abs().reshape(slope.shape[0], -1).amax(1).argmax())


def _tsit5_dense(x: float) -> list[float]:
    """Weights of the stages of Tsit5 for the state at the fraction x of a step (Tsitouras 2011, section 3)."""
    return [
        -1.0530884977290216 * x * (x - 1.3299890189751412) * (x**2 - 1.4364028541716351 * x + 0.7139816917074209),
        0.1017 * x**2 * (x**2 - 2.1966568338249754 * x + 1.2949852507374631),
        2.490627285651252793 * x**2 * (x**2 - 2.38535645472061657 * x + 1.57803468208092486),
        -16.54810288924490272 * (x - 1.21712927295533244) * (x - 0.61620406037800089) * x**2,
        47.37952196281928122 * (x - 1.203071208372362603) * (x - 0.658047292653547382) * x**2,
        -34.87065786149660974 * (x - 1.2) * (x - 0.666666666666666667) * x**2,
        2.5 * (x - 1) * (x - 0.6) * x**2,
    ]


# Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, Comput. Math.
# Appl. 62 (2011).
TSIT5_A = (
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
)
TSIT5_ERROR = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    1 / 66,
)


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
