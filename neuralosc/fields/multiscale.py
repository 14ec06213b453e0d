"""Two coupled first-order systems whose time scales depend on the state: long expressive memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.field import LinearDrive, Partitioned, Relaxing
from solvers.protocol import Time


class Multiscale(LinearDrive, Relaxing, Partitioned):
    """The LEM field: a fast and a slow state that set each other's pace.

        dq = g1 (tanh(Z p + u_z) - q),    g1 = sigmoid(W1 q + u_1)
        dp = g2 (tanh(W q + u_y) - p),    g2 = sigmoid(W2 q + u_2),    (u_1, u_2, u_z, u_y) = V x + b

    q is the published y, p the published z. `coupling` holds W1, W2 and W, `transform` Z, each with a bias. The
    published step is semi-implicit Euler: p+ from q, then q+ from p+ with its gate at q.

    Args:
        input_size: features of the input.
        hidden_size: channels of q and of p.

    Initialised as published: all weights and biases U(-1/sqrt(hidden), 1/sqrt(hidden)).

    Source: Rusch, Mishra, Erichson, Mahoney, Long Expressive Memory for Sequence Modeling, ICLR 2022, eq. 1-3.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.V = nn.Linear(input_size, 4 * hidden_size)
        self.coupling = nn.Linear(hidden_size, 3 * hidden_size)
        self.transform = nn.Linear(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def prepare(self) -> dict[str, Any]:
        """The maps of q, as matrices that act from the right, and their biases."""
        first, second, third = self.coupling.weight.chunk(3)
        return {
            "W1": first.T,
            "W2": second.T,
            "W": third.T,
            "Z": self.transform.weight.T,
            "bias": torch.cat((self.coupling.bias[: 2 * self.hidden_size], self.transform.bias)),
            "bias_y": self.coupling.bias[2 * self.hidden_size :],
        }

    def velocity(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """g1 (tanh(Z p + u_z) - q)."""
        gate, target = self.relaxation(0, t, (q, p), u)
        return gate * (target - q)

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """g2 (tanh(W q + u_y) - p)."""
        gate, target = self.relaxation(1, t, (q, p), u)
        return gate * (target - p)

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Tensor) -> tuple[Time, Tensor]:
        """g1 and tanh(Z p + u_z) of q, g2 and tanh(W q + u_y) of p."""
        constants, (q, p), (u1, u2, uz, uy) = self.constants, components, u.chunk(4, dim=-1)
        b1, b2, bz = constants["bias"].chunk(3)
        if place:
            gate = torch.sigmoid(q @ constants["W2"] + (u2 + b2))
            return gate, torch.tanh(q @ constants["W"] + (uy + constants["bias_y"]))
        gate = torch.sigmoid(q @ constants["W1"] + (u1 + b1))
        return gate, torch.tanh(p @ constants["Z"] + (uz + bz))
