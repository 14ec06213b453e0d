"""Networks with a controlled Jacobian: the Lipschitz and the antisymmetric RNN, and their published weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.fields import Antisymmetric, Lipschitz
from neuralosc.fields.parameters import Value
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "lipschitz",
    "Lipschitz RNN",
    "Erichson et al., ICLR 2021",
    "dh = alpha h A + tanh(h W + u), A and W almost skew",
    Lipschitz,
    also={"midpoint": "Lipschitz RNN", "rk4": "Lipschitz RNN"},
)
def LipschitzRNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.03,
    beta: float = 0.75,
    gamma: float = 0.001,
    alpha: float = 1.0,
    gated: bool = False,
    init_std: float = 1.0,
    gamma_W: float | None = None,
    time_scale: Value | None = None,
    learned_time_scale: bool = False,
    solver: str | dict[str, Any] | solvers.Solver = "euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The Lipschitz RNN with the settings of sequential MNIST. See `Lipschitz`."""
    hyperparameters: dict[str, Any] = {
        "beta": beta, "gamma": gamma, "alpha": alpha, "gated": gated, "init_std": init_std, "gamma_W": gamma_W,
        "time_scale": time_scale, "learned_time_scale": learned_time_scale,
    }  # fmt: skip
    return network("lipschitz", Lipschitz, input_size, hidden_size, dt, solver, hyperparameters, choices)


@published("lipschitz")
def _lipschitz(keys: Keys, eps: float, beta: float, gamma: float, alpha: float = 1.0, **settings: Any) -> Loaded:
    weight, bias = keys.take("E.weight"), keys.take("E.bias")
    gated = "E_gate.weight" in keys.left
    rnn = LipschitzRNN(
        weight.shape[1], len(bias), dt=eps, beta=beta, gamma=gamma, alpha=alpha, gated=gated, **settings
    ).to(weight.dtype)
    values = {"V.weight": weight, "V.bias": bias, "A": keys.take("B"), "W": keys.take("C")}
    if gated:
        values |= {"V_gate.weight": keys.take("E_gate.weight"), "V_gate.bias": keys.take("E_gate.bias")}
    fill(rnn.field, values, "lipschitz")
    readout = keys.readout("D")
    keys.finish()
    return rnn, readout


@named(
    "antisymmetric",
    "AntisymmetricRNN",
    "Chang et al., ICLR 2019",
    "dh = tanh(h (M - M^T - gamma I) + u)",
    Antisymmetric,
)
def AntisymmetricRNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.03,
    gamma: float = 0.001,
    init_std: float = 1.0,
    time_scale: Value | None = None,
    learned_time_scale: bool = False,
    solver: str | dict[str, Any] | solvers.Solver = "euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The antisymmetric RNN under Euler. See `Antisymmetric`."""
    hyperparameters: dict[str, Any] = {"gamma": gamma, "init_std": init_std, "time_scale": time_scale}
    hyperparameters |= {"learned_time_scale": learned_time_scale}
    return network("antisymmetric", Antisymmetric, input_size, hidden_size, dt, solver, hyperparameters, choices)


@published("antisymmetric")
def _antisymmetric(keys: Keys, eps: float, gamma: float, **settings: Any) -> Loaded:
    weight, bias = keys.take("E.weight"), keys.take("E.bias")
    rnn = AntisymmetricRNN(weight.shape[1], len(bias), dt=eps, gamma=gamma, **settings).to(weight.dtype)
    fill(rnn.field, {"V.weight": weight, "V.bias": bias, "W": keys.take("C")}, "antisymmetric")
    readout = keys.readout("D")
    keys.finish()
    return rnn, readout
