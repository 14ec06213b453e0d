"""GRU-ODE-Bayes: a state that predicts what will be seen, moves between the samples and is corrected by what is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.arguments import count, features_of, flag
from neuralosc.field import Relaxing
from neuralosc.fields.gated import update
from neuralosc.fields.parameters import uniform_
from solvers.protocol import Time


class GRUBayes(Relaxing):
    """The field of GRU-ODE-Bayes: a GRU as a differential equation, and another one that is told of the samples.

        dh = (1 - z) (n - h),    between the samples
        r, z = sigmoid(R h + P p + b),    n = tanh(U (r h) + P_n p + b_n),    p = p(h)
        h+ = GRU(v, h),    at each sample of which a feature was seen

    p(h) = (mean, log variance) of each feature is what is expected of a sample, a network of one hidden layer with
    relu. v is made of each feature x by itself, and 0 where it was not seen:

        v = relu([x, mean, log variance, e] w + b),    e = (x - mean) / standard deviation

    A sample is what `missing="mask"` shows of it, whose third part, the time, is not used.

    Args:
        input_size: values that are shown of a sample, three for each of its features.
        hidden_size: channels.
        p_hidden: channels of the hidden layer of p.
        prep_hidden: channels of v for each feature.
        full: with a reset gate r; if not, the update gate z is in its place ("minimal").
        impute: between the samples p drives the state; if not, there are neither p nor b there, and the state moves by
            itself.
        logvar: p is (mean, log variance); if not, it is (mean, y) and the variance, which takes the place of its log,
            is |y| + 1e-6.
        masked: a sample is shown as said; if not, all of it is x and was seen. So are the layers of a stack after the
            first.

    Initialised as `nn.Linear` and `torch.nn.GRU`; w from N(0, 2 / (4 + prep_hidden)), its b at 0.1.

    Source: De Brouwer, Simm, Arany, Moreau, GRU-ODE-Bayes: Continuous modeling of sporadically-observed time series,
    NeurIPS 2019, eq. 3, 5 and 6, appendix G; and its code.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        p_hidden: int = 25,
        prep_hidden: int = 10,
        full: bool = True,
        impute: bool = True,
        logvar: bool = True,
        masked: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.full, self.impute, self.logvar = flag("full", full), flag("impute", impute), flag("logvar", logvar)
        self.masked = flag("masked", masked)
        self.features, gates = features_of("mask" if masked else "error", input_size), 2 if full else 1
        count("p_hidden", p_hidden), count("prep_hidden", prep_hidden)
        outputs = 2 * self.features
        self.p = nn.Sequential(nn.Linear(hidden_size, p_hidden), nn.ReLU(), nn.Linear(p_hidden, outputs))
        self.R = nn.Linear(hidden_size, gates * hidden_size, bias=False)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)
        self.P = nn.Linear(outputs, (gates + 1) * hidden_size) if impute else None
        self.w = nn.Parameter(torch.empty(self.features, 4, prep_hidden))
        self.b = nn.Parameter(torch.empty(self.features, prep_hidden))
        self.V = nn.Linear(self.features * prep_hidden, 3 * hidden_size)
        self.W = nn.Linear(hidden_size, 3 * hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for each in (*self.p, self.R, self.U, self.P):
            if isinstance(each, nn.Linear):
                each.reset_parameters()
        uniform_([self.V.weight, self.W.weight, self.V.bias, self.W.bias], self.hidden_size)
        nn.init.normal_(self.w, std=math.sqrt(2 / (4 + self.w.shape[-1])))
        nn.init.constant_(self.b, 0.1)

    @property
    def structure(self) -> frozenset[str]:
        """Adds impulsive."""
        return super().structure | {"impulsive"}

    def prepare(self) -> dict[str, Any]:
        """What mean, log variance and e add to v, as matrices that act from the right."""
        return {name: _apart(self.w[:, i]) for i, name in enumerate(("mean", "spread", "error"), 1)}

    def drive(self, x: Tensor) -> Tensor:
        """X, what it adds to v, where v is not 0, and 1 if any feature was seen, else 0, beside each other."""
        mask, prep = torch.ones_like(x), self.w.shape[-1]
        if self.masked:
            x, mask, _ = x.chunk(3, dim=-1)
        prepared = (x.unsqueeze(-1) * self.w[:, 0] + self.b).flatten(-2)
        return torch.cat((x, prepared, mask.repeat_interleave(prep, -1), mask.amax(-1, keepdim=True)), -1)

    def prediction(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each feature, `(.., features)` each, that h `(.., hidden)` expects."""
        mean, spread = self.p(h).chunk(2, dim=-1)
        return mean, self._variance(spread)

    def _variance(self, spread: Tensor) -> Tensor:
        """Of the second half of p."""
        return torch.exp(spread) if self.logvar else spread.abs() + 1e-6

    def towards(self, h: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor]:
        """1 - z and n at h, driven by p, which is not looked at without `impute`."""
        size, gates = self.hidden_size, self.R(h)
        currents = None if self.P is None else self.P(p)
        gates = torch.sigmoid(gates if currents is None else gates + currents[..., :-size])
        # Of the minimal field both are the one gate there is.
        r, z = gates[..., :size], gates[..., -size:]
        drift = self.U(r * h)
        return 1 - z, torch.tanh(drift if currents is None else drift + currents[..., -size:])

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Tensor) -> tuple[Time, Tensor]:
        """1 - z and n."""
        (h,) = components
        return self.towards(h, self.p(h) if self.impute else None)

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side, which sees no sample."""
        (h,) = state.unbind(-2)
        rate, target = self.towards(h, self.p(h) if self.impute else None)
        return (rate * (target - h)).unsqueeze(-2)

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The GRU that is told of the sample, or the state where no feature was seen."""
        (h,) = state.unbind(-2)
        width = self.w.shape[-1] * self.features
        x, prepared = u[..., : self.features], u[..., self.features : self.features + width]
        mask, seen = u[..., self.features + width : -1], u[..., -1:]
        mean, spread = self.p(h).chunk(2, dim=-1)
        spread = spread if self.logvar else self._variance(spread)
        error = (x - mean) * (torch.exp(-spread / 2) if self.logvar else spread.rsqrt())
        maps = self.constants
        v = prepared + mean @ maps["mean"] + spread @ maps["spread"] + error @ maps["error"]
        rate, target = update(self.V(torch.relu(v) * mask), self.W(h))
        return (h + seen * rate * (target - h)).unsqueeze(-2)


def _apart(weight: Tensor) -> Tensor:
    """Of weights `(features, prep)` the matrix `(features, features * prep)` that maps each feature by itself."""
    return torch.diag_embed(weight.T).permute(1, 2, 0).flatten(1)
