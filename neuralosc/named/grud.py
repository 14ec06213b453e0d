"""GRU-D: gated units whose inputs and state decay while nothing is seen, and published weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import solvers
from neuralosc.fields import GRUDecay
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published
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


@published("grud")
def _published(keys: Keys, empirical_mean: Sequence[float] | Tensor, **settings: Any) -> Loaded:
    """Settings: `empirical_mean` of each feature, which goes with the data there. Its first timespan is always 0."""
    prefixes = [prefix for prefix in ("model.", "backbone.") if any(key.startswith(prefix) for key in keys.left)]
    at = prefixes[0] if prefixes else ""
    weight = keys.take(f"{at}rnn_cell.weight_ih")
    hidden = len(weight) // 3
    features = (weight.shape[1] - hidden) // 2
    values = {
        "V.weight": torch.cat((weight[:, :features], weight[:, features + hidden :]), 1),
        "U.weight": weight[:, features : features + hidden],
        "W.weight": keys.take(f"{at}rnn_cell.weight_hh"),
        "V.bias": keys.take(f"{at}rnn_cell.bias_ih"),
        "W.bias": keys.take(f"{at}rnn_cell.bias_hh"),
        "R.weight": keys.take(f"{at}temp_decay_h.W"),
        "R.bias": keys.take(f"{at}temp_decay_h.b"),
        "decay.w": keys.take(f"{at}temp_decay_x.W").diag(),
        "decay.b": keys.take(f"{at}temp_decay_x.b"),
    }
    if f"{at}temp_decay_x.m" in keys.left:
        shown = keys.take(f"{at}temp_decay_x.m")
        if not torch.equal(shown, torch.eye(features).to(shown)):
            raise keys.wrong(f"has another {at}temp_decay_x.m than the identity")
    mean = torch.as_tensor(empirical_mean, dtype=weight.dtype)
    if mean.shape != (features,):
        raise InputError(f"empirical_mean has shape {tuple(mean.shape)}, expected ({features},), one for each feature")
    rnn = GRUD(features, hidden, **settings).to(weight.dtype)
    field = rnn.field
    assert isinstance(field, GRUDecay) and field.decay is not None
    fill(field, values, "grud")
    field.decay.mean.copy_(mean)
    readout = keys.readout("classifier")
    keys.finish()
    return rnn, readout
