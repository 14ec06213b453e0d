"""Networks of first-order neurons: the continuous-time RNN, and liquid time constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import LeakyIntegrator, LiquidTimeConstant
from neuralosc.fields.parameters import Value
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "ctrnn",
    "CT-RNN",
    "Funahashi & Nakamura, Neural Networks 1993",
    "tau dh = -h + W sigma(h) + u",
    LeakyIntegrator,
)
def CTRNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.1,
    tau: Value = 1.0,
    learned: bool = True,
    activation: str = "tanh",
    solver: str | dict[str, Any] | solvers.Solver = "euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The continuous-time RNN; under "exponential_euler" dt may exceed tau. See `LeakyIntegrator`."""
    hyperparameters = {"tau": tau, "learned": learned, "activation": activation}
    return network("ctrnn", LeakyIntegrator, input_size, hidden_size, dt, solver, hyperparameters, choices)


#: Steps of the published solver from sample to sample.
FUSED: Choices = {"substeps": 6}


@named(
    "ltc",
    "LTC",
    "Hasani et al., AAAI 2021",
    "dh = -(1 / tau + f) h + f A, f = sigmoid(W h + u)",
    LiquidTimeConstant,
    choices=FUSED,
)
def LTC(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    tau: Value = 1.0,
    learned: bool = True,
    activation: str = "sigmoid",
    solver: str | dict[str, Any] | solvers.Solver = "imex_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """A liquid time-constant network under its fused step, six a sample as published. See `LiquidTimeConstant`."""
    hyperparameters = {"tau": tau, "learned": learned, "activation": activation}
    choices = {**FUSED, **choices}
    return network("ltc", LiquidTimeConstant, input_size, hidden_size, dt, solver, hyperparameters, choices)
