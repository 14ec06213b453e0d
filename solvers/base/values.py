"""What can be said of a tensor's values: whether they are known, and finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from solvers.errors import PairingError

_functorch: Any = torch._C._functorch


def non_finite_sample(x: Any) -> int | None:
    """The first sample of a tensor (or of one in a tuple) with a NaN or infinite entry."""
    for part in x if isinstance(x, tuple) else (x,):
        finite = torch.isfinite(part)
        if not bool(finite.all()):
            return int((~finite).reshape(part.shape[0], -1).any(1).nonzero()[0]) if part.dim() > 1 else 0
    return None


def working(dtype: torch.dtype) -> torch.dtype:
    """The type to step in: a state of few significant bits would lose what a small step adds to it."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def exact(device: torch.device, least: torch.dtype) -> torch.dtype:
    """The type of clocks: double precision where the device has it, elsewhere single, or `least`."""
    return torch.float64 if device.type != "mps" else working(least if least.is_floating_point else torch.float32)


def asked(state: Tensor) -> torch.dtype:
    """The type whose digits products are to have: that of autocast, which leaves float64 alone, or of the state."""
    device = state.device.type
    autocast = torch.is_autocast_enabled(device) and state.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else state.dtype


def concrete(x: Tensor) -> bool:
    """Whether the values of a tensor can be looked at: not while compiling, nor inside a function transform."""
    return not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def finite(x: Tensor) -> bool:
    """Whether all values are numbers; so taken while they cannot be looked at."""
    # The sum is cheap; it may overflow where no entry does.
    return not concrete(x) or math.isfinite(float(x.detach().sum())) or bool(torch.isfinite(x).all())


def host(x: Tensor) -> np.ndarray:
    """The values of a tensor as an array, also where a transform differentiates.

    Raises:
        PairingError: `torch.func.vmap` hides them.
    """
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            raise PairingError(
                "the values of a tensor are needed here, which torch.func.vmap hides: put the samples into the axis of "
                "the batch instead, or use a method of fixed step and times that are shared"
            )
        x = _functorch.get_unwrapped(x)
    # Whatever is done to it would be wrapped again.
    with temporarily_clear_interpreter_stack():
        values: np.ndarray = x.detach().cpu().numpy()
    return values


def differentiated(x: Tensor) -> bool:
    """Whether a transform of `torch.func` maps or differentiates a tensor."""
    return bool(_functorch.is_gradtrackingtensor(x) or _functorch.is_batchedtensor(x))


def transformed() -> bool:
    """Whether a function transform or a forward-mode derivative is being computed around this."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def followed(x: Tensor) -> bool:
    """Whether a derivative with respect to a tensor may be asked for."""
    return x.requires_grad or not concrete(x)


def exporting() -> bool:
    """Whether `torch.export` is writing the operations down, as a program for all values: none can be looked at."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
