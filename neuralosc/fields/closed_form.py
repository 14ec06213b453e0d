"""The closed-form continuous-time network: a map over any gap that was learned as such, without an equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralosc import arguments
from neuralosc.field import ClosedForm, LinearDrive
from neuralosc.fields.parameters import choice, uniform_, xavier_
from solvers.base.state import affine
from solvers.errors import InputError
from solvers.protocol import Time


def lecun_tanh(z: Tensor) -> Tensor:
    """1.7159 tanh(0.666 z), the published constants: LeCun et al., Efficient BackProp, 1998, has 2/3."""
    return 1.7159 * torch.tanh(0.666 * z)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lecun_tanh": lecun_tanh,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
#: Maps of what the backbone gives, by mode: f, and g, a and b.
HEADS = {"default": 4, "no_gate": 4, "pure": 1}


class ClosedFormContinuous(LinearDrive, ClosedForm):
    """The map of closed-form continuous-time networks (CfC) from sample to sample, dt being the time between them.

        h+ = (1 - s) f + s g,                     s = sigmoid(a dt + b)     "default"
        h+ = f + s g                                                        "no_gate"
        h+ = A - A f exp(-dt (|w| + |f|))                                   "pure"

    f, g, a and b are linear in z, f and g inside a tanh, but for "pure", where f has none. z is what the backbone gives
    for (x, h): layers z -> activation(M z + m), or (x, h) itself if there are none.

    It is no flow: two steps of dt / 2 are another map than one of dt, and at dt = 0 the state does not stay, h+ being
    the mixture with s = sigmoid(b). So it has no right-hand side, one solver ("closed_form"), and one step an interval;
    a sample at a timespan of 0 acts as published.

    With a mixed memory the state is (h, c), and an LSTM cell comes first, whose output stands for h in the map:

        c+ = c sigmoid(r + 1) + tanh(n) sigmoid(i),    h = tanh(c+) sigmoid(o),    (n, i, r, o) linear in (x, h)

    Args:
        input_size: features of the input.
        hidden_size: channels.
        mode: "default", "no_gate" or "pure".
        backbone_layers: layers of the backbone, at least 0.
        backbone_units: channels of each.
        activation: of the backbone, "lecun_tanh", "tanh", "relu", "gelu" or "silu".
        mixed_memory: with the LSTM cell.

    Attributes:
        V, W: what acts on x, with a bias, and on h: the first layer of the backbone, or f, g, a and b if there is none;
            V has the maps of the LSTM cell below it, whose W is R.
        backbone: its other layers.
        heads: f, g, a and b, in this order; None without a backbone.
        A, w: of "pure".

    Initialised as published: matrices, A and w Xavier uniform, R orthogonal, biases like `nn.Linear`.

    Source: Hasani, Lechner, Amini, Liebenwein, Ray, Tschaikowski, Teschl, Rus, Closed-form Continuous-time Neural
    Networks, Nature Machine Intelligence 4 (2022), eq. 2 ("pure") and 10 (the others); the mixed memory is that of
    Lechner, Hasani, Learning Long-Term Dependencies in Irregularly-Sampled Time Series, 2020.
    """

    dynamics = ("A", "w")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        mode: str = "default",
        backbone_layers: int = 1,
        backbone_units: int = 128,
        activation: str = "lecun_tanh",
        mixed_memory: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, 2 if arguments.flag("mixed_memory", mixed_memory) else 1)
        self.mode, self.mixed_memory = choice("mode", mode, HEADS), mixed_memory
        self.activation = choice("activation", activation, ACTIVATIONS)
        if isinstance(backbone_layers, bool) or not isinstance(backbone_layers, int) or backbone_layers < 0:
            raise InputError(f"backbone_layers is {backbone_layers!r}, expected an integer of at least 0")
        units, maps = arguments.count("backbone_units", backbone_units), HEADS[mode] * hidden_size
        self.first = units if backbone_layers else maps
        self.V = nn.Linear(input_size, self.first + (4 * hidden_size if mixed_memory else 0))
        self.W = nn.Parameter(torch.empty(self.first, hidden_size))
        self.R = nn.Parameter(torch.empty(4 * hidden_size, hidden_size)) if mixed_memory else None
        self.backbone = nn.ModuleList(nn.Linear(units, units) for _ in range(backbone_layers - 1))
        self.heads = nn.Linear(units, maps) if backbone_layers else None
        self.A = nn.Parameter(torch.empty(hidden_size)) if mode == "pure" else None
        self.w = nn.Parameter(torch.empty(hidden_size)) if mode == "pure" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        fan_in, hidden = self.input_size + self.hidden_size, self.hidden_size
        xavier_([self.V.weight[: self.first], self.W], fan_in, hidden if self.heads is None else self.first)
        uniform_([self.V.bias], fan_in)
        for layer in self.backbone:
            assert isinstance(layer, nn.Linear)
            xavier_([layer.weight], self.first, self.first)
            uniform_([layer.bias], self.first)
        if self.heads is not None:
            xavier_([self.heads.weight], self.first, hidden)
            uniform_([self.heads.bias], self.first)
        if self.A is not None and self.w is not None:
            xavier_([self.A, self.w], hidden, 1)
        if self.R is not None:
            xavier_([self.V.weight[self.first :]], self.input_size, 4 * hidden)
            with torch.no_grad():
                nn.init.uniform_(self.V.bias[self.first :], -0.1, 0.1)
            nn.init.orthogonal_(self.R)

    def prepare(self) -> dict[str, Any]:
        """W and R as matrices that act from the right."""
        return {"W": self.W.T, "R": None if self.R is None else self.R.T}

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Tensor) -> Tensor:
        """The state after a sample that comes a time dt after the one before."""
        h, *c = state.unbind(-2)
        R, act = self.constants["R"], ACTIVATIONS[self.activation]
        if R is not None:
            u, gates = u.split([self.first, 4 * self.hidden_size], dim=-1)
            h, cell = remembered(affine(gates, h, R), c[0])
            c = [cell]
        z = affine(u, h, self.constants["W"])
        if self.heads is not None:
            z = act(z)
            for layer in self.backbone:
                z = act(layer(z))
            z = self.heads(z)
        return torch.stack((self._mixed(dt, z), *c), dim=-2)

    def _mixed(self, dt: Time, z: Tensor) -> Tensor:
        """What the mode makes of f, g, a and b."""
        if self.A is not None and self.w is not None:
            return self.A - self.A * z * torch.exp(-(dt * (self.w.abs() + z.abs())))
        f, g, a, b = z.chunk(4, dim=-1)
        f, g, s = torch.tanh(f), torch.tanh(g), torch.sigmoid(a * dt + b)
        return f + s * g if self.mode == "no_gate" else (1 - s) * f + s * g


def remembered(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Output and cell of an LSTM from its gates (candidate, input, forget, output) and the cell before."""
    candidate, enter, forget, leave = gates.chunk(4, dim=-1)
    c = c * torch.sigmoid(forget + 1) + torch.tanh(candidate) * torch.sigmoid(enter)
    return torch.tanh(c) * torch.sigmoid(leave), c
