"""Orthogonal and unitary recurrent networks: one field, a rotation, under two solvers; and the published Cayley RNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import Orthogonal
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "cayley",
    "Cayley RNN",
    "Helfrich et al., ICML 2018",
    "dh = h (C^T - C), at each sample h+ = sigma(h + u)",
    Orthogonal,
)
def CayleyRNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 2.0,
    activation: str = "tanh",
    unitary: bool = False,
    margin: float = 0.0,
    start: str = "haar",
    solver: str | dict[str, Any] | solvers.Solver = "implicit_midpoint",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """h+ = sigma(h W + u) with W = (1 + K)^-1 (1 - K), K = C - C^T: the implicit midpoint rule over dt = 2.

    Under "exponential_euler" it is `ExpRNN`. See `Orthogonal`.
    """
    hyperparameters = {"activation": activation, "unitary": unitary, "margin": margin, "start": start}
    return network("cayley", Orthogonal, input_size, hidden_size, dt, solver, hyperparameters, choices)


@published("cayley")
def _cayley(keys: Keys, **settings: Any) -> Loaded:
    weight, bias = keys.take("E.weight"), keys.take("E.bias")
    rnn = CayleyRNN(weight.shape[1], len(bias), **settings).to(weight.dtype)
    fill(rnn.field, {"V.weight": weight, "V.bias": bias, "C": keys.take("C")}, "cayley")
    readout = keys.readout("D")
    keys.finish()
    return rnn, readout


@named(
    "exprnn",
    "expRNN",
    "Lezcano-Casado & Martinez-Rubio, ICML 2019",
    "dh = h (C^T - C), at each sample h+ = sigma(h + u)",
    Orthogonal,
)
def ExpRNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    activation: str = "modrelu",
    unitary: bool = False,
    margin: float = 0.0,
    start: str = "henaff",
    solver: str | dict[str, Any] | solvers.Solver = "exponential_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """h+ = sigma(h W + u) with W = exp(C^T - C), the exact flow over dt = 1.

    Under "implicit_midpoint" it is `CayleyRNN`. See `Orthogonal`.
    """
    hyperparameters = {"activation": activation, "unitary": unitary, "margin": margin, "start": start}
    return network("exprnn", Orthogonal, input_size, hidden_size, dt, solver, hyperparameters, choices)
