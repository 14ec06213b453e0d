"""What a model is besides its weights, as something that can be written down, and made of it again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from neuralosc import arguments
from neuralosc.data.collate import Collator
from neuralosc.data.times import Unit, read
from neuralosc.layers.embedding import Embedding
from neuralosc.layers.readout import Readout
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.scaling import Scaler
from neuralosc.layers.sequence_model import SequenceModel
from neuralosc.named.cards import make
from neuralosc.named.latent_ode import LatentODE
from solvers.errors import InputError

#: What is written of a model.
PARTS = ("rnn", "settings", "readout", "collator", "input_scaler", "target_scaler")
#: What is written of a model that has one.
EMBEDDING = ("embedding", "embedding_dropout")
READOUT = ("features", "answers", "kind", "bidirectional", "bias")
#: What is left out where it is this.
USUAL = {"likelihood": "none"}

#: What is written of a latent ODE, and behind "encoder_" of its encoder.
LATENT_ODE = (
    "input_size", "latent_size", "encoder_size", "update", "encoder_layers", "gate_units", "units", "field_layers",
    "dt", "solver", "max_dt", "gradient",
)  # fmt: skip
ENCODER = ("solver", "dt", "substeps", "gradient", "control", "max_dt")


def settings(rnn: RecurrentLayer) -> dict[str, Any]:
    """What the outputs of a network depend on besides its weights, as far as it is known."""
    if rnn.config is not None:
        return rnn.config
    shape = {name: getattr(rnn, name) for name in ("num_layers", "bidirectional", "residual") if hasattr(rnn, name)}
    choices = getattr(rnn, "choices", None)
    return {**shape, **({} if choices is None else choices())}


def described(model: SequenceModel) -> dict[str, Any]:
    """All of a model but its weights; of a network that `make` did not make only what is known."""
    rnn, readout = model.rnn, model.readout
    if type(readout) is not Readout:
        raise InputError(f"readout is a {type(readout).__name__}, of a class that cannot be written down")
    return {
        "rnn": rnn.config,
        "settings": None if rnn.config is not None else settings(rnn),
        "readout": {
            "features": readout.in_features,
            "answers": readout.answers,
            "kind": readout.kind,
            "bidirectional": readout.pooling.bidirectional,
            "bias": readout.bias is not None,
            **{name: getattr(readout, name) for name, usual in USUAL.items() if getattr(readout, name) != usual},
        },
        "collator": None if model.collator is None else _written(model.collator),
        "input_scaler": model.input_scaler is not None,
        "target_scaler": model.target_scaler is not None,
        **({} if model.embedding is None else _written_embedding(model.embedding)),
    }


def network(config: Mapping[str, Any], tensors: int) -> RecurrentLayer:
    """The named network of a configuration, of a file with so many tensors."""
    chosen = dict(config)
    name, layers = chosen.pop("model"), chosen.get("num_layers", 1)
    if isinstance(layers, int) and layers > tensors:
        raise InputError(f"it has num_layers {layers}, and the file {tensors} tensors in all")
    made: RecurrentLayer = make(name, **chosen)
    return made


def model(description: Mapping[str, Any], tensors: int) -> SequenceModel:
    """The model that was described, with weights drawn anew."""
    arguments.known("a model", description, (*PARTS, *EMBEDDING))
    parts = {name: description[name] for name in PARTS}
    arguments.known("a readout", parts["readout"], (*READOUT, *USUAL))
    chosen = {**USUAL, **parts["readout"]}
    rnn, readout = network(parts["rnn"], tensors), Readout(**{name: chosen[name] for name in (*READOUT, *USUAL)})
    shown, asked = (
        Scaler(size) if arguments.flag(name, parts[name]) else None
        for name, size in (("input_scaler", rnn.input_size), ("target_scaler", readout.answers))
    )
    collator = None if parts["collator"] is None else _collator(parts["collator"])
    embedding = None
    if "embedding" in description:
        sizes = description["embedding"]
        arguments.known("an embedding", sizes, ("tokens", "features"))
        embedding = Embedding(sizes["tokens"], sizes["features"], description["embedding_dropout"])
    return SequenceModel(rnn, readout, collator, shown, asked, embedding)


def latent_ode(description: Mapping[str, Any], tensors: int) -> LatentODE:
    """The latent ODE that was described, with weights drawn anew."""
    arguments.known("a latent ODE", description, [*LATENT_ODE, *(f"encoder_{name}" for name in ENCODER)])
    chosen = {name: description[name] for name in LATENT_ODE}
    for name in ("encoder_layers", "field_layers"):
        if isinstance(chosen[name], int) and chosen[name] > tensors:
            raise InputError(f"it has {name} {chosen[name]}, and the file {tensors} tensors in all")
    encoder = {name: description[f"encoder_{name}"] for name in ENCODER}
    if encoder["max_dt"] is None:
        encoder["max_dt"] = math.inf
    made = LatentODE(**chosen)
    made.encoder = made.encoder.with_solver(**encoder)
    return made


def _written_embedding(embedding: Embedding) -> dict[str, Any]:
    if type(embedding) is not Embedding:
        raise InputError(f"embedding is a {type(embedding).__name__}, of a class that cannot be written down")
    sizes = {"tokens": embedding.tokens, "features": embedding.features}
    return {"embedding": sizes, "embedding_dropout": embedding.dropout}


def _written(collator: Collator) -> dict[str, Any]:
    origin = None
    if collator.origin is not None:
        times = read([collator.origin], "origin")
        origin = {"ticks": times.ticks[0].item(), "kind": None if times.kind is None else str(times.kind)}
    return {
        "unit": dataclasses.asdict(collator.unit),
        "first": collator.first,
        "origin": origin,
        "duplicates": collator.duplicates,
        "order": collator.order,
        "dtype": None if collator.dtype is None else str(collator.dtype).removeprefix("torch."),
    }


def _collator(written: Mapping[str, Any]) -> Collator:
    fields = [field.name for field in dataclasses.fields(Collator)]
    arguments.known("a collator", written, fields)
    options = {name: written[name] for name in fields}
    unit = options["unit"]
    options["unit"] = Unit(arguments.positive("unit", unit["size"]), arguments.flag("timed", unit["timed"]))
    if options["origin"] is not None:
        ticks, kind = options["origin"]["ticks"], options["origin"]["kind"]
        options["origin"] = ticks if kind is None else np.array([ticks], np.int64).view(kind)[0]
    dtype = options["dtype"]
    if dtype is not None:
        options["dtype"] = getattr(torch, dtype, None)
        if not isinstance(options["dtype"], torch.dtype) or not options["dtype"].is_floating_point:
            raise InputError(f"dtype is {dtype!r}, expected one of real numbers")
    return Collator(**options)
