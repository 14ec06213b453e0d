"""First-order fields: the Lipschitz RNN, plain and gated, the residual and the antisymmetric RNN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.arguments import flag
from neuralosc.field import LinearDrive, Semilinear
from neuralosc.fields.parameters import Paced, Value, number, skew_mix
from solvers.base.state import affine
from solvers.numerics.linear import DenseOperator
from solvers.protocol import Time


def _input_map(input_size: int, hidden_size: int) -> nn.Linear:
    """A linear map initialised as in the published Lipschitz code: Xavier normal, zero bias."""
    linear = nn.Linear(input_size, hidden_size)
    nn.init.xavier_normal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Lipschitz(Paced, Semilinear):
    """The Lipschitz RNN field: a linear part and a nonlinearity with Lipschitz constant 1 inside.

        dh = alpha h A + tanh(h W + u),    u = V x + b
        A and W each beta (M - M^T) + (1 - beta)(M + M^T) - gamma I, acting from the right

    Gated: dh = (alpha h A + tanh(h W + u)) * sigmoid(h W + u_gate), with an input map of its own for the gate; this
    one is not semilinear.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        beta: 1 makes A and W skew but for gamma, 0 symmetric.
        gamma: decay.
        alpha: factor of the linear part.
        gated: the gated variant.
        init_std: entries of both M are drawn from N(0, (init_std / hidden)^2).
        gamma_W: decay in W, where it is not that in A.
        time_scale: a positive factor on the right-hand side, a number or one per channel.
        learned_time_scale: train it, per channel.

    Source: Erichson, Azencot, Queiruga, Hodgkinson, Mahoney, Lipschitz Recurrent Neural Networks, ICLR 2021, eq. 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        beta: float = 0.75,
        gamma: float = 0.001,
        alpha: float = 1.0,
        gated: bool = False,
        init_std: float = 1.0,
        gamma_W: float | None = None,
        time_scale: Value | None = None,
        learned_time_scale: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.set_pace(time_scale, learned_time_scale)
        self.beta, self.gamma = number("beta", beta, 0, 1), number("gamma", gamma)
        self.gamma_W = self.gamma if gamma_W is None else number("gamma_W", gamma_W)
        self.alpha, self.init_std = number("alpha", alpha), number("init_std", init_std, 0)
        self.gated = flag("gated", gated)
        self.V = _input_map(input_size, hidden_size)
        self.V_gate = nn.Linear(input_size, hidden_size) if gated else None
        self.A = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.W = nn.Parameter(torch.empty(hidden_size, hidden_size))
        nn.init.normal_(self.A, std=init_std / hidden_size)
        nn.init.normal_(self.W, std=init_std / hidden_size)

    @property
    def structure(self) -> frozenset[str]:
        """Semilinear, unless gated."""
        return super().structure - ({"semilinear"} if self.gated else set())

    def drive(self, x: Tensor) -> Tensor:
        """V x + b; gated: followed by the current of the gate."""
        u: Tensor = self.V(x)
        return u if self.V_gate is None else torch.cat((u, self.V_gate(x)), dim=-1)

    def prepare(self) -> dict[str, Any]:
        """The effective matrices."""
        return {
            "A": self.alpha * skew_mix(self.A, self.beta, self.gamma),
            "W": skew_mix(self.W, self.beta, self.gamma_W),
            **self.pace(),
        }

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side."""
        constants = self.constants
        (h,) = state.unbind(-2)
        if not self.gated:
            return affine(torch.tanh(affine(u, h, constants["W"])), h, constants["A"]).unsqueeze(-2)
        current, gate = u.chunk(2, dim=-1)
        coupling = h @ constants["W"]
        slope = affine(torch.tanh(coupling + current), h, constants["A"])
        return (slope * torch.sigmoid(coupling + gate)).unsqueeze(-2)

    def operator(self, terms: frozenset[str] | None = None) -> DenseOperator:
        """A, from the right."""
        return DenseOperator(self.constants["A"])

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """tanh(h W + u)."""
        (h,) = state.unbind(-2)
        return torch.tanh(affine(u, h, self.constants["W"])).unsqueeze(-2)


class Residual(LinearDrive, Paced):
    """The residual RNN field, with no decay and no constraint.

        dh = tanh(h W + u),    u = V x + b

    Args:
        input_size: features of the input.
        hidden_size: channels.
        init_std: entries of W are drawn from N(0, (init_std / hidden)^2).
        time_scale: a positive factor on the right-hand side, a number or one per channel.
        learned_time_scale: train it, per channel.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        init_std: float = 1.0,
        time_scale: Value | None = None,
        learned_time_scale: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.set_pace(time_scale, learned_time_scale)
        self.init_std = number("init_std", init_std, 0)
        self.V = _input_map(input_size, hidden_size)
        self.W = nn.Parameter(torch.empty(hidden_size, hidden_size))
        nn.init.normal_(self.W, std=init_std / hidden_size)

    def coupling(self) -> Tensor:
        """The matrix that acts on h from the right."""
        return self.W

    def prepare(self) -> dict[str, Any]:
        """The effective matrix."""
        return {"W": self.coupling(), **self.pace()}

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side."""
        (h,) = state.unbind(-2)
        return torch.tanh(affine(u, h, self.constants["W"])).unsqueeze(-2)


class Antisymmetric(Residual):
    """The antisymmetric RNN field: a Jacobian with eigenvalues near the imaginary axis.

        dh = tanh(h (M - M^T - gamma I) + u),    u = V x + b

    Args:
        input_size: features of the input.
        hidden_size: channels.
        gamma: decay.
        init_std: entries of M are drawn from N(0, (init_std / hidden)^2).
        time_scale: a positive factor on the right-hand side, a number or one per channel.
        learned_time_scale: train it, per channel.

    Source: Chang, Chen, Haber, Chi, AntisymmetricRNN: A Dynamical System View on Recurrent Neural Networks, ICLR 2019.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        gamma: float = 0.001,
        init_std: float = 1.0,
        time_scale: Value | None = None,
        learned_time_scale: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, init_std, time_scale, learned_time_scale)
        self.gamma = number("gamma", gamma)

    def coupling(self) -> Tensor:
        """M - M^T - gamma I."""
        return skew_mix(self.W, 1.0, self.gamma)
