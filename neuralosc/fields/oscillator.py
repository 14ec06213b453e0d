"""Second-order fields: the damped, driven oscillators of coRNN and the Hamiltonian ones of UnICORNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.arguments import flag
from neuralosc.field import LinearDrive, Partitioned, Semilinear
from neuralosc.fields.energies import mean_tanh
from neuralosc.fields.parameters import Coefficient, Paced, Value, uniform_
from solvers.base.state import affine, axpy
from solvers.numerics.linear import OscillatorOperator
from solvers.protocol import Time


class Oscillator(LinearDrive, Paced, Partitioned, Semilinear):
    """The coRNN field: damped nonlinear oscillators, coupled in position and velocity.

        dq = p
        dp = tanh(W q + R p + u) - gamma q - epsilon p,    u = V x + b

    Args:
        input_size: features of the input.
        hidden_size: number of oscillators.
        gamma: stiffness, a number or one per channel.
        epsilon: damping, likewise.
        coupled: keep the velocity coupling R; without it the field is separable up to damping.
        learned: train gamma and epsilon, kept positive.
        time_scale: a positive factor on the right-hand side, a number or one per channel; `forward` is without it.
        learned_time_scale: train it, per channel.

    Initialised as published: one `nn.Linear` over the concatenation (x, p, q).

    Source: Rusch & Mishra, Coupled Oscillatory Recurrent Neural Network (coRNN), ICLR 2021, eq. 1.
    """

    terms = frozenset({"damping", "stiffness"})

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        gamma: Value = 1.0,
        epsilon: Value = 1.0,
        coupled: bool = True,
        learned: bool = False,
        time_scale: Value | None = None,
        learned_time_scale: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.set_pace(time_scale, learned_time_scale)
        self.V = nn.Linear(input_size, hidden_size)
        self.W = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.R = nn.Parameter(torch.empty(hidden_size, hidden_size)) if flag("coupled", coupled) else None
        self.gamma = Coefficient("gamma", gamma, hidden_size, learned)
        self.epsilon = Coefficient("epsilon", epsilon, hidden_size, learned)
        self.separable = not coupled
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in = self.input_size + self.hidden_size * (1 if self.R is None else 2)
        uniform_([self.V.weight, self.V.bias, self.W, self.R], fan_in)

    def prepare(self) -> dict[str, Any]:
        """The coefficients, and the couplings as matrices that act from the right."""
        couplings = {"W": self.W.T, "R": None if self.R is None else self.R.T}
        return {"gamma": self.gamma(), "epsilon": self.epsilon(), **couplings, **self.pace()}

    def activation(self, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """tanh(W q + R p + u)."""
        constants = self.constants
        current = affine(u, q, constants["W"])
        return torch.tanh(current if self.R is None else affine(current, p, constants["R"]))

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """tanh(W q + R p + u) - gamma q - epsilon p."""
        constants = self.constants
        return axpy(axpy(self.activation(q, p, u), -constants["gamma"], q), -constants["epsilon"], p)

    def damping(self) -> float | Tensor:
        """Epsilon."""
        value: float | Tensor = self.constants["epsilon"]
        return value

    def operator(self, terms: frozenset[str] | None = None) -> OscillatorOperator:
        """[[0, 1], [-gamma, -epsilon]], with zeros for the terms not chosen."""
        terms, constants = self.terms if terms is None else terms, self.constants
        return OscillatorOperator(
            constants["gamma"] if "stiffness" in terms else 0.0, constants["epsilon"] if "damping" in terms else 0.0
        )

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """(0, the force without the chosen linear terms)."""
        terms, constants = self.terms if terms is None else terms, self.constants
        q, p = state.unbind(-2)
        force = self.activation(q, p, u)
        if "stiffness" not in terms:
            force = axpy(force, -constants["gamma"], q)
        if "damping" not in terms:
            force = axpy(force, -constants["epsilon"], p)
        return torch.stack((torch.zeros_like(force), force), dim=-2)


class HamiltonianOscillator(LinearDrive, Paced, Partitioned):
    """The UnICORNN field: undamped oscillators that see only themselves, each with its own time scale.

        dq = s p
        dp = -s (tanh(w * q + u) + alpha q),    s = sigmoid(c),  u = V x + b

    The factor s is the field's `time_scale()`; `velocity` and `force` are without it. The energy is conserved for
    every channel at constant u.

    Args:
        input_size: features of the input.
        hidden_size: number of oscillators.
        alpha: stiffness, a number or one per channel.
        learned: train alpha, kept positive.
        time_scale: s itself, a number or one per channel above 0; None for the published sigmoid(c), learned.
        learned_time_scale: train the s that was given, per channel, kept positive; c is always trained.

    Initialised as published: w ~ U(0, 1), c ~ U(-0.1, 0.1), V Kaiming uniform with a = 8, b = 0.

    Source: Rusch & Mishra, UnICORNN: A recurrent model for learning very long time dependencies, ICML 2021, eq. 2-4.
    """

    separable = True
    dynamics = ("c",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha: Value = 0.0,
        learned: bool = False,
        time_scale: Value | None = None,
        learned_time_scale: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        # c is what is learned where no time scale is given.
        self.set_pace(time_scale, flag("learned_time_scale", learned_time_scale) and time_scale is not None)
        self.V = nn.Linear(input_size, hidden_size)
        self.w = nn.Parameter(torch.empty(hidden_size))
        self.c = nn.Parameter(torch.empty(hidden_size)) if self.scale is None else None
        self.alpha = Coefficient("alpha", alpha, hidden_size, learned)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.kaiming_uniform_(self.V.weight, a=8)
        nn.init.zeros_(self.V.bias)
        nn.init.uniform_(self.w, 0, 1)
        if self.c is not None:
            nn.init.uniform_(self.c, -0.1, 0.1)

    @property
    def structure(self) -> frozenset[str]:
        """Adds hamiltonian."""
        return super().structure | {"hamiltonian"}

    def prepare(self) -> dict[str, Any]:
        """alpha, and s."""
        return {"alpha": self.alpha(), **(self.pace() if self.c is None else {"time_scale": torch.sigmoid(self.c)})}

    def time_scale(self) -> Time:
        """s = sigmoid(c), or what was given."""
        scale: Time = self.constants["time_scale"]
        return scale

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """-(tanh(w * q + u) + alpha q)."""
        return -axpy(torch.tanh(u.addcmul(self.w, q)), self.constants["alpha"], q)

    def energy(self, state: Tensor, u: Tensor) -> Tensor:
        """Sum of (log cosh(w q + u) - log cosh(u)) / w + alpha q^2 / 2 + p^2 / 2, `(*batch,)`; 0 in the state 0.

        The first term is that of the force, the integral of tanh(w q + u), whatever w.
        """
        q, p = state.unbind(-2)
        potential = q * mean_tanh(u, self.w * q) + self.constants["alpha"] * q.square() / 2
        total: Tensor = (potential + p.square() / 2).sum(-1)
        return total
