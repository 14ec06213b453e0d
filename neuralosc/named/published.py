"""Published weights: from a published model's own state dict to a network of ours that computes the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from neuralosc.layers.linoss import LinOSS
from neuralosc.layers.rnn import ContinuousRNN
from solvers.base.registry import Registry
from solvers.errors import InputError

StateDict = Mapping[str, Tensor]
Loaded = tuple[ContinuousRNN, nn.Linear | None]

REFERENCES: Registry[Callable[..., Any]] = Registry("reference")


B = TypeVar("B", bound=Callable[..., tuple[ContinuousRNN | LinOSS, nn.Linear | None]])


def published(name: str) -> Callable[[B], B]:
    """Register a function of `Keys` and settings that builds the network of a published state dict."""

    def register(build: B) -> B:
        REFERENCES.add(name, build)
        return build

    return register


def from_reference(name: str, state_dict: StateDict, **settings: Any) -> tuple[Any, nn.Linear | None]:
    """The network and the read-out of a published model's state dict.

    Args:
        name: "cornn" (settings dt, gamma, epsilon), "unicornn" (dt, one or one per layer; alpha), "lem" (dt),
            "lipschitz" (eps, beta, gamma, alpha), "antisymmetric" (eps, gamma), "cayley" (none), "noisy" (eps, beta,
            gamma_A, gamma_W, alpha, add_noise, mult_noise; learned_step=False if its solver was "base"), "cfc" (mode,
            activation), "ltc_synapse" (constrained=False if implicit_param_constraints was), "ncde" (none; time is the
            first feature of x, as there) or "linoss", one `LinOSS` layer (discretization, projection; a factor
            exp(gamma_log) of its input goes into B). Further settings, such as `solver`, go to the network.
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
    loaded: tuple[Any, nn.Linear | None] = build(Keys(name, state_dict), **settings)
    return loaded


class Keys:
    """A state dict whose keys are taken one by one, so that none is missed or left over."""

    def __init__(self, name: str, state_dict: StateDict) -> None:
        self.name, self.left = name, dict(state_dict)

    def take(self, key: str) -> Tensor:
        """The value of a key, which must be there."""
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
        """Refuse what was not taken."""
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
