"""The field of ODE-RNN: a network that moves the state between the samples, and at each one a gated update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralosc import arguments
from neuralosc.field import VectorField
from neuralosc.fields.gated import GatedRelaxation
from neuralosc.fields.parameters import choice
from solvers.protocol import Time

#: Components of the state by how it is updated.
UPDATES = {"gru": 1, "gru_unit": 2}


def tanh_network(size: int, units: int, layers: int) -> nn.Sequential:
    """A network from `size` values to as many: Linear, `layers` times tanh and Linear, and tanh, Linear.

    Weights are drawn from N(0, 0.01), biases are 0, as published.
    """
    hidden = arguments.count("units", units)
    maps = [nn.Linear(size, hidden)]
    maps += [nn.Linear(hidden, hidden) for _ in range(arguments.count("field_layers", layers))]
    parts: list[nn.Module] = []
    for linear in maps:
        parts += [linear, nn.Tanh()]
    network = nn.Sequential(*parts, nn.Linear(hidden, size))
    draw_(network)
    return network


def draw_(module: nn.Module) -> None:
    """Draw every linear map of a module as the published code does: weights from N(0, 0.01), biases 0."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            nn.init.normal_(linear.weight, std=0.1)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)


class GRUUnit(nn.Module):
    """The gated update of a state that is a pair, mean m and standard deviation d.

        g = sigmoid(G_out tanh(G [m, d] + u_g))               update gate
        r = sigmoid(R_out tanh(R [m, d] + u_r))               reset gate
        (n, e) = N_out tanh(N [m r, d r] + u_n)
        m+ = (1 - g) n + g m,    d+ = (1 - g) |e| + g d

    The output maps have biases; those of the inner maps are in the current (u_g, u_r, u_n) = V X + b.

    Args:
        features: values of X.
        hidden_size: channels of m and of d.
        units: of each of the three inner layers.
    """

    def __init__(self, features: int, hidden_size: int, units: int) -> None:
        super().__init__()
        arguments.count("gate_units", units)
        self.V = nn.Linear(features, 3 * units)
        self.gates = nn.Linear(2 * hidden_size, 2 * units, bias=False)
        self.update_out, self.reset_out = nn.Linear(units, hidden_size), nn.Linear(units, hidden_size)
        self.new = nn.Linear(2 * hidden_size, units, bias=False)
        self.new_out = nn.Linear(units, 2 * hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        draw_(self)

    def drive(self, x: Tensor) -> Tensor:
        """V X + b."""
        u: Tensor = self.V(x)
        return u

    def forward(self, state: Tensor, u: Tensor) -> Tensor:
        """(m+, d+), `(*batch, 2, hidden)`, from (m, d) and the current."""
        m, d = state.unbind(-2)
        u_g, u_r, u_n = u.chunk(3, dim=-1)
        hidden_g, hidden_r = self.gates(torch.cat((m, d), dim=-1)).chunk(2, dim=-1)
        g = torch.sigmoid(self.update_out(torch.tanh(hidden_g + u_g)))
        r = torch.sigmoid(self.reset_out(torch.tanh(hidden_r + u_r)))
        inner = torch.tanh(self.new(torch.cat((m * r, d * r), dim=-1)) + u_n)
        n, e = self.new_out(inner).chunk(2, dim=-1)
        return torch.stack(((1 - g) * n + g * m, (1 - g) * e.abs() + g * d), dim=-2)


class JumpGRU(VectorField):
    """A network moves the state between the samples, and at each sample a gated unit sets it anew.

        dh = net(h),                 between the samples
        h+ = GRU(X, h),              at each sample

    net has no input and does not see the time: Linear, `field_layers` times tanh and Linear, tanh, Linear.

    With update "gru" the jump is that of `torch.nn.GRUCell` (an Euler step of length 1 of `GatedRelaxation`). With
    "gru_unit" it is the unit of the published code, whose state has a mean, the position, and a standard deviation,
    which does not move between the samples and of which each sample leaves the absolute value; see `GRUUnit`.

    X is the sample. If `masked`, the field takes what `missing="mask"` shows, X = [values, mask] with 0 for values that
    are missing, and where no feature of a sample was seen its state is kept; of the times since a feature was seen it
    makes no use, as time passes in net.

    Time runs forward here. The published code, run forward, integrates the interval before the last one, backwards in
    time, and the whole range before the second sample; as the encoder of a latent ODE, run from the last sample to the
    first, it does as its paper says.

    Args:
        input_size: features of the input; a multiple of 3 if `masked`.
        hidden_size: channels.
        update: "gru" or "gru_unit".
        field_layers: maps of net between its first and its last.
        units: of each layer of net.
        gate_units: of each inner layer of "gru_unit".
        masked: the input is what `missing="mask"` shows.

    The GRU starts as `torch.nn.GRUCell`, all else with weights from N(0, 0.01) and zero biases.

    Source: Rubanova, Chen, Duvenaud, Latent ODEs for Irregularly-Sampled Time Series, NeurIPS 2019, algorithm 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        update: str = "gru",
        field_layers: int = 1,
        units: int = 100,
        gate_units: int = 100,
        masked: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, UPDATES[choice("update", update, UPDATES)])
        self.masked = arguments.flag("masked", masked)
        features = 2 * arguments.features_of("mask", input_size) if masked else input_size
        self.update = update
        self.net = tanh_network(hidden_size, units, field_layers)
        self.gates = (
            GatedRelaxation(features, hidden_size) if update == "gru" else GRUUnit(features, hidden_size, gate_units)
        )

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        draw_(self.net)
        self.gates.reset_parameters()

    @property
    def structure(self) -> frozenset[str]:
        """Impulsive."""
        return super().structure | {"impulsive"}

    def drive(self, x: Tensor) -> Tensor:
        """What enters the gates; if `masked`, behind it 1 where any feature of a sample was seen, else 0."""
        if not self.masked:
            return self.gates.drive(x)
        values, mask, _ = x.chunk(3, dim=-1)
        u = self.gates.drive(torch.cat((values * mask, mask), dim=-1))
        return torch.cat((u, mask.amax(-1, keepdim=True).to(u.dtype)), dim=-1)

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """net(h), and 0 for a standard deviation."""
        h, *others = state.unbind(-2)
        slope = self.net(h)
        return torch.stack((slope, *(torch.zeros_like(slope) for _ in others)), dim=-2)

    def jump(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The state after a sample."""
        current = u[..., :-1] if self.masked else u
        after: Tensor
        if isinstance(self.gates, GatedRelaxation):
            # An Euler step of length 1.
            after = state + self.gates(t, state, current)
        else:
            after = self.gates(state, current)
        if self.masked:
            after = torch.where(u[..., -1:].unsqueeze(-2) > 0.5, after, state)
        if self.update == "gru":
            return after
        mean, deviation = after.unbind(-2)
        return torch.stack((mean, deviation.abs()), dim=-2)
