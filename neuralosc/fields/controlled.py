"""The field of neural controlled differential equations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralosc.arguments import count, flag
from neuralosc.field import VectorField
from neuralosc.fields.neurons import ACTIVATIONS
from neuralosc.fields.parameters import choice
from solvers.protocol import Time


class NeuralCDE(VectorField):
    """A field driven by the changes of its input X: dz = F(z) dX, where time is a channel of X too.

        dz/dt = F_0(z) + sum_c F_c(z) dX_c/dt,    F(z) = tanh(W g(z) + b),    z = A x + a at the first sample

    g is made of `field_layers` layers sigma(W_k . + b_k), and F(z) is a matrix `(hidden, 1 + input)`, whose column 0,
    of time, is missing without `time_channel`. Time is that of the solver: dt passes in a timespan of 1. Until the
    first sample the state rests. X is what the control makes of the samples, which must have a derivative: "linear",
    "cubic" or "natural".

    Such an equation feels where its path goes, not how fast: without time timespans matter to the shape of the path
    alone. The published code shows time as the first feature of x, which is `time_channel=False` here.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        field_size: width of the layers of F.
        field_layers: number of layers of F before the last one.
        time_channel: make time a channel of X.
        activation: sigma, "relu" as published, "tanh", under which F is smooth, or "sigmoid".

    Initialised like `nn.Linear`.

    Source: Kidger, Morrill, Foster, Lyons, Neural Controlled Differential Equations for Irregular Time Series, NeurIPS
    2020, eq. 4 and 5; the network F is that of their appendix D.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        field_size: int = 64,
        field_layers: int = 1,
        time_channel: bool = True,
        activation: str = "relu",
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.activation = choice("activation", activation, ACTIVATIONS)
        width, self.time_channel = count("field_size", field_size), flag("time_channel", time_channel)
        sizes = [hidden_size, *[width] * count("field_layers", field_layers)]
        self.zeta = nn.Linear(input_size, hidden_size)
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes[:-1])
        # Its rows are those of F, one after the other, as published.
        self.out = nn.Linear(width, hidden_size * (input_size + self.time_channel))

    @property
    def structure(self) -> frozenset[str]:
        """Adds controlled."""
        return super().structure | {"controlled"}

    def initial_state(self, x: Tensor) -> Tensor:
        """A x + a."""
        state: Tensor = self.zeta(x)
        return state.unsqueeze(-2)

    def matrix(self, z: Tensor) -> Tensor:
        """F(z), `(*batch, hidden, channels)`, of z `(*batch, hidden)`."""
        for layer in self.layers:
            z = ACTIVATIONS[self.activation](layer(z))
        columns: Tensor = torch.tanh(self.out(z)).unflatten(-1, (self.hidden_size, -1))
        return columns

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side; u is dX/dt."""
        (z,) = state.unbind(-2)
        columns = self.matrix(z)
        slope = (columns[..., 1:] if self.time_channel else columns) * u.unsqueeze(-2)
        return (slope.sum(-1) + columns[..., 0] if self.time_channel else slope.sum(-1)).unsqueeze(-2)
