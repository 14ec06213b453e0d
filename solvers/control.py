"""Controls: what the input current u is between the samples.

A control turns the sampled currents into one path per interval, `path(t) -> u`, which solvers ask at their stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.clock import Clock
from solvers.errors import InputError
from solvers.protocol import ControlPath, Time
from solvers.registry import Registry


@dataclass(frozen=True)
class Control:
    """How samples u_i at the ends of the intervals become a path on each interval.

    Attributes:
        name: the registered name.
        paths: from the samples and the clock to one path per interval.
    """

    name: str
    paths: Callable[[Sequence[Tensor], Clock], Sequence[ControlPath]]


@dataclass(eq=False)
class Held:
    """u(t) = value."""

    value: Tensor

    def __call__(self, t: Time) -> Tensor:
        """The value, at any time."""
        return self.value


@dataclass(eq=False)
class Ramp:
    """u(t) = first + (t - start) / span (last - first); `last` where the span is zero."""

    start: Time
    span: Time
    first: Tensor
    last: Tensor

    def __call__(self, t: Time) -> Tensor:
        """The point of the ramp at time t."""
        if isinstance(self.span, Tensor):
            empty = self.span == 0
            fraction: Time = torch.where(empty, 1.0, (t - self.start) / torch.where(empty, 1.0, self.span))
        else:
            fraction = (t - self.start) / self.span if self.span else 1.0
        return self.first + fraction * (self.last - self.first)


def _hold(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    return [Held(u) for u in samples]


def _linear(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    # Before the first sample nothing is known, so the first interval holds it: no path looks ahead of its sample.
    previous = [*samples[:1], *samples[:-1]]
    return [Ramp(t, span, a, b) for t, span, a, b in zip(clock.starts, clock.spans, previous, samples, strict=True)]


def path_tensors(path: ControlPath) -> dict[str, Tensor]:
    """The tensors a path of this module is made of, by name: what a gradient with respect to the input flows to."""
    if not dataclasses.is_dataclass(path):
        raise InputError(
            f"a control path of type {type(path).__name__} hides the tensors it is made of: "
            "use a Control of solvers.control, or gradient 'backprop'"
        )
    values = {f.name: getattr(path, f.name) for f in dataclasses.fields(path)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def with_path_tensors(path: ControlPath, tensors: dict[str, Tensor]) -> ControlPath:
    """The same path made of other tensors."""
    replaced: ControlPath = dataclasses.replace(path, **tensors)  # type: ignore[type-var]
    return replaced


CONTROLS: Registry[Control] = Registry("control")
#: u = u_i on the whole interval that ends at sample i: what a recurrent network does.
CONTROLS.add("hold", Control("hold", _hold))
#: From u_{i-1} to u_i on the interval that ends at sample i.
CONTROLS.add("linear", Control("linear", _linear))


def get_control(control: str | Control) -> Control:
    """The control of a name; a Control value is returned as it is."""
    if isinstance(control, Control):
        return control
    if not isinstance(control, str):
        raise InputError(f"control is {control!r}, expected a name or a Control: choose among {', '.join(CONTROLS)}")
    return CONTROLS[control]
