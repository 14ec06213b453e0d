"""What drives a field: the input itself or, of a controlled field, its derivative in time.

A controlled differential equation is d x = F(x) d X: the field of d x/dt = f(t, x, dX/dt) is given dX/dt where others
are given the input. Before the first sample nothing is known of X, and no time passes for the state.

Source: Kidger, Morrill, Foster, Lyons, Neural Controlled Differential Equations for Irregular Time Series, NeurIPS
2020.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.control import Control, Held
from solvers.protocol import ControlPath, structure


def is_controlled(field: Any) -> bool:
    """Whether a field is given the derivative of its input."""
    return "controlled" in structure(field)


def control_for(field: Any, control: Control) -> Control:
    """A control whose paths are what the field is given: those of the derivatives for a controlled one."""
    if not is_controlled(field):
        return control
    # Other controls are refused where pairings are checked.
    assert control.derivatives is not None
    return dataclasses.replace(control, paths=control.derivatives)


def clock_for(field: Any, clock: Clock) -> Clock:
    """The clock on which a field is stepped from the first sample on."""
    return clock.from_first() if is_controlled(field) else clock


def held_for(field: Any, value: Tensor) -> Held:
    """What the field is given of an input that stays as it is."""
    return Held(torch.zeros_like(value) if is_controlled(field) else value)


def driven(
    field: Any, control: Control, samples: Sequence[Tensor], clock: Clock
) -> tuple[Sequence[ControlPath], Clock]:
    """What the field is given on each interval, and the intervals."""
    return control_for(field, control).paths(samples, clock), clock_for(field, clock)
