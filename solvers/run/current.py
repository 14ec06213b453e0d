"""Whether the input of a one-call solve is the current that a field with a `drive` takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from solvers.base.control import Held, get_control
from solvers.base.drive import control_for, held_for, is_controlled
from solvers.errors import InputError
from solvers.protocol import ControlPath, describe
from solvers.run.sampled import Sampled


def check_current(field: Any, state: Tensor, times: Tensor, path: ControlPath | Sampled) -> None:
    """Refuse raw samples, or no input, where the field needs what its `drive` makes of samples.

    What is wrong would be seen deep inside the field; or, where one channel is broadcast against all, not at all.

    Raises:
        InputError: the channels are not those of the current.
    """
    if not isinstance(path, Held | Sampled):
        return
    given = path.samples if isinstance(path, Sampled) else path.value
    wanted = _channels(field)
    if wanted is None or (given is not None and given.shape[-1:] == (wanted,)):
        return
    if given is None and _does_without(field, state, times):
        return
    got = "no input" if given is None else f"an input {tuple(given.shape)}"
    raise InputError(
        f"field {describe(field)!r} was given {got}, expected its input current of {wanted} channels: give "
        "control=Sampled(field.drive(x), times) for samples x (batch, samples, features)"
    )


def driving(field: Any, path: ControlPath | Sampled) -> ControlPath | Sampled:
    """What the field is given: the input or, of a controlled field, its derivative.

    Raises:
        InputError: a function, whose derivative is not known.
    """
    if not is_controlled(field):
        return path
    if isinstance(path, Sampled):
        return dataclasses.replace(path, control=control_for(field, get_control(path.control)))
    if isinstance(path, Held) and path.value is not None:
        return held_for(field, path.value)
    given = "no input" if isinstance(path, Held) else "a function u(t)"
    raise InputError(
        f"field {describe(field)!r} is driven by the derivative of its input, and that of {given} is not known: give "
        "solvers.Sampled with control 'cubic' or 'linear'"
    )


def _channels(field: Any) -> int | None:
    """Channels of the current that the field makes of samples; None where it has no `drive`, or it cannot be asked."""
    size = getattr(field, "input_size", None)
    drive: Any = getattr(field, "drive", None)
    if not isinstance(field, nn.Module) or drive is None or not isinstance(size, int):
        return None
    like = next(iter(field.parameters()), torch.empty(0))
    try:
        with torch.no_grad():
            return int(drive(like.new_zeros(1, 1, size)).shape[-1])
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None


def _does_without(field: Any, state: Tensor, times: Tensor) -> bool:
    """Whether the field takes None for its current."""
    try:
        with torch.no_grad():
            field(times[..., :1].to(state.dtype).expand(len(state), 1), state, None)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    return True
