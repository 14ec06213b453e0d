"""Published weights: from a published model's own state dict to a network of ours that computes the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from neuralosc.layers.rnn import ContinuousRNN
from solvers.base.registry import Registry
from solvers.errors import InputError

StateDict = Mapping[str, Tensor]
Loaded = tuple[ContinuousRNN, nn.Module | None]
#: Weight and bias of a linear map.
Map = tuple[Tensor, Tensor]

REFERENCES: Registry[Callable[..., Any]] = Registry("reference")


B = TypeVar("B", bound=Callable[..., tuple[nn.Module, nn.Module | None]])


def published(name: str) -> Callable[[B], B]:
    """Register a function of `Keys` and settings that builds the network of a published state dict."""

    def register(build: B) -> B:
        REFERENCES.add(name, build)
        return build

    return register


def from_reference(name: str, state_dict: StateDict, **settings: Any) -> tuple[Any, nn.Module | None]:
    """The network and the read-out of a published model's state dict.

    Args:
        name: "cornn" (settings dt, gamma, epsilon), "unicornn" (dt, one or one per layer; alpha), "lem" (dt),
            "lipschitz" (eps, beta, gamma, alpha), "antisymmetric" (eps, gamma), "cayley" (none), "noisy" (eps, beta,
            gamma_A, gamma_W, alpha, add_noise, mult_noise; learned_step=False if its solver was "base"), "cfc" (mode,
            activation), "ltc_synapse" (constrained=False if implicit_param_constraints was), "ncde" (none; time is the
            first feature of x, as there), "odernn" and "latent_ode" (none), "odelstm" (solver; a sample comes after
            its timespan here, and before it there, see `LSTMFlow`), "grud" (empirical_mean, of each feature; there the
            first timespan is 0), "gruodebayes" (delta_t, the longest step, in the units of the timespans; logvar) or
            "linoss", one `LinOSS` layer (discretization, projection; a factor exp(gamma_log) of its input goes into
            B). Further settings, such as `solver`, go to the network.
        state_dict: parameters under their published names. What the published code has and never uses is left out.

    Returns:
        the network, and an `nn.Linear` read-out, or None when the state dict has none; of "odernn", "latent_ode" and
        "gruodebayes" an `nn.ModuleDict` of what the model has around the network, by its published names, without its
        dropout (the `covariates_map` of "gruodebayes" gives h of the initial state).

    Raises:
        UnknownNameError: no such published model.
        InputError: keys are missing, left over or of the wrong shape.
    """
    build = REFERENCES[name]
    needed = [p.name for p in inspect.signature(build).parameters.values() if p.default is p.empty]
    missing = [key for key in needed if key not in ("keys", "settings", *settings)]
    if missing:
        raise InputError(f"a published {name!r} model needs the settings {', '.join(missing)}: give them by name")
    try:
        loaded: tuple[Any, nn.Module | None] = build(Keys(name, state_dict), **settings)
    except (RuntimeError, IndexError, TypeError) as error:
        # Of shapes that do not go together, or of a setting that the state dict decides.
        raise InputError(
            f"the state dict of a published {name!r} model and its settings do not fit each other "
            f"({' '.join(str(error).split())[:200]}): give the model's own"
        ) from error
    return loaded


class Keys:
    """A state dict whose keys are taken one by one, so that none is missed or left over."""

    def __init__(self, name: str, state_dict: StateDict) -> None:
        self.name, self.left = name, dict(state_dict)

    def wrong(self, what: str) -> InputError:
        """The error of a state dict of which this is said."""
        return InputError(f"the state dict of a published {self.name!r} model {what}: give the model's own state dict")

    def take(self, key: str) -> Tensor:
        """The value of a key, which must be there."""
        if key not in self.left:
            raise self.wrong(f"needs the key {key!r}, found {_some(self.left) or 'no keys'}")
        return self.left.pop(key).detach()

    def maps(self, prefix: str, places: Iterable[int] | None = None) -> list[Map]:
        """The linear maps `prefix.i` at these places; if left out, at 0, 2, .. while there are keys under `prefix`."""
        found: list[Map] = []
        if places is not None:
            return [(self.take(f"{prefix}.{i}.weight"), self.take(f"{prefix}.{i}.bias")) for i in places]
        while any(key.startswith(f"{prefix}.") for key in self.left):
            found += self.maps(prefix, [2 * len(found)])
        return found

    def repeated(self, prefix: str, original: str) -> None:
        """Leave out the keys under `prefix` of a module that the model holds twice, in which the same must stand."""
        for key in [key for key in self.left if key.startswith(f"{prefix}.")]:
            again, value = self.left.get(original + key.removeprefix(prefix)), self.left.pop(key)
            if again is None or not torch.equal(again, value):
                raise self.wrong(f"has {key!r} otherwise than under {original!r}, which is the same module there")

    def unused(self, prefix: str) -> None:
        """Leave out the keys under `prefix`, which the published code never uses."""
        self.left = {key: value for key, value in self.left.items() if not key.startswith(f"{prefix}.")}

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
                f"the state dict of a published {self.name!r} model has unknown keys {_some(self.left)}: "
                "remove them if they are not parameters of the network"
            )


def _some(names: Iterable[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    first, others = sorted(names)[:most], len(set(names)) - most
    return ", ".join(first) + (f" and {others} more" if others > 0 else "")


def perceptron(
    name: str, size: int | None, maps: Sequence[Map], activation: Callable[[], nn.Module], *last: nn.Module
) -> nn.Sequential:
    """Published linear maps of `size` values (of any number if None), activations between them, and what comes last."""
    parts: list[nn.Module] = []
    for weight, bias in maps:
        linear = nn.Linear(weight.shape[1] if size is None else size, len(weight), dtype=weight.dtype)
        fill(linear, {"weight": weight, "bias": bias}, name)
        parts, size = [*parts, linear, activation()], len(weight)
    return nn.Sequential(*parts[:-1], *last)


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
