"""Gated units whose memory fades between the samples: on many time scales at once, or at a rate that is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuralosc import arguments
from neuralosc.field import ClosedForm, LinearDrive, Semilinear
from neuralosc.fields.parameters import uniform_, xavier_
from solvers.base.state import affine, over_state
from solvers.numerics.linear import Combination, DiagonalOperator
from solvers.protocol import Time


class MultiscaleTraces(LinearDrive, ClosedForm, Semilinear):
    """The field of the CT-GRU: traces that decay on M time scales, and gates that choose scales to read and to write.

        dh_i = -h_i / tau_i,    dh = sum_i dh_i,    tau_i = 10^(i / 2),  i = 0 .. M - 1      between the samples

        r_i = softmax_i -(R_i h + u - ln tau_i)^2,    q = tanh(Q sum_i r_i h_i + u)          at each sample
        s_i = softmax_i -(S_i h + u - ln tau_i)^2,    h_i+ = (1 - s_i) h_i + s_i q,  h+ = sum_i h_i+

    with u = V x + b, another one for each map. The state is (h, h_0, .., h_M-1), h being the sum of the traces, and
    the only one that is put out; the traces alone are read. The decay is linear and solved exactly ("closed_form").

    The published step has the decay after the update, over the span that follows the sample: here the span of a sample
    is the time before it. Fed the spans shifted by one, both are one network; `advance` decays the last one.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        scales: M, at least 1.

    Initialised with matrices Xavier uniform and zero biases.

    Source: Mozer, Kazakov, Lindsey, Discrete Event, Continuous Time RNNs, 2017, section 3.
    """

    def __init__(self, input_size: int, hidden_size: int, scales: int = 8) -> None:
        super().__init__(input_size, hidden_size, 1 + arguments.count("scales", scales))
        self.scales = scales
        self.V = nn.Linear(input_size, (2 * scales + 1) * hidden_size)
        self.W = nn.Parameter(torch.empty(2 * scales * hidden_size, hidden_size))
        self.Q = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in, gates = self.input_size + self.hidden_size, self.scales * self.hidden_size
        xavier_([self.V.weight[: 2 * gates], self.W], fan_in, gates)
        xavier_([self.V.weight[2 * gates :], self.Q], fan_in, self.hidden_size)
        nn.init.zeros_(self.V.bias)

    @property
    def structure(self) -> frozenset[str]:
        """Linear between the samples, with its solution; impulsive at them."""
        return super().structure | {"differential", "linear", "impulsive"}

    def prepare(self) -> dict[str, Any]:
        """The time scales, `(M, 1)`, and the matrices that act from the right."""
        exponents = torch.arange(self.scales, dtype=torch.float64, device=self.W.device).unsqueeze(-1) / 2
        return {
            "rates": (10**-exponents).to(self.W.dtype),
            "log_tau": (exponents * math.log(10)).to(self.W.dtype),
            "W": self.W.T,
            "Q": self.Q.T,
        }

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The decay."""
        return self.linear(state)

    def operator(self, terms: frozenset[str] | None = None) -> SummedOperator:
        """The decay of the traces and of their sum."""
        return SummedOperator(DiagonalOperator(-self.constants["rates"]))

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """Nothing: the input acts at the samples."""
        return torch.zeros_like(state)

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Tensor) -> Tensor:
        """The traces decayed."""
        rates = self.constants["rates"]
        return summed([state], lambda traces: traces[0] * torch.exp(-(over_state(dt) * rates)))

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The traces after a sample was written into them."""
        traces, gates = state[..., 1:, :], self.scales * self.hidden_size
        u_gates, u_q = u.split([2 * gates, self.hidden_size], dim=-1)
        logits = affine(u_gates, traces.sum(-2), self.constants["W"])
        read, write = (self._weights(part, traces) for part in logits.chunk(2, dim=-1))
        q = torch.tanh(affine(u_q, (read * traces).sum(-2), self.constants["Q"]))
        traces = (1 - write) * traces + write * q.unsqueeze(-2)
        return torch.cat((traces.sum(-2, keepdim=True), traces), dim=-2)

    def _weights(self, logits: Tensor, like: Tensor) -> Tensor:
        """How much of each scale, `(*batch, M, hidden)`."""
        return torch.softmax(-((logits.reshape(like.shape) - self.constants["log_tau"]) ** 2), dim=-2)


class FadingGRU(LinearDrive, ClosedForm):
    """A GRU whose state decays over a gap, at a rate and by an offset that are learned: GRU-D without its masks.

        h -> h exp(-max(0, w dt + c))                       between the samples
        h+ = z h + (1 - z) tanh(W_n (r h) + u_n),           at each sample
        r = sigmoid(W_r h + u_r),  z = sigmoid(W_z h + u_z),    (u_r, u_z, u_n) = V x + b

    The offset c acts however short the gap is, so that the decay is no flow: it has no right-hand side, and one solver
    ("closed_form"). The reset gate acts before the matrix, unlike in `torch.nn.GRU`.

    Args:
        input_size: features of the input.
        hidden_size: channels.

    Initialised like `nn.Linear`; w and c from U(-1, 1).

    Source: Che, Purushotham, Cho, Sontag, Liu, Recurrent Neural Networks for Multivariate Time Series with Missing
    Values, Scientific Reports 8 (2018), the decay of the hidden state; without masks as in the experiments of Lechner,
    Hasani, Learning Long-Term Dependencies in Irregularly-Sampled Time Series, 2020.
    """

    dynamics = ("w", "c")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.V = nn.Linear(input_size, 3 * hidden_size)
        self.W = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.w, self.c = nn.Parameter(torch.empty(hidden_size)), nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        uniform_([self.V.weight, self.V.bias, self.W], self.input_size + self.hidden_size)
        uniform_([self.w, self.c], 1)

    @property
    def structure(self) -> frozenset[str]:
        """Impulsive, besides."""
        return super().structure | {"impulsive"}

    def prepare(self) -> dict[str, Any]:
        """The matrices of the gates and of the candidate, which act from the right."""
        gates, candidate = self.W.T.split([2 * self.hidden_size, self.hidden_size], dim=-1)
        return {"gates": gates, "candidate": candidate}

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Tensor) -> Tensor:
        """The state decayed."""
        return state * over_state(torch.exp(-torch.relu(self.w * dt + self.c)))

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The cell."""
        (h,) = state.unbind(-2)
        u_gates, u_n = u.split([2 * self.hidden_size, self.hidden_size], dim=-1)
        r, z = torch.sigmoid(affine(u_gates, h, self.constants["gates"])).chunk(2, dim=-1)
        n = torch.tanh(affine(u_n, r * h, self.constants["candidate"]))
        return (z * h + (1 - z) * n).unsqueeze(-2)


