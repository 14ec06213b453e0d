"""The LSTM of the neural Hawkes process: a memory that decays between the samples to one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import DecayingLSTM
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "hawkes_lstm",
    "Neural Hawkes LSTM",
    "Mei & Eisner, NeurIPS 2017",
    "dc = -d (c - m), h = o tanh(c), at each sample c+ and m+ of an LSTM each, o and d of (x, h)",
    DecayingLSTM,
)
def HawkesLSTM(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    solver: str | dict[str, Any] | solvers.Solver = "closed_form",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The continuous-time LSTM of the neural Hawkes process, exact over any gap. See `DecayingLSTM`."""
    return network("hawkes_lstm", DecayingLSTM, input_size, hidden_size, dt, solver, {}, choices)
