"""ODE-RNN: a network moves the state between the samples, a gated unit sets it at each one; published weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

import solvers
from neuralosc.fields import JumpGRU
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, perceptron, published
from neuralosc.named.published_ode import published_classifier, published_field

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "odernn",
    "ODE-RNN",
    "Rubanova, Chen & Duvenaud, NeurIPS 2019",
    "dh = net(h), at each sample h+ = GRU(x, h)",
    JumpGRU,
)
def ODERNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    update: str = "gru",
    field_layers: int = 1,
    units: int = 100,
    gate_units: int = 100,
    solver: str | dict[str, Any] | solvers.Solver = "euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The ODE-RNN, forward in time, with `substeps` steps in every interval. See `JumpGRU`.

    With `missing="mask"` the state is kept at samples of which nothing was seen. The published code takes the Euler
    steps of an interval as long as a fiftieth of the whole range allows; here all intervals take as many.
    """
    hyperparameters = {"update": update, "field_layers": field_layers, "units": units, "gate_units": gate_units}
    first = functools.partial(JumpGRU, masked=choices.get("missing") == "mask")
    return network("odernn", first, input_size, hidden_size, dt, solver, hyperparameters, choices, JumpGRU)


@published("odernn")
def _published(keys: Keys, **settings: Any) -> Loaded:
    net = "z0_diffeq_solver.ode_func.gradient_net"
    keys.repeated(f"ode_gru.{net}", net)
    keys.unused("ode_gru.transform_z0")
    sizes, values = published_field(keys, "ode_gru.GRU_update", net)
    features, hidden = sizes.pop("features"), sizes.pop("hidden")
    rnn = ODERNN(features, hidden, update="gru_unit", **sizes, **{"missing": "mask", **settings})
    fill(rnn.to(values["net.0.weight"].dtype).field, values, "odernn")
    heads: dict[str, nn.Module] = {"decoder": perceptron("odernn", hidden, keys.maps("decoder", (0, 2)), nn.Tanh)}
    heads |= published_classifier(keys, hidden)
    keys.finish()
    return rnn, nn.ModuleDict(heads)