@dataclass(frozen=True)
class SummedOperator:
    """L on a state whose first component is the sum of the others and changes as they do.

    What it has besides their sum stays.

    Attributes:
        inner: L of the others.
    """

    inner: DiagonalOperator

    def apply(self, state: Tensor) -> Tensor:
        """L x."""
        slope = self.inner.apply(state[..., 1:, :])
        return torch.cat((slope.sum(-2, keepdim=True), slope), dim=-2)

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """(1 - h L)^-1 x."""
        return summed([state], lambda parts: self.inner.solve(h, parts[0]))

    def flow(self, h: Time, state: Tensor) -> Tensor:
        """exp(h L) x."""
        return self.phis(h, 0, state)((state,))

    def phis(self, h: Time, order: int, like: Tensor) -> Combination:
        """phi_k of zero, 1 / k!, acts on what is besides the sum."""
        inner = self.inner.phis(h, order, like)
        return lambda states: summed(states, inner)


def summed(states: Sequence[Tensor], moved: Combination) -> Tensor:
    """What becomes of states x_0, x_1, .. whose first component is the sum of the others, which `moved` combines."""
    others = [x[..., 1:, :] for x in states]
    ends = moved(others)
    total = ends.sum(-2, keepdim=True)
    for k, (x, parts) in enumerate(zip(states, others, strict=True)):
        total = total + (x[..., :1, :] - parts.sum(-2, keepdim=True)) / math.factorial(k)
    return torch.cat((total, ends), dim=-2)
