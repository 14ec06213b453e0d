"""Published weights: from a published model's own state dict to a network of ours that computes the same."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.networks import LEM, CoRNN, LipschitzRNN, UnICORNN
from neuralosc.rnn import ContinuousRNN
from solvers.errors import InputError
from solvers.registry import Registry

StateDict = Mapping[str, Tensor]
Loaded = tuple[ContinuousRNN, nn.Linear | None]

REFERENCES: Registry[Callable[..., Loaded]] = Registry("reference")


def from_reference(name: str, state_dict: StateDict, **settings: Any) -> Loaded:
    """The network and the read-out of a published model's state dict.

    Args:
        name: "cornn" (settings dt, gamma, epsilon), "unicornn" (dt, one or one per layer; alpha), "lem" (dt) or
            "lipschitz" (eps, beta, gamma, alpha). Further settings, such as `solver`, go to the network.
        state_dict: parameters under their published names.

    Returns:
        the network, and an `nn.Linear` read-out, or None when the state dict has none.

    Raises:
        UnknownNameError: no such published model.
        InputError: keys are missing, left over or of the wrong shape.
    """
    build = REFERENCES[name]
    needed = [p.name for p in inspect.signature(build).parameters.values() if p.default is p.empty]
    missing = [key for key in needed if key not in ("keys", "settings", *settings)]
    if missing:
        raise InputError(f"a published {name!r} model needs the settings {', '.join(missing)}: give them by name")
    return build(_Keys(name, state_dict), **settings)


class _Keys:
    """A state dict whose keys are taken one by one, so that none is missed or left over."""

    def __init__(self, name: str, state_dict: StateDict) -> None:
        self.name, self.left = name, dict(state_dict)

    def take(self, key: str) -> Tensor:
        if key not in self.left:
            raise InputError(
                f"the state dict of a published {self.name!r} model needs the key {key!r}, found "
                f"{', '.join(sorted(self.left)) or 'no keys'}: give the model's own state dict"
            )
        return self.left.pop(key).detach()

    def readout(self, prefix: str) -> nn.Linear | None:
        """The linear layer under `prefix`, if there is one."""
        if f"{prefix}.weight" not in self.left:
            return None
        weight, bias = self.take(f"{prefix}.weight"), self.take(f"{prefix}.bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        fill(linear, {"weight": weight, "bias": bias}, self.name)
        return linear

    def finish(self) -> None:
        if self.left:
            raise InputError(
                f"the state dict of a published {self.name!r} model has unknown keys {', '.join(sorted(self.left))}: "
                "remove them if they are not parameters of the network"
            )


def fill(module: nn.Module, values: Mapping[str, Tensor], name: str) -> None:
    """Copy published values into the parameters of these names, shapes checked."""
    for key, value in values.items():
        parameter = module.get_parameter(key)
        if parameter.shape != value.shape:
            raise InputError(
                f"a parameter of the published {name!r} model has shape {tuple(value.shape)}, expected "
                f"{tuple(parameter.shape)} for {key}: check the settings against the state dict"
            )
        with torch.no_grad():
            parameter.copy_(value)


def _cornn(keys: _Keys, dt: float, gamma: float, epsilon: float, **settings: Any) -> Loaded:
    weight, bias = keys.take("cell.i2h.weight"), keys.take("cell.i2h.bias")
    hidden = len(bias)
    features = weight.shape[1] - 2 * hidden
    if features < 1:
        raise InputError(
            f"cell.i2h.weight has shape {tuple(weight.shape)}, expected (hidden, input + 2 hidden) with hidden {hidden}"
        )
    rnn = CoRNN(features, hidden, dt=dt, gamma=gamma, epsilon=epsilon, **settings).to(weight.dtype)
    # The published weight acts on the concatenation (x, velocity, position).
    V, R, W = weight.split((features, hidden, hidden), dim=1)
    fill(rnn.field, {"V.weight": V, "V.bias": bias, "W": W, "R": R}, "cornn")
    readout = keys.readout("readout")
    keys.finish()
    return rnn, readout


def _unicornn(keys: _Keys, dt: Any, alpha: float, **settings: Any) -> Loaded:
    layers = sum(re.fullmatch(r"RNNs\.\d+\.weight_hh", key) is not None for key in keys.left)
    if layers == 0:
        keys.take("RNNs.0.weight_hh")
    first = keys.left.get("DIs.0.fc.weight", torch.empty(0, 0))
    features, hidden = first.shape[1], len(keys.left["RNNs.0.weight_hh"])
    rnn = UnICORNN(features or 1, hidden, dt=dt, alpha=alpha, num_layers=layers, **settings).to(first.dtype)
    for i, field in enumerate(rnn.fields):
        maps = {"V.weight": keys.take(f"DIs.{i}.fc.weight"), "V.bias": keys.take(f"DIs.{i}.fc.bias")}
        own = {"w": keys.take(f"RNNs.{i}.weight_hh"), "c": keys.take(f"RNNs.{i}.c_")}
        fill(field, {**maps, **own}, "unicornn")
    readout = keys.readout("classifier")
    keys.finish()
    return rnn, readout


def _lipschitz(keys: _Keys, eps: float, beta: float, gamma: float, alpha: float = 1.0, **settings: Any) -> Loaded:
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


def _lem(keys: _Keys, dt: float, **settings: Any) -> Loaded:
    maps = {"V": "cell.inp2hid", "coupling": "cell.hid2hid", "transform": "cell.transform_z"}
    values = {
        f"{own}.{part}": keys.take(f"{published}.{part}")
        for own, published in maps.items()
        for part in ("weight", "bias")
    }
    hidden, features = len(values["transform.bias"]), values["V.weight"].shape[-1]
    rnn = LEM(features, hidden, dt=dt, **settings).to(values["V.weight"].dtype)
    fill(rnn.field, values, "lem")
    readout = keys.readout("classifier")
    keys.finish()
    return rnn, readout


REFERENCES.add("cornn", _cornn)
REFERENCES.add("unicornn", _unicornn)
REFERENCES.add("lem", _lem)
REFERENCES.add("lipschitz", _lipschitz)
