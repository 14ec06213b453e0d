"""The CT-GRU: gates over traces that decay on many time scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import MultiscaleTraces
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "ctgru",
    "CT-GRU",
    "Mozer et al., 2017",
    "dh_i = -h_i / tau_i, at each sample h_i+ = (1 - s_i) h_i + s_i q, h = sum_i h_i",
    MultiscaleTraces,
)
def CTGRU(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    scales: int = 8,
    solver: str | dict[str, Any] | solvers.Solver = "closed_form",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The CT-GRU, exact over any gap; a unit of time is the shortest of its time scales. See `MultiscaleTraces`."""
    return network("ctgru", MultiscaleTraces, input_size, hidden_size, dt, solver, {"scales": scales}, choices)
