"""Linear oscillators: the state space of LinOSS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.field import Partitioned, Semilinear
from solvers.errors import InputError
from solvers.linear import OscillatorOperator
from solvers.protocol import Time, axpy


class LinearOscillator(Partitioned, Semilinear):
    """The LinOSS field: uncoupled, driven linear oscillators, with a time scale of their own each.

        dq = s p
        dp = s (u - A q - G p),    u = B x,  A = relu(A_raw),  s = sigmoid(steps)

    The published state is complex with real A, G and s: its real and imaginary parts are two oscillators with the same
    coefficients. With `paired`, channels 0 to n - 1 are the real parts of n of them, n to 2n - 1 the imaginary parts.

    Published discretizations are steps of dt = 1: IMEX is `semi_implicit_euler`, IM `imex_euler` with implicit
    stiffness; with damping IM, IMEX, IMEX2 and IMEX3 are `imex_euler` with damping and stiffness, damping, none and
    stiffness implicit, and EX is `euler`.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        damped: with G, of either sign: what an implicit step may have.
        paired: both halves of the channels share A, G and s, as the parts of complex oscillators do.

    Initialised as published: A_raw, G and steps ~ U(0, 1), B ~ U(-1/sqrt(features), 1/sqrt(features)).

    Source: Rusch & Rus, Oscillatory State-Space Models, ICLR 2025; with damping: Boyer, Rusch & Rus, Learning to
    Dissipate Energy in Oscillatory State-Space Models, 2025.
    """

    separable = True
    terms = frozenset({"damping", "stiffness"})

    def __init__(self, input_size: int, hidden_size: int, damped: bool = False, paired: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        if paired and hidden_size % 2:
            raise InputError(f"hidden_size is {hidden_size}, expected an even number for real and imaginary parts")
        self.paired, count = paired, hidden_size // 2 if paired else hidden_size
        self.A, self.steps = nn.Parameter(torch.empty(count)), nn.Parameter(torch.empty(count))
        self.G = nn.Parameter(torch.empty(count)) if damped else None
        self.B = nn.Parameter(torch.empty(hidden_size, input_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for parameter in (self.A, self.steps, self.G):
            if parameter is not None:
                nn.init.uniform_(parameter, 0, 1)
        bound = self.input_size**-0.5
        nn.init.uniform_(self.B, -bound, bound)

    @property
    def structure(self) -> frozenset[str]:
        """Linear."""
        return super().structure | {"linear"}

    def drive(self, x: Tensor) -> Tensor:
        """B x."""
        return nn.functional.linear(x, self.B)

    def prepare(self) -> dict[str, Any]:
        """A, G and s for every channel."""
        values = {"A": torch.relu(self.A), "G": self.G, "time_scale": torch.sigmoid(self.steps)}
        return {name: v.repeat(2) if self.paired and v is not None else v for name, v in values.items()}

    def time_scale(self) -> Tensor:
        """s = sigmoid(steps)."""
        scale: Tensor = self.constants["time_scale"]
        return scale

    def damping(self) -> Tensor | None:
        """G."""
        value: Tensor | None = self.constants["G"]
        return value

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """u - A q - G p."""
        pulled, damping = axpy(u, -self.constants["A"], q), self.constants["G"]
        return pulled if damping is None else axpy(pulled, -damping, p)

    def operator(self, terms: frozenset[str] | None = None) -> OscillatorOperator:
        """[[0, 1], [-A, -G]], with zeros for the terms not chosen."""
        terms, constants = self.terms if terms is None else terms, self.constants
        damping = constants["G"] if "damping" in terms and self.G is not None else 0.0
        return OscillatorOperator(constants["A"] if "stiffness" in terms else 0.0, damping)

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """(0, the force without the chosen linear terms)."""
        terms, constants = self.terms if terms is None else terms, self.constants
        q, p = state.unbind(-2)
        force = u if "stiffness" in terms else axpy(u, -constants["A"], q)
        if "damping" not in terms and self.G is not None:
            force = axpy(force, -constants["G"], p)
        return torch.stack((torch.zeros_like(q), force.expand_as(q)), dim=-2)
