"""Fields whose Euler steps of length 1 are the recurrent networks of torch.nn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuralosc import arguments
from neuralosc.field import LinearDrive, Relaxing, Semilinear
from neuralosc.fields.parameters import uniform_
from solvers.base.state import affine
from solvers.errors import unknown
from solvers.numerics.linear import DiagonalOperator
from solvers.protocol import Time

NONLINEARITIES = {"tanh": torch.tanh, "relu": torch.relu}


class TorchWeights(LinearDrive):
    """A field with the weights of a layer of `torch.nn.RNN` or `torch.nn.GRU`, drawn as torch draws them.

    `V` holds weight_ih and bias_ih, `W` weight_hh and bias_hh. All entries are U(-1/sqrt(hidden), 1/sqrt(hidden)), in
    the order of torch: one seed gives both the same weights.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        blocks: maps that stand above each other in V and in W.
        bias: both biases, or neither.
    """

    def __init__(self, input_size: int, hidden_size: int, blocks: int, bias: bool) -> None:
        super().__init__(input_size, hidden_size)
        rows, kind = blocks * hidden_size, {"bias": arguments.flag("bias", bias), "device": torch.get_default_device()}
        self.V: nn.Linear = nn.utils.skip_init(nn.Linear, input_size, rows, **kind)
        self.W: nn.Linear = nn.utils.skip_init(nn.Linear, hidden_size, rows, **kind)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        uniform_([self.V.weight, self.W.weight, self.V.bias, self.W.bias], self.hidden_size)


class Relaxation(TorchWeights, Relaxing, Semilinear):
    """The vanilla RNN as a field: the state relaxes towards what the network would jump to.

        dh = -h + phi(W h + b + u),    u = V x + c

    An Euler step of dt = 1 is `torch.nn.RNN`. The linear part is -h.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        nonlinearity: phi, "tanh" or "relu".
        bias: with both biases, or neither.

    Initialised as `torch.nn.RNN`: all entries U(-1/sqrt(hidden), 1/sqrt(hidden)).

    Source: Elman, Finding Structure in Time, Cognitive Science 14, 1990; as a differential equation Funahashi,
    Nakamura, Approximation of Dynamical Systems by Continuous Time Recurrent Neural Networks, Neural Networks 6, 1993.
    """

    def __init__(self, input_size: int, hidden_size: int, nonlinearity: str = "tanh", bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, 1, bias)
        if nonlinearity not in NONLINEARITIES:
            raise unknown("nonlinearity", nonlinearity, NONLINEARITIES)
        self.nonlinearity = nonlinearity

    def prepare(self) -> dict[str, Any]:
        """W as a matrix that acts from the right."""
        return {"W": self.W.weight.T}

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side."""
        return self.nonlinear(t, state, u) - state

    def operator(self, terms: frozenset[str] | None = None) -> DiagonalOperator:
        """-1."""
        return DiagonalOperator(-1.0)

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """phi(W h + b + u)."""
        return self.relaxation(0, t, state.unbind(-2), u)[1].unsqueeze(-2)

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Tensor) -> tuple[Time, Tensor]:
        """1 and phi(W h + b + u)."""
        u = u if self.W.bias is None else u + self.W.bias
        return 1.0, NONLINEARITIES[self.nonlinearity](affine(u, components[0], self.constants["W"]))


class GatedRelaxation(TorchWeights, Relaxing):
    """The GRU as a field: the update gate z slows down how the state relaxes towards the candidate n.

        dh = (1 - z) (n - h),    (u_r, u_z, u_n) = V x + c
        r = sigmoid(W_r h + b_r + u_r),  z = sigmoid(W_z h + b_z + u_z),  n = tanh(u_n + r (W_n h + b_n))

    An Euler step of dt = 1 is `torch.nn.GRU`.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        bias: with both biases, or neither.

    Initialised as `torch.nn.GRU`: all entries U(-1/sqrt(hidden), 1/sqrt(hidden)).

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014, with the reset gate where
    torch has it; as a differential equation De Brouwer, Simm, Arany, Moreau, GRU-ODE-Bayes, NeurIPS 2019, eq. 3.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, 3, bias)

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side."""
        (h,) = state.unbind(-2)
        rate, target = self.relaxation(0, t, (h,), u)
        return (rate * (target - h)).unsqueeze(-2)

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Tensor) -> tuple[Time, Tensor]:
        """1 - z and n."""
        return update(u, self.W(components[0]))


def update(u: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """1 - z and n of the GRU of torch, h+ = h + (1 - z) (n - h), of its currents V x + c and W h + b."""
    u_r, u_z, u_n = u.chunk(3, dim=-1)
    hidden_r, hidden_z, hidden_n = hidden.chunk(3, dim=-1)
    r, z = torch.sigmoid(u_r + hidden_r), torch.sigmoid(u_z + hidden_z)
    return 1 - z, torch.tanh(u_n + r * hidden_n)
