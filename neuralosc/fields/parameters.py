"""Coefficients of a field, the pace of its channels, and the initialisations its papers use."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralosc.arguments import flag
from neuralosc.field import VectorField
from solvers.errors import InputError, unknown
from solvers.protocol import Time

Value = float | Sequence[float] | Tensor


class Coefficient(nn.Module):
    """A coefficient: a fixed number, fixed per channel, or learned per channel and kept positive by softplus.

    Args:
        name: what to call it in messages.
        value: a number, or one per channel; the starting value of a learned one.
        hidden_size: channels.
        learned: train it, value = softplus(raw).
        minimum: smallest value allowed; a learned one must be above it.
        strict: a fixed one must be above it too.
    """

    raw: Tensor
    dynamics = ("raw",)

    def __init__(
        self,
        name: str,
        value: Value,
        hidden_size: int,
        learned: bool = False,
        minimum: float = 0.0,
        strict: bool = False,
    ) -> None:
        super().__init__()
        flag("learned", learned)
        try:
            exact = torch.as_tensor(value, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{name} is {reprlib.repr(value)}, expected a number, or one per channel") from None
        if exact.dim() > 1 or (exact.dim() == 1 and len(exact) != hidden_size):
            raise InputError(
                f"{name} has shape {tuple(exact.shape)}, expected a number or {hidden_size} values, one per channel"
            )
        above = learned or strict
        wrong = ~torch.isfinite(exact) | (exact <= minimum if above else exact < minimum)
        if bool(wrong.any()):
            bound = f"above {minimum:g}" if above else f"at least {minimum:g}"
            raise InputError(f"{name} is {float(exact[wrong].flatten()[0])}, expected finite and {bound}")
        self.fixed = None if learned or exact.dim() else float(exact)
        rounded = exact.to(torch.get_default_device(), torch.get_default_dtype())
        if learned:
            self.raw = nn.Parameter(inverse_softplus(rounded.expand(hidden_size)))
        elif rounded.dim():
            self.register_buffer("raw", rounded.clone())
        self.learned = learned

    def forward(self) -> float | Tensor:
        """The value: a number, or `(hidden,)`."""
        if self.fixed is not None:
            return self.fixed
        return functional.softplus(self.raw) if self.learned else self.raw

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return f"{self.fixed:g}" if self.fixed is not None else f"per channel{', learned' if self.learned else ''}"


class Paced(VectorField):
    """A field whose channels have a pace of their own: d state/dt = s f(t, state, u), s > 0.

    A subclass calls `set_pace` in its constructor and puts the `pace` among what it prepares.
    """

    scale: Coefficient | None

    def set_pace(self, time_scale: Value | None, learned: bool = False) -> None:
        """Take s: a number, one per channel, or learned per channel from there; None is 1, which costs nothing."""
        value = 1.0 if time_scale is None else time_scale
        paced = flag("learned_time_scale", learned) or time_scale is not None
        self.scale = Coefficient("time_scale", value, self.hidden_size, learned, strict=True) if paced else None

    def pace(self) -> dict[str, Any]:
        """What `prepare` says of s."""
        return {} if self.scale is None else {"time_scale": self.scale()}

    def time_scale(self) -> Time | None:
        """The factor s, a number or `(hidden,)`; None for 1."""
        return None if self.scale is None else self.constants["time_scale"]


def inverse_softplus(value: Tensor) -> Tensor:
    """What softplus turns into `value` > 0; accurate for large values too, where exp would overflow."""
    return value + torch.log(-torch.expm1(-value))


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number within bounds.

    Raises:
        InputError: it is none, or outside them.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {reprlib.repr(value)}, expected a finite number")
    if not least <= value <= most:
        bounds = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise InputError(f"{name} is {value!r}, expected {bounds}")
    return float(value)


def divisor(name: str, value: Any, sizes: Mapping[str, int]) -> int:
    """A positive integer that divides all of these sizes.

    Raises:
        InputError: it does not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a positive integer")
    for what, size in sizes.items():
        if size % value:
            raise InputError(f"{name} is {value}, which does not divide {what} {size}: choose a divisor of both")
    return value


def choice(name: str, value: Any, among: Iterable[str]) -> str:
    """One of some words.

    Raises:
        UnknownNameError: it is none of them.
    """
    if not isinstance(value, str) or value not in among:
        raise unknown(name, value, among)
    return value


def uniform_(parameters: Sequence[Tensor | None], fan_in: int) -> None:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what torch.nn.Linear uses for weight and bias."""
    bound = 1 / math.sqrt(fan_in)
    for parameter in parameters:
        if parameter is not None:
            nn.init.uniform_(parameter, -bound, bound)


def xavier_(parameters: Sequence[Tensor], fan_in: int, fan_out: int) -> None:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), Xavier's, for parts of one matrix of these sizes."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    with torch.no_grad():
        for parameter in parameters:
            parameter.uniform_(-bound, bound)


def skew_mix(matrix: Tensor, beta: float, gamma: float) -> Tensor:
    """beta (M - M^T) + (1 - beta)(M + M^T) - gamma I.

    Its symmetric part has the eigenvalues of (1 - beta)(M + M^T) - gamma I, so that beta near 1 makes it almost skew.
    """
    skew, symmetric = matrix - matrix.T, matrix + matrix.T
    return beta * skew + (1 - beta) * symmetric - gamma * torch.diag(torch.ones_like(matrix[0]))
