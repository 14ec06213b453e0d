"""LSTMs whose state moves between the samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralosc.field import LinearDrive
from neuralosc.fields.parameters import number, uniform_
from solvers.protocol import Time


class LSTMFlow(LinearDrive):
    """The field of the ODE-LSTM: an LSTM at the samples, between which its output flows and its memory rests.

        dh = W_2 tanh(W_1 h + b_1) + b_2,    dc = 0,    between the samples
        (h+, c+) = LSTM(u, (h, c)),    u = V x + b,     at each sample

    with the LSTM of torch. The state is (h, c). Here a state moves for the time before a sample and then jumps; in the
    published loop the LSTM comes first and the motion, for the timespan of the same sample, after it: the same
    network, whose outputs are those of `advance`.

    Args:
        input_size: features of the input.
        hidden_size: channels.

    Initialised as `torch.nn.LSTM` and `torch.nn.Linear`: all entries U(-1/sqrt(hidden), 1/sqrt(hidden)).

    Source: Lechner, Hasani, Learning Long-Term Dependencies in Irregularly-Sampled Time Series, arXiv:2006.04418, 2020,
    algorithm 1.
    """

    components = 2

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.V, self.W = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)
        self.W_1, self.W_2 = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        uniform_(list(self.parameters()), self.hidden_size)

    @property
    def structure(self) -> frozenset[str]:
        """Impulsive."""
        return super().structure | {"impulsive"}

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side, without input."""
        h, c = state.unbind(-2)
        return torch.stack((self.W_2(torch.tanh(self.W_1(h))), torch.zeros_like(c)), dim=-2)

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The LSTM."""
        h, c = state.unbind(-2)
        return torch.stack(lstm(u + self.W(h), c), dim=-2)


class LSTMDrive(LinearDrive):
    """The field of the ODE-LSTM in its other form: the output of an LSTM drives a continuous-time RNN.

        dh = s tanh(K o + b + R h) - tau h,    dc = do = 0,    between the samples
        (o+, c+) = LSTM(u, (h, c)),    u = V x + b,             at each sample

    The state is (h, c, o): the gates see h, which a sample leaves as it is, and o is held between the samples. As in
    `LSTMFlow` a state moves for the time before a sample, in the published loop after it.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        tau: the rate of the leak, at least 0.
        forget_bias: what is added to the current of the forget gate.

    Initialised as `torch.nn.LSTM` and `torch.nn.Linear`: all entries U(-1/sqrt(hidden), 1/sqrt(hidden)); s as 1.

    Source: Lechner, Hasani, Learning Long-Term Dependencies in Irregularly-Sampled Time Series, arXiv:2006.04418, 2020,
    its code.
    """

    components = 3

    def __init__(self, input_size: int, hidden_size: int, tau: float = 1.0, forget_bias: float = 3.0) -> None:
        super().__init__(input_size, hidden_size)
        self.tau, self.forget_bias = number("tau", tau, 0), number("forget_bias", forget_bias)
        self.V, self.W = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.K, self.R = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)
        self.s = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        uniform_(list(self.parameters()), self.hidden_size)
        nn.init.ones_(self.s)

    @property
    def structure(self) -> frozenset[str]:
        """Impulsive."""
        return super().structure | {"impulsive"}

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side, without input."""
        h, c, o = state.unbind(-2)
        rest = torch.zeros_like(c)
        return torch.stack((self.s * torch.tanh(self.K(o) + self.R(h)) - self.tau * h, rest, rest), dim=-2)

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The LSTM."""
        h, c, _ = state.unbind(-2)
        o, c = lstm(u + self.W(h), c, self.forget_bias)
        return torch.stack((h, c, o), dim=-2)


def lstm(currents: Tensor, c: Tensor, forget_bias: float = 0.0) -> tuple[Tensor, Tensor]:
    """Output and memory of the LSTM of torch, of the currents of its gates and the memory before."""
    i, f, g, o = currents.chunk(4, dim=-1)
    c = torch.sigmoid(f + forget_bias) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
