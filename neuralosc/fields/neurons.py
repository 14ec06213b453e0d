"""First-order neurons with time constants: leaky integrators, and time constants that the network itself sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.field import LinearDrive, Relaxing, Semilinear
from neuralosc.fields.parameters import Coefficient, Value, choice, uniform_
from solvers.base.state import affine, axpy
from solvers.numerics.linear import DiagonalOperator
from solvers.protocol import Time

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}


class LeakyIntegrator(LinearDrive, Relaxing, Semilinear):
    """The field of the continuous-time RNN: leaky integrators that see each other through an activation.

        tau dh = -h + W sigma(h) + u,    u = V x + b

    1 / tau is the field's `time_scale()`; `forward` is without it. The leak is the linear part, so that an exponential
    method decays h by exp(-dt / tau) exactly, whatever dt.

    Args:
        input_size: features of the input.
        hidden_size: neurons.
        tau: time constants, a number or one per channel, above 0.
        learned: train them, per channel, kept positive.
        activation: sigma, "tanh", "sigmoid" or "relu".

    Initialised like `nn.Linear`.

    Source: Funahashi & Nakamura, Approximation of dynamical systems by continuous time recurrent neural networks,
    Neural Networks 6 (1993), eq. 2.1.
    """

    def __init__(
        self, input_size: int, hidden_size: int, tau: Value = 1.0, learned: bool = True, activation: str = "tanh"
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.activation = choice("activation", activation, ACTIVATIONS)
        self.V = nn.Linear(input_size, hidden_size)
        self.W = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.tau = Coefficient("tau", tau, hidden_size, learned, strict=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the time constants stay."""
        self.V.reset_parameters()
        uniform_([self.W], self.hidden_size)

    def prepare(self) -> dict[str, Any]:
        """1 / tau, and W as a matrix that acts from the right."""
        return {"W": self.W.T, "time_scale": 1 / self.tau()}

    def time_scale(self) -> Time:
        """1 / tau."""
        scale: Time = self.constants["time_scale"]
        return scale

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """-h + W sigma(h) + u."""
        return self.nonlinear(t, state, u) - state

    def operator(self, terms: frozenset[str] | None = None) -> DiagonalOperator:
        """The leak, -1."""
        return DiagonalOperator(-1.0)

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """W sigma(h) + u."""
        return self.relaxation(0, t, state.unbind(-2), u)[1].unsqueeze(-2)

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Tensor) -> tuple[Time, Tensor]:
        """1 and W sigma(h) + u."""
        return 1.0, affine(u, ACTIVATIONS[self.activation](components[0]), self.constants["W"])


class LiquidTimeConstant(LinearDrive):
    """The field of liquid time-constant networks: what drives a neuron also sets how fast it is.

        dh = -(1 / tau + f) h + f A,    f = sigma(W h + u),  u = V x + b

    With f in (0, 1) the time constant tau / (1 + tau f) of a neuron stays between tau / (1 + tau) and tau, and h
    between 0 and A once it is there. The fused step of the paper,

        h+ = (h + dt f A) / (1 + dt (1 / tau + f)),

    is `imex_euler`: the field declares its linear part -(1 / tau + f), which depends on the state ("quasilinear").

    Args:
        input_size: features of the input.
        hidden_size: neurons.
        tau: time constants at rest, a number or one per channel, above 0.
        learned: train them, per channel, kept positive.
        activation: sigma, "sigmoid", under which the bounds above hold, or "tanh", which the paper's algorithm has.

    Initialised like `nn.Linear`; A, the reversal potentials, to 1 or -1 at random.

    Source: Hasani, Lechner, Amini, Rus, Grosu, Liquid Time-constant Networks, AAAI 2021, eq. 1 and 3.
    """

    dynamics = ("A",)

    def __init__(
        self, input_size: int, hidden_size: int, tau: Value = 1.0, learned: bool = True, activation: str = "sigmoid"
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.activation = choice("activation", activation, ("sigmoid", "tanh"))
        self.V = nn.Linear(input_size, hidden_size)
        self.W = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.A = nn.Parameter(torch.empty(hidden_size))
        self.tau = Coefficient("tau", tau, hidden_size, learned, strict=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the time constants stay."""
        self.V.reset_parameters()
        uniform_([self.W], self.hidden_size)
        with torch.no_grad():
            self.A.copy_(2.0 * torch.randint(2, self.A.shape) - 1)

    @property
    def structure(self) -> frozenset[str]:
        """Quasilinear."""
        return super().structure | {"quasilinear"}

    def prepare(self) -> dict[str, Any]:
        """1 / tau, and W as a matrix that acts from the right."""
        return {"W": self.W.T, "rate": 1 / self.tau()}

    def conductance(self, state: Tensor, u: Tensor) -> Tensor:
        """The conductance f."""
        (h,) = state.unbind(-2)
        return ACTIVATIONS[self.activation](affine(u, h, self.constants["W"])).unsqueeze(-2)

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """-(1 / tau + f) h + f A."""
        return axpy(self.conductance(state, u) * (self.A - state), -self.constants["rate"], state)

    def frozen(self, t: Time, state: Tensor, u: Tensor) -> tuple[DiagonalOperator, Tensor]:
        """-(1 / tau + f) and f A."""
        f = self.conductance(state, u)
        return DiagonalOperator(-(self.constants["rate"] + f)), f * self.A
