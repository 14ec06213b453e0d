"""The noisy RNN, and its published weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import solvers
from neuralosc.arguments import flag
from neuralosc.fields import Lipschitz, Noisy
from neuralosc.fields.parameters import Value, inverse_softplus, number
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published
from solvers.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "noisy",
    "NoisyRNN",
    "Lim et al., NeurIPS 2021",
    "dh = s f dt + noise, f = alpha h A + tanh(h W + u), A and W almost skew",
    Noisy,
)
def NoisyRNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.01,
    beta: float = 0.8,
    gamma_A: float = 0.01,
    gamma_W: float = 0.01,
    alpha: float = 1.0,
    additive: Value = 0.2,
    multiplicative: Value = 0.0006,
    learned_time_scale: bool = True,
    init_std: float = 1.0,
    solver: str | dict[str, Any] | solvers.Solver = "euler_maruyama",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """A Lipschitz RNN with noise while it is trained, and without in evaluation mode.

        dh = s f(h, u) dt + sqrt(s) sqrt(additive^2 + (multiplicative f)^2) dW,    s learned per channel, 1 at first

    The published training step is h+ = h + d f m + a with d learned from dt on, m = 1 - mu + mu U(0, 1) and
    a = sigma N(0, 1), drawn for each entry and step. With d = dt s its noise has, at s = 1, the variance of one
    Euler-Maruyama step of this equation for

        additive = sigma / sqrt(dt),    multiplicative = mu sqrt(dt / 12).

    Three things differ, without which there would be no equation whose solution the step approaches: m here has mean
    1, not 1 - mu / 2, so that training and evaluation share one drift; it is Gaussian; and where s has moved away
    from 1, so has the noise, by sqrt(s), since all of a channel runs on its own clock. In evaluation mode, and under
    a solver without noise ("euler"), the step is the published one without noise, exactly.

    The standard noise is the published sigma = mu = 0.02. See `Lipschitz` and `Noisy`.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        dt: time step, the first value of every published d.
        beta: 1 makes A and W skew but for their decay, 0 symmetric.
        gamma_A: decay in A.
        gamma_W: decay in W.
        alpha: factor of the linear part.
        additive: standard deviation per square root of time, a number or one per channel, at least 0.
        multiplicative: likewise, per unit of the right-hand side.
        learned_time_scale: train s, per channel.
        init_std: entries of both M are drawn from N(0, (init_std / hidden)^2).
        solver: one for equations with noise, or any other, which leaves the noise out.
        choices: see `ContinuousRNN`.
    """
    hyperparameters = {
        "beta": beta, "gamma_A": gamma_A, "gamma_W": gamma_W, "alpha": alpha, "additive": additive,
        "multiplicative": multiplicative, "learned_time_scale": learned_time_scale, "init_std": init_std,
    }  # fmt: skip
    return network("noisy", _noisy, input_size, hidden_size, dt, solver, hyperparameters, choices)


def _noisy(
    input_size: int,
    hidden_size: int,
    gamma_A: float,
    additive: Value,
    multiplicative: Value,
    **settings: Any,
) -> Noisy:
    drift = Lipschitz(input_size, hidden_size, gamma=number("gamma_A", gamma_A), **settings)
    # As published, unlike the input map of the Lipschitz RNN.
    drift.V.reset_parameters()
    return Noisy(drift, additive, multiplicative, "drift", independent=True, training_only=True)


@published("noisy")
def _published(
    keys: Keys,
    eps: float,
    beta: float,
    gamma_A: float,
    gamma_W: float,
    alpha: float = 1.0,
    add_noise: float = 0.0,
    mult_noise: float = 0.0,
    learned_step: bool = True,
    **settings: Any,
) -> Loaded:
    """Settings under their published names; `learned_step` False is the published solver "base", which leaves d out."""
    weight, bias = keys.take("E.weight"), keys.take("E.bias")
    hyperparameters: dict[str, Any] = {
        "additive": number("add_noise", add_noise, 0) / math.sqrt(eps),
        "multiplicative": number("mult_noise", mult_noise, 0) * math.sqrt(eps / 12),
        "learned_time_scale": flag("learned_step", learned_step),
    }
    hyperparameters |= {"beta": beta, "gamma_A": gamma_A, "gamma_W": gamma_W, "alpha": alpha}
    rnn = NoisyRNN(weight.shape[1], len(bias), dt=eps, **hyperparameters, **settings).to(weight.dtype)
    values = {"V.weight": weight, "V.bias": bias, "A": keys.take("B"), "W": keys.take("C")}
    step = keys.take("d")
    if learned_step:
        if bool((step <= 0).any()):
            raise InputError(
                f"d holds {float(step.min()):g}, expected steps above 0: with a step backwards in time this network "
                "is no differential equation"
            )
        values["scale.raw"] = inverse_softplus(step / eps)
    assert isinstance(rnn.field, Noisy)
    fill(rnn.field.field, values, "noisy")
    readout = keys.readout("D")
    keys.finish()
    return rnn, readout
