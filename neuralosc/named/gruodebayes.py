"""GRU-ODE-Bayes: a network that says at any time what it expects to be seen, its losses and published weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import solvers
from neuralosc.fields import GRUBayes
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, perceptron, published
from solvers.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Maps of the jump as they are called here, and in a GRU cell of torch.
GATES = (("V", "ih"), ("W", "hh"))

#: Samples of which some features are missing, and between two of them steps of the published length at a timespan of 1.
SPORADIC: Choices = {"missing": "mask", "substeps": 4}


@named(
    "gruodebayes",
    "GRU-ODE-Bayes",
    "De Brouwer et al., NeurIPS 2019",
    "dh = (1 - z) (n - h) driven by p(h), at each sample h+ = GRU(v(x, p(h)), h)",
    GRUBayes,
    choices=SPORADIC,
)
def GRUODEBayes(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.4,
    p_hidden: int = 25,
    prep_hidden: int = 10,
    full: bool = True,
    impute: bool = True,
    logvar: bool = True,
    solver: str | dict[str, Any] | solvers.Solver = "euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """Samples of which few features are seen, NaN in x, correct what is expected of them.

    Each interval is four equal steps, at a timespan of 1 of the published length, 0.1. The published loop has steps of
    that length alone, which go on from where they have passed a sample. Over very long gaps "relaxation_euler" stays
    stable, where Euler's step does not.
    `rnn.field.prediction(output)` is the mean and variance of each feature that a state expects, at any time
    (`trajectory`, `advance`); `negative_log_likelihood` and `divergence` of this module are the losses of the paper. A
    layer of a stack after the first expects the output of the one before. See `GRUBayes`.
    """
    choices = {**SPORADIC, **choices}
    if choices["missing"] == "decay":
        raise InputError("missing is 'decay', expected 'mask', or 'hold' or 'error', under which all is seen")
    own = {"p_hidden": p_hidden, "prep_hidden": prep_hidden, "full": full, "impute": impute, "logvar": logvar}
    field = functools.partial(GRUBayes, masked=choices["missing"] == "mask")
    later = functools.partial(GRUBayes, masked=False)
    return network("gruodebayes", field, input_size, hidden_size, dt, solver, own, choices, later)


def negative_log_likelihood(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of what was seen under what was expected of it, entry by entry; 0 where x is NaN.

    (e^2 + log variance + log 2 pi) / 2 with e = (x - mean) / standard deviation. Mean and variance are those of the
    state before the sample. All three have one shape. Source: De Brouwer et al., NeurIPS 2019, section 2.4.
    """
    seen = ~x.isnan()
    error = torch.where(seen, x, mean) - mean
    return torch.where(seen, 0.5 * (error.square() / variance + variance.log() + math.log(2 * math.pi)), 0.0)


def divergence(x: Tensor, mean: Tensor, variance: Tensor, noise: float = 0.01) -> Tensor:
    """The Kullback-Leibler divergence of N(mean, variance) from N(x, noise^2), entry by entry; 0 where x is NaN.

    Mean and variance are those of the state after the sample, `noise` is the standard deviation of the measurement. All
    three have one shape. Source: De Brouwer et al., NeurIPS 2019, section 2.4.
    """
    seen = ~x.isnan()
    error = torch.where(seen, x, mean) - mean
    value = math.log(noise) - 0.5 * variance.log() + (variance + error.square()) / (2 * noise**2) - 0.5
    return torch.where(seen, value, 0.0)


@published("gruodebayes")
def _published(keys: Keys, delta_t: float, logvar: bool, **settings: Any) -> Loaded:
    """Settings: `delta_t`, the longest step, and `logvar`; whether it is full and imputes is read off the keys.

    A timespan of 1 is the published unit of time. No step passes a sample, as published ones do.
    """
    full, impute = "gru_c.lin_hr.weight" in keys.left, any(key.startswith("gru_c.lin_x") for key in keys.left)
    maps = keys.maps("p_model", (0, 3))
    recurrent = [keys.take("gru_c.lin_hr.weight")] if full else []
    values = {
        "R.weight": torch.cat([*recurrent, keys.take("gru_c.lin_hz.weight")]),
        "U.weight": keys.take(f"gru_c.lin_h{'h' if full else 'n'}.weight"),
        "w": keys.take("gru_obs.w_prep"),
        "b": keys.take("gru_obs.bias_prep"),
    }
    for part in ("weight", "bias"):
        if impute:
            gates = ["lin_x"] if full else ["lin_xz", "lin_xn"]
            values[f"P.{part}"] = torch.cat([keys.take(f"gru_c.{gate}.{part}") for gate in gates])
        values |= {f"{our}.{part}": keys.take(f"gru_obs.gru_d.{part}_{their}") for our, their in GATES}
        values |= {f"p.{2 * i}.{part}": pair[part == "bias"] for i, pair in enumerate(maps)}
    keys.unused("gru_obs.gru_debug")
    features, _, prep = values["w"].shape
    hidden = len(values["U.weight"])
    kind: dict[str, Any] = {"full": full, "impute": impute, "logvar": logvar, "p_hidden": len(maps[0][1])}
    kind |= {"prep_hidden": prep}
    rnn = GRUODEBayes(features, hidden, **kind, **{"dt": 1.0, "substeps": 1, "max_dt": delta_t, **settings})
    rnn.to(values["w"].dtype)
    fill(rnn.field, values, "gruodebayes")
    answer, start = keys.maps("classification_model", (0, 3)), keys.maps("covariates_map", (0, 3))
    keys.finish()
    heads = {"classification_model": perceptron(keys.name, hidden, answer, nn.ReLU)}
    heads["covariates_map"] = perceptron(keys.name, None, start, nn.ReLU, nn.Tanh())
    if len(start[-1][1]) != hidden:
        raise keys.wrong(f"has a covariates_map to {len(start[-1][1])} values and a state of {hidden}")
    return rnn, nn.ModuleDict(heads)
