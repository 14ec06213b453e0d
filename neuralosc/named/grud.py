"""GRU-D: gated units whose inputs and state decay while nothing is seen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import GRUDecay
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from solvers.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: What the network is shown of samples; without it there is no GRU-D.
MASKED: Choices = {"missing": "mask"}


@named(
    "grud",
    "GRU-D",
    "Che et al., Scientific Reports 2018",
    "dh = 0, at each sample h+ = GRU([x^, h~, m], h~), h~ = exp(-relu(R delta + b)) h",
    GRUDecay,
    choices=MASKED,
)
def GRUD(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    solver: str | dict[str, Any] | solvers.Solver = "closed_form",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """A GRU of samples with missing values, NaN in x.

    Nothing happens between samples, whatever the solver; "closed_form" takes no steps there. The means that missing
    values go to are `rnn.field.decay.mean`, 0 until they are set. In a stack the layers after the first, to which
    nothing is missing, are GRUs without decay. See `GRUDecay`.
    """
    choices = {**MASKED, **choices}
    if choices["missing"] != "mask":
        raise InputError(
            f"missing is {choices['missing']!r}, expected 'mask': grud needs to know what was seen, and when"
        )
    later = functools.partial(GRUDecay, masked=False)
    return network("grud", GRUDecay, input_size, hidden_size, dt, solver, {}, choices, later)
