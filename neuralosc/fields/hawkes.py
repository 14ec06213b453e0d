"""The field of the neural Hawkes process: an LSTM whose memory goes, between the samples, to where it comes to rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralosc.field import ClosedForm, LinearDrive
from neuralosc.fields.lstm import lstm
from neuralosc.fields.parameters import uniform_
from solvers.base.state import affine
from solvers.protocol import Time


class DecayingLSTM(LinearDrive, ClosedForm):
    """The field of the continuous-time LSTM: a memory that decays towards another one, and an LSTM for each of them.

        dc = -d (c - m),  dh = o d/dt tanh(c),  dm = do = dd = 0,    between the samples
        c+ = f c + i g,  m+ = f' m + i' g,  h+ = o+ tanh(c+),        at each sample
        i, f, g, o of the LSTM of torch, i', f' = sigmoid(.), d+ = softplus(.), all linear in (x, h)

    The state is (h, c, m, o, d): output, memory, what it decays to, output gate and rate. Between the samples it has a
    solution, c = m + (c0 - m) exp(-d t) and with it h = o tanh(c), which "closed_form" takes. A state begins with h at
    rest, o = d = 0.

    In the published loop of Lechner and Hasani the update comes first and the decay over the timespan of the same
    sample after it, and the next update goes on from c as it was before the decay; here, as in the paper, from c as it
    has become.

    Args:
        input_size: features of the input.
        hidden_size: channels.

    Initialised as `torch.nn.LSTM`, with one bias.

    Source: Mei, Eisner, The Neural Hawkes Process: A Neurally Self-Modulating Multivariate Point Process, NeurIPS 2017,
    section 3.2.
    """

    components = 5

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.V, self.W = nn.Linear(input_size, 7 * hidden_size), nn.Parameter(torch.empty(7 * hidden_size, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        uniform_([self.V.weight, self.W, self.V.bias], self.hidden_size)

    @property
    def structure(self) -> frozenset[str]:
        """Impulsive; between the samples it is differential, too."""
        return super().structure | {"impulsive", "differential"}

    def prepare(self) -> dict[str, Any]:
        """W as a matrix that acts from the right."""
        return {"W": self.W.T}

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The decay."""
        _, c, m, o, d = state.unbind(-2)
        slope, rest = -d * (c - m), torch.zeros_like(c)
        return torch.stack((o * (1 - torch.tanh(c) ** 2) * slope, slope, rest, rest, rest), dim=-2)

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Tensor) -> Tensor:
        """The state decayed."""
        h, c, m, o, d = state.unbind(-2)
        after = m + (c - m) * torch.exp(-d * dt)
        return torch.stack((h + o * (torch.tanh(after) - torch.tanh(c)), after, m, o, d), dim=-2)

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """Both updates, and the new gate and rate."""
        h, c, m, _, _ = state.unbind(-2)
        currents, others = affine(u, h, self.constants["W"]).split([4 * self.hidden_size, 3 * self.hidden_size], dim=-1)
        _, _, g, o = currents.chunk(4, dim=-1)
        enter, keep, rate = others.chunk(3, dim=-1)
        h, c = lstm(currents, c)
        m = torch.sigmoid(keep) * m + torch.sigmoid(enter) * torch.tanh(g)
        return torch.stack((h, c, m, torch.sigmoid(o), functional.softplus(rate)), dim=-2)
