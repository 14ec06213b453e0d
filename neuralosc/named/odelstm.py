"""The ODE-LSTM: an LSTM whose output flows between the samples, and its published weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import LSTMFlow
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Steps of the published fixed solvers from sample to sample.
UNFOLDED: Choices = {"substeps": 3}


@named(
    "odelstm",
    "ODE-LSTM",
    "Lechner & Hasani, 2020",
    "dh = W_2 tanh(W_1 h + b_1) + b_2, dc = 0, at each sample (h+, c+) = LSTM(x, (h, c))",
    LSTMFlow,
    choices=UNFOLDED,
)
def ODELSTM(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    solver: str | dict[str, Any] | solvers.Solver = "rk4",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """An LSTM whose output flows between the samples, three steps an interval as published. See `LSTMFlow`."""
    choices = {**UNFOLDED, **choices}
    return network("odelstm", LSTMFlow, input_size, hidden_size, dt, solver, {}, choices)


@published("odelstm")
def _published(keys: Keys, solver: str | dict[str, Any] | solvers.Solver, **settings: Any) -> Loaded:
    """Settings: `solver`, "rk4" where it was "fixed_rk4". An interval has three steps whatever its length, as there."""
    places = {"V": "ih", "W": "hh"}
    values = {
        f"{place}.{part}": keys.take(f"rnn_cell.lstm.{part}_{suffix}")
        for place, suffix in places.items()
        for part in ("weight", "bias")
    }
    for place, (weight, bias) in zip(("W_1", "W_2"), keys.maps("rnn_cell.f_node", (0, 2)), strict=True):
        values |= {f"{place}.weight": weight, f"{place}.bias": bias}
    weight = values["V.weight"]
    rnn = ODELSTM(weight.shape[1], len(weight) // 4, solver=solver, **{"max_dt": None, **settings}).to(weight.dtype)
    fill(rnn.field, values, "odelstm")
    readout = keys.readout("fc")
    keys.finish()
    return rnn, readout
