"""Closed-form continuous-time networks, and their published weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

import solvers
from neuralosc.fields import ClosedFormContinuous
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "cfc",
    "CfC",
    "Hasani et al., Nature Machine Intelligence 2022",
    "h+ = (1 - s) f + s g, s = sigmoid(a dt + b), f, g, a and b of (x, h)",
    ClosedFormContinuous,
)
def CfC(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    mode: str = "default",
    backbone_layers: int = 1,
    backbone_units: int = 128,
    activation: str = "lecun_tanh",
    mixed_memory: bool = False,
    solver: str | dict[str, Any] | solvers.Solver = "closed_form",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """A closed-form continuous-time network: one evaluation a sample, whatever the gap. See `ClosedFormContinuous`."""
    hyperparameters = {
        "mode": mode, "backbone_layers": backbone_layers, "backbone_units": backbone_units, "activation": activation,
        "mixed_memory": mixed_memory,
    }  # fmt: skip
    return network("cfc", ClosedFormContinuous, input_size, hidden_size, dt, solver, hyperparameters, choices)


@published("cfc")
def _published(keys: Keys, mode: str = "default", activation: str = "lecun_tanh", **settings: Any) -> Loaded:
    """Settings under their published names; layers, units and the mode "pure" are read off the keys."""
    mode = "pure" if "rnn_cell.A" in keys.left else mode
    heads = ["ff1"] if mode == "pure" else ["ff1", "ff2", "time_a", "time_b"]
    weight, bias = (torch.cat([keys.take(f"rnn_cell.{head}.{part}") for head in heads]) for part in ("weight", "bias"))
    hidden = len(bias) // len(heads)
    places = sorted({int(key.split(".")[2]) for key in keys.left if key.startswith("rnn_cell.backbone.")})
    layers = [(keys.take(f"rnn_cell.backbone.{i}.weight"), keys.take(f"rnn_cell.backbone.{i}.bias")) for i in places]
    (first, first_bias), *others = [*layers, (weight, bias)]
    features = first.shape[1] - hidden
    values = {"W": first[:, features:], "V.weight": first[:, :features], "V.bias": first_bias}
    for i, (matrix, offset) in enumerate(others):
        name = "heads" if i == len(others) - 1 else f"backbone.{i}"
        values |= {f"{name}.weight": matrix, f"{name}.bias": offset}
    if mode == "pure":
        values |= {"A": keys.take("rnn_cell.A").flatten(), "w": keys.take("rnn_cell.w_tau").flatten()}
    mixed_memory = "lstm.input_map.weight" in keys.left
    if mixed_memory:
        for part in ("weight", "bias"):
            values[f"V.{part}"] = torch.cat((values[f"V.{part}"], keys.take(f"lstm.input_map.{part}")))
        values["R"] = keys.take("lstm.recurrent_map.weight")
    shape = {"backbone_layers": len(layers), **({"backbone_units": len(first)} if layers else {})}
    choices: dict[str, Any] = {"mode": mode, "activation": activation, "mixed_memory": mixed_memory, **shape}
    rnn = CfC(features, hidden, **choices, **settings).to(weight.dtype)
    fill(rnn.field, values, "cfc")
    readout = keys.readout("fc")
    keys.finish()
    return rnn, readout
