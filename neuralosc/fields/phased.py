"""The field of the phased LSTM: units that a sample reaches at some phase of their own period alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralosc.field import ClosedForm, LinearDrive
from neuralosc.fields.lstm import lstm
from neuralosc.fields.parameters import inverse_softplus, number, uniform_
from solvers.errors import InputError
from solvers.protocol import Time


class TimeGatedLSTM(LinearDrive, ClosedForm):
    """The field of the phased LSTM: a state that rests between the samples, and an LSTM behind a gate that time opens.

        dh = dc = 0,    between the samples
        (h~, c~) = LSTM(u, (h, c)),  u = V x + b,    (h, c)+ = k (h~, c~) + (1 - k) (h, c),    at each sample
        k = 2 p / r if p < r / 2,    2 - 2 p / r if p < r,    leak p else,    p = ((t - s) mod tau) / tau

    with the LSTM of torch. t is the time of the sample since the beginning, in the unit of dt; a state without a stream
    begins at 0. Period tau, shift s and the ratio r of it in which the gate is open are positive numbers for each unit,
    softplus of what is trained. The state is (h, c).

    Published is also a code in which t is the time since the sample before, tau, s and r are shared by all units, and
    the gate opens along 2 p r, from which it jumps (Lechner, Hasani, 2020). There and here the LSTM sees no c.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        shortest_period: least period at the beginning, in units of time, above 0.
        longest_period: greatest period at the beginning.
        open_ratio: r at the beginning, above 0.
        leak: how far the closed gate is open at the end of a period, at least 0.
        forget_bias: what is added to the current of the forget gate.

    Initialised as `torch.nn.LSTM`, with one bias; log tau is drawn evenly between the logs of
    these periods, s evenly from 0 to tau.

    Source: Neil, Pfeiffer, Liu, Phased LSTM: Accelerating Recurrent Network Training for Long or Event-based Sequences,
    NeurIPS 2016, section 3.
    """

    components = 2
    timed = True
    dynamics = ("tau", "s", "r")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        shortest_period: float = 1.0,
        longest_period: float = 20.0,
        open_ratio: float = 0.05,
        leak: float = 1e-3,
        forget_bias: float = 0.0,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.shortest_period = number("shortest_period", shortest_period, 0)
        self.longest_period = number("longest_period", longest_period, 0)
        self.open_ratio = number("open_ratio", open_ratio, 0)
        self.leak, self.forget_bias = number("leak", leak, 0), number("forget_bias", forget_bias)
        if not 0 < self.shortest_period <= self.longest_period:
            raise InputError(
                f"shortest_period is {shortest_period!r} and longest_period {longest_period!r}, expected one above 0 "
                "and the other no less"
            )
        if not self.open_ratio:
            raise InputError("open_ratio is 0, expected above 0: a gate that never opens lets nothing in")
        self.V, self.W = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.tau, self.s = nn.Parameter(torch.empty(hidden_size)), nn.Parameter(torch.empty(hidden_size))
        self.r = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        uniform_([self.V.weight, self.W.weight, self.V.bias], self.hidden_size)
        with torch.no_grad():
            tau = self.tau.uniform_(math.log(self.shortest_period), math.log(self.longest_period)).exp()
            # A shift of 0 is softplus of no number.
            s = tau * torch.rand_like(tau).clamp_min(torch.finfo(tau.dtype).eps)
            self.tau.copy_(inverse_softplus(tau)), self.s.copy_(inverse_softplus(s))
            self.r.copy_(inverse_softplus(torch.full_like(tau, self.open_ratio)))

    @property
    def structure(self) -> frozenset[str]:
        """Impulsive, and at rest between the samples, which is differential, too."""
        return super().structure | {"impulsive", "differential"}

    def prepare(self) -> dict[str, Any]:
        """Period, shift and open ratio of each unit, `(hidden,)`."""
        return {name: functional.softplus(getattr(self, name)) for name in ("tau", "s", "r")}

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """Nothing: all happens at the samples."""
        return torch.zeros_like(state)

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Tensor) -> Tensor:
        """The state, at rest."""
        return state

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The LSTM, as far as the gate is open."""
        h, c = state.unbind(-2)
        after = torch.stack(lstm(u + self.W(h), c, self.forget_bias), dim=-2)
        k = self.openness(self.phase(t), self.constants["r"])
        return state + k.unsqueeze(-2) * (after - state)

    def phase(self, t: Time) -> Tensor:
        """How much of the period of each unit has passed at a time, from 0 to 1, `(hidden,)` or `(*batch, hidden)`."""
        turns: Tensor = (t - self.constants["s"]) / self.constants["tau"]
        return turns - turns.floor()

    def openness(self, phase: Tensor, ratio: Tensor) -> Tensor:
        """k, the shape of the phase."""
        # Asked in this sense, a phase or a ratio that is no number gives none.
        opening = torch.where(phase >= ratio / 2, 2 - 2 * phase / ratio, 2 * phase / ratio)
        return torch.where(phase >= ratio, self.leak * phase, opening)
