"""Decay while nothing is seen: of a missing value towards the mean of its feature, and of the state of GRU-D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralosc.arguments import features_of, flag
from neuralosc.field import ClosedForm
from neuralosc.fields.gated import update
from neuralosc.fields.parameters import uniform_
from solvers.protocol import Time


def kept(rate: Tensor) -> Tensor:
    """exp(-max(0, rate)), what is left; at 0 with the slope of a positive rate, so that rates of 0 can be learned."""
    return torch.exp(-rate.clamp_min(0))


class Decay(nn.Module):
    """What stands for a missing value: the last one, and with time the mean of the feature.

        x = c last + (1 - c) mean,    c = exp(-max(0, w since + b))

    Attributes:
        w, b: rates and offsets, per feature; trained, and 0 at first, when x is the last value.
        mean: of each feature, a buffer: 0 until it is set, which suits standardized data.

    Source: Che, Purushotham, Cho, Sontag, Liu, Recurrent Neural Networks for Multivariate Time Series with Missing
    Values, Scientific Reports 8 (2018), eq. 3, 4 and 6.
    """

    mean: Tensor
    dynamics = ("w", "b")

    def __init__(self, features: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, last: Tensor, since: Tensor) -> Tensor:
        """What stands for values that were last seen some time ago."""
        return self.mean + kept(self.w * since + self.b) * (last - self.mean)


class GRUDecay(ClosedForm):
    """The field of GRU-D: a state that rests between the samples, and a GRU at each, once the state has decayed.

        dh = 0,    between the samples
        h+ = GRU([x^, h~, m], h~),    h~ = gamma h,    gamma = exp(-max(0, R delta + b)),    at each sample

    with the GRU of torch, which sees h~ in its input, too, as the published code has it (the paper's state enters
    once). A sample is what `missing="mask"` shows of it: the last values, the mask m and the time delta since each
    feature was last seen before; x^ are the values, where they are missing on their way to the mean (`decay`, a
    `Decay`).

    Args:
        input_size: values that are shown of a sample, three for each of its features.
        hidden_size: channels.
        masked: a sample is shown as said; if not, all of it is seen: x^ = x, without m and decay. So are the layers
            of a stack after the first.

    Initialised as `torch.nn.GRU`, R and b too: all entries U(-1/sqrt(hidden), 1/sqrt(hidden)). The rates of `decay`
    start at 0.

    Source: Che, Purushotham, Cho, Sontag, Liu, Recurrent Neural Networks for Multivariate Time Series with Missing
    Values, Scientific Reports 8 (2018), eq. 3 to 13; Du, PyPOTS, 2023.
    """

    dynamics = ("R",)

    def __init__(self, input_size: int, hidden_size: int, masked: bool = True) -> None:
        super().__init__(input_size, hidden_size)
        self.masked = flag("masked", masked)
        features = features_of("mask" if masked else "error", input_size)
        self.decay = Decay(features) if masked else None
        self.R = nn.Linear(features, hidden_size) if masked else None
        self.V = nn.Linear(2 * features if masked else features, 3 * hidden_size)
        self.U = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.W = nn.Linear(hidden_size, 3 * hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        maps = [self.V, self.U, self.W] + ([] if self.R is None else [self.R])
        uniform_([weight for each in maps for weight in (each.weight, each.bias)], self.hidden_size)
        if self.decay is not None:
            nn.init.zeros_(self.decay.w), nn.init.zeros_(self.decay.b)

    @property
    def structure(self) -> frozenset[str]:
        """Impulsive, and at rest between the samples, which is differential, too."""
        return super().structure | {"impulsive", "differential"}

    def drive(self, x: Tensor) -> Tensor:
        """What [x^, m] adds to the gates, `(.., 3 hidden)`, and gamma, `(.., hidden)`, beside each other."""
        if self.decay is None or self.R is None:
            u: Tensor = self.V(x)
            return u
        last, mask, since = x.chunk(3, dim=-1)
        value = mask * last + (1 - mask) * self.decay(last, since)
        return torch.cat((self.V(torch.cat((value, mask), -1)), kept(self.R(since))), -1)

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """Nothing: all happens at the samples."""
        return torch.zeros_like(state)

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Tensor) -> Tensor:
        """The state, at rest."""
        return state

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The GRU after the decay."""
        h, gates = state.squeeze(-2), u[..., : 3 * self.hidden_size]
        if self.masked:
            h = u[..., 3 * self.hidden_size :] * h
        rate, target = update(gates + self.U(h), self.W(h))
        return (h + rate * (target - h)).unsqueeze(-2)
