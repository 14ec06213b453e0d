"""LEM, and its published weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import Multiscale
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "lem",
    "LEM",
    "Rusch et al., ICLR 2022",
    "dq = g1(q) (tanh(Z p + u) - q), dp = g2(q) (tanh(W q + u) - p), g = sigmoid(W_g q + u)",
    Multiscale,
)
def LEM(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.21,
    solver: str | dict[str, Any] | solvers.Solver = "semi_implicit_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """Long expressive memory under its published step, with the time step of sequential MNIST. See `Multiscale`."""
    return network("lem", Multiscale, input_size, hidden_size, dt, solver, {}, choices)


@published("lem")
def _lem(keys: Keys, dt: float, **settings: Any) -> Loaded:
    maps = {"V": "cell.inp2hid", "coupling": "cell.hid2hid", "transform": "cell.transform_z"}
    values = {
        f"{name}.{part}": keys.take(f"{published}.{part}")
        for name, published in maps.items()
        for part in ("weight", "bias")
    }
    hidden, features = len(values["transform.bias"]), values["V.weight"].shape[-1]
    rnn = LEM(features, hidden, dt=dt, **settings).to(values["V.weight"].dtype)
    fill(rnn.field, values, "lem")
    readout = keys.readout("classifier")
    keys.finish()
    return rnn, readout
