"""Networks of first-order neurons: the continuous-time RNN, and liquid time constants, with published weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import solvers
from neuralosc.arguments import flag
from neuralosc.fields import LeakyIntegrator, LiquidSynapses, LiquidTimeConstant
from neuralosc.fields.parameters import Value, inverse_softplus
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published
from solvers.errors import InputError

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


@named(
    "ltc_synapse",
    "LTC with synapses",
    "Lechner et al., Nature Machine Intelligence 2020",
    "C dv_j = g_j (E_j - v_j) + sum_i w_ij sigmoid(sigma_ij (v_i - mu_ij)) (e_ij - v_j), v_i neurons and inputs",
    LiquidSynapses,
    choices=FUSED,
)
def LTCSynapse(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 1.0,
    epsilon: float = 1e-8,
    solver: str | dict[str, Any] | solvers.Solver = "imex_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """A liquid time-constant network with synapses under its fused step, six a sample. See `LiquidSynapses`."""
    choices = {**FUSED, **choices}
    return network("ltc_synapse", LiquidSynapses, input_size, hidden_size, dt, solver, {"epsilon": epsilon}, choices)


@published("ltc_synapse")
def _published(keys: Keys, constrained: bool = True, **settings: Any) -> Loaded:
    """Settings: `constrained`, the published implicit_param_constraints; without it parameters are conductances.

    As published, an interval has as many steps whatever its length.
    """
    flag("constrained", constrained)
    prefix = "rnn_cell." if any(key.startswith("rnn_cell.") for key in keys.left) else ""
    values = {name: keys.take(prefix + name) for name in ("gleak", "vleak", "cm")}
    for kind, start in (("synapses", ""), ("sensory", "sensory_")):
        values |= {f"{kind}.{name}": keys.take(prefix + start + name) for name in ("w", "sigma", "mu", "erev")}
    if not constrained:
        for name in ("gleak", "cm", "synapses.w", "sensory.w"):
            values[name] = _before_softplus(name, values[name])
    features, hidden = values["sensory.w"].shape
    like = values["gleak"].new_ones(features)
    for name, other in (("input_w", like), ("input_b", 0 * like)):
        values[name] = keys.take(prefix + name) if prefix + name in keys.left else other
    rnn = LTCSynapse(features, hidden, **{"max_dt": None, **settings}).to(like.dtype)
    field = rnn.field
    assert isinstance(field, LiquidSynapses)
    fill(field, values, "ltc_synapse")
    field.synapses.mask.copy_(keys.take(f"{prefix}sparsity_mask"))
    field.sensory.mask.copy_(keys.take(f"{prefix}sensory_sparsity_mask"))
    readout = None
    if f"{prefix}output_w" in keys.left:
        weight = keys.take(f"{prefix}output_w")
        readout = nn.Linear(hidden, len(weight), dtype=weight.dtype)
        # A motor neuron is one of the first neurons, each with a factor and an offset of its own.
        bias = keys.take(f"{prefix}output_b") if f"{prefix}output_b" in keys.left else torch.zeros_like(weight)
        fill(readout, {"weight": torch.eye(hidden)[: len(weight)].to(weight) * weight[:, None], "bias": bias}, "ltc")
    keys.finish()
    return rnn, readout


def _before_softplus(name: str, value: Tensor) -> Tensor:
    """What softplus turns into a value of at least 0; of 0 into the least positive number.

    Raises:
        InputError: it is negative.
    """
    if bool((value < 0).any()):
        raise InputError(f"{name} holds {float(value.min()):g}, expected at least 0: apply the model's constraints")
    return inverse_softplus(value.clamp_min(torch.finfo(value.dtype).tiny))
