"""What can be saved: of each kind how it is told, what stands in its file besides the weights, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from neuralosc.files import descriptions
from neuralosc.layers.recurrent import RecurrentLayer, recurrent
from neuralosc.layers.sequence_model import SequenceModel
from neuralosc.named.latent_ode import LatentODE


@dataclass(frozen=True)
class Kind:
    """A kind of what is saved.

    Attributes:
        format: what a file says it is.
        name: what it is in messages.
        type: its class.
        written: what stands in the header of its file, by key.
        known: of what stands there, what outputs depend on besides the weights.
        build: it, of the configuration in the header and the number of tensors.
        own: whether a configuration is that of a field of one's own, of which it cannot be built.
    """

    format: str
    name: str
    type: type[nn.Module]
    written: Callable[[Any], dict[str, Any]]
    known: Callable[[dict[str, Any]], dict[str, Any]]
    build: Callable[[Mapping[str, Any], int], nn.Module]
    own: Callable[[Any], bool]


def _flat(written: dict[str, Any]) -> dict[str, Any]:
    """The settings of the network of a model beside those of its other parts."""
    others = {name: value for name, value in written.items() if name not in ("rnn", "settings")}
    return {**(written["rnn"] or written["settings"]), **others}


def _own_field(config: Any) -> bool:
    return config is None


def _network(rnn: RecurrentLayer) -> dict[str, Any]:
    return {"config": rnn.config, **({"settings": descriptions.settings(rnn)} if rnn.config is None else {})}


KINDS = (
    Kind(
        "neuralosc 2", "a network", RecurrentLayer, _network,
        lambda header: header["config"] or header.get("settings") or {}, descriptions.network, _own_field,
    ),
    Kind(
        "neuralosc model 1", "a SequenceModel", SequenceModel, lambda model: {"config": descriptions.described(model)},
        lambda header: _flat(header["config"]), descriptions.model, lambda config: _own_field(config["rnn"]),
    ),
    Kind(
        "neuralosc latent ode 1", "a LatentODE", LatentODE, lambda made: {"config": made.config},
        lambda header: header["config"], descriptions.latent_ode, lambda config: False,
    ),
)  # fmt: skip


def kind_of(made: Any) -> Kind:
    """The kind of what is to be saved, or loaded into.

    Raises:
        InputError: it is nothing that can be.
    """
    for kind in KINDS:
        if isinstance(made, kind.type):
            return kind
    recurrent(made)
    raise AssertionError("a recurrent layer is of a kind")
