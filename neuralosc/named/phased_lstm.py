"""The phased LSTM: an LSTM whose units samples reach at some phase of a period alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import TimeGatedLSTM
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "phased_lstm",
    "Phased LSTM",
    "Neil et al., NeurIPS 2016",
    "dh = dc = 0, at each sample (h, c)+ = k LSTM(x, (h, c)) + (1 - k) (h, c), k of the phase of t in a period",
    TimeGatedLSTM,
)
def PhasedLSTM(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    shortest_period: float = 1.0,
    longest_period: float = 20.0,
    open_ratio: float = 0.05,
    leak: float = 1e-3,
    forget_bias: float = 0.0,
    solver: str | dict[str, Any] | solvers.Solver = "closed_form",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """An LSTM whose units are reached at some phase of their own period alone, by the time of each sample.

    Nothing happens between samples, whatever the solver. Step by step give and take streams, which know the time. See
    `TimeGatedLSTM`.
    """
    own = {"shortest_period": shortest_period, "longest_period": longest_period, "open_ratio": open_ratio}
    own |= {"leak": leak, "forget_bias": forget_bias}
    return network("phased_lstm", TimeGatedLSTM, input_size, hidden_size, dt, solver, own, choices)
