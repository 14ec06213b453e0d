"""The neural controlled differential equation, and its published weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import NeuralCDE
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: A path with a derivative, that knows no later sample.
SMOOTH: Choices = {"control": "cubic"}


@named(
    "ncde",
    "Neural CDE",
    "Kidger et al., NeurIPS 2020",
    "dz = F(z) dX, F(z) = tanh(W sigma(.. z) + b), X with time",
    NeuralCDE,
    choices=SMOOTH,
)
def NCDE(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    field_size: int = 64,
    field_layers: int = 1,
    time_channel: bool = True,
    activation: str = "relu",
    solver: str | dict[str, Any] | solvers.Solver = "rk4_38",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """A neural controlled differential equation along Hermite cubics through the samples. See `NeuralCDE`."""
    hyperparameters: dict[str, Any] = {
        "field_size": field_size, "field_layers": field_layers, "time_channel": time_channel, "activation": activation,
    }  # fmt: skip
    choices = {**SMOOTH, **choices}
    return network("ncde", NeuralCDE, input_size, hidden_size, dt, solver, hyperparameters, choices)


@published("ncde")
def _ncde(keys: Keys, **settings: Any) -> Loaded:
    weight, bias = keys.take("initial_network.weight"), keys.take("initial_network.bias")
    values = {"zeta.weight": weight, "zeta.bias": bias}
    names, i = ["func.linear_in"], 0
    while f"func.linears.{i}.weight" in keys.left:
        names.append(f"func.linears.{i}")
        i += 1
    places = [f"layers.{k}" for k in range(len(names))]
    for name, place in zip([*names, "func.linear_out"], [*places, "out"], strict=True):
        values |= {f"{place}.{kind}": keys.take(f"{name}.{kind}") for kind in ("weight", "bias")}
    # Time is the first feature of x there.
    rnn = NCDE(
        weight.shape[1],
        len(bias),
        field_size=len(values["layers.0.bias"]),
        field_layers=len(names),
        time_channel=False,
        **settings,
    ).to(weight.dtype)
    fill(rnn.field, values, "ncde")
    readout = keys.readout("linear")
    keys.finish()
    return rnn, readout
