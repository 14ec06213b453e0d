"""The ODE-LSTM: an LSTM whose output flows between the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import LSTMFlow
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network

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
