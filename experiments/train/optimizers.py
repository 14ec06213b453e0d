"""Optimizers of torch by name, their options, and the groups of parameters that they treat differently."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from solvers.errors import InputError, unknown

# Not LBFGS, which evaluates the loss again, Rprop, which needs the whole training set in a batch, SparseAdam and Muon,
# which are for some parameters alone.
OPTIMIZERS = (
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "nadam",
    "radam",
    "rmsprop",
    "sgd",
)

#: What some of the options mean, of all optimizers that take them.
OPTIONS = {
    "alpha": "smoothing of the squared gradient in rmsprop; in asgd the power by which the step shrinks",
    "amsgrad": "divide by the largest average of the squared gradient so far",
    "beta2_decay": "power of the step number by which the average of the squared gradient forgets",
    "betas": "how slowly the averages of the gradient and of its square (adamax: its largest size) forget",
    "centered": "divide by the deviation of the gradient in place of its root mean square",
    "d": "root mean square of an update above which it is clipped",
    "dampening": "part of the gradient that momentum leaves out",
    "decoupled_weight_decay": "keep the decay out of the averages of the gradient, as adamw does",
    "eps": "added to what is divided by; of adafactor the least squared gradient and the least scale of a parameter",
    "initial_accumulator_value": "what the sum of squared gradients starts from",
    "lambd": "how fast the step shrinks",
    "lr_decay": "how fast the step shrinks with the number of steps",
    "momentum_decay": "how fast the momentum comes to its final value",
    "nesterov": "Nesterov's momentum",
    "rho": "smoothing of the squared gradient",
    "t0": "step from which on weights are averaged",
}

# What has a key of its own in the configuration, and what chooses how a step is computed or turns it round.
_RESERVED = {"params", "lr", "weight_decay", "momentum"}
_COMPUTED = {"maximize", "foreach", "fused", "capturable", "differentiable"}

#: The key of a group of parameters under which it has a factor on the learning rate of the run.
FACTOR = "lr_factor"

Groups = list[dict[str, Any]]


def kind(name: str) -> type[torch.optim.Optimizer]:
    """The class of an optimizer of `OPTIMIZERS`."""
    found: type[torch.optim.Optimizer] = next(
        value for key, value in vars(torch.optim).items() if key.lower() == name and isinstance(value, type)
    )
    return found


def defaults(name: str) -> dict[str, Any]:
    """The options of an optimizer besides the learning rate, decay and momentum, with their defaults."""
    parameters = inspect.signature(kind(name)).parameters
    return {key: p.default for key, p in parameters.items() if key not in _RESERVED | _COMPUTED}


def has_momentum(name: str) -> bool:
    """Whether an optimizer takes a momentum."""
    return "momentum" in inspect.signature(kind(name)).parameters


def check(name: str, options: Mapping[str, Any], momentum: float = 0.0) -> None:
    """Refuse options that an optimizer does not take, with a momentum where it has one.

    Raises:
        UnknownNameError: it has none of that name.
        InputError: a value that it cannot use.
    """
    for key in options:
        if key not in defaults(name):
            raise unknown(f"option of optimizer {name!r}", key, defaults(name))
    if options:
        try:
            made(name, [{"params": [torch.zeros(1, requires_grad=True)]}], lr=0.1, momentum=momentum, options=options)
        except Exception as error:
            raise InputError(f"optimizer_options of {name!r}: {' '.join(str(error).split())}") from error


def made(
    name: str,
    groups: Groups,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of that name over groups of parameters."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    if has_momentum(name):
        given["momentum"] = momentum
    make: Any = kind(name)
    result: torch.optim.Optimizer = make(groups, lr=lr, weight_decay=weight_decay, **given)
    return result


def constants(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of a model that are constants of its dynamics and no weights, by name.

    They are those that a module (a `VectorField`, or a part of one) names in its attribute `dynamics`, whether it holds
    them itself, in a module of that name, or reparametrized by torch.
    """
    chosen: set[int] = set()
    for module in model.modules():
        names = getattr(type(module), "dynamics", ())
        if isinstance(names, tuple):
            chosen |= {id(parameter) for name in names for parameter in _held(module, name)}
    return {name: p for name, p in model.named_parameters() if id(p) in chosen and p.requires_grad}


def _held(module: nn.Module, name: str) -> Iterator[nn.Parameter]:
    stored = getattr(module, "parametrizations", None)
    held = stored[name] if isinstance(stored, nn.ModuleDict) and name in stored else getattr(module, name, None)
    if isinstance(held, nn.Parameter):
        yield held
    elif isinstance(held, nn.Module):
        yield from held.parameters()


def groups(model: nn.Module, weight_decay: float = 0.0, dynamics_lr: float = 1.0) -> Groups:
    """The parameters of a model by how they are trained; what is treated alike is one group.

    Weights decay; vectors and the constants of the dynamics do not: drawn to zero they are another equation. Constants
    have a learning rate of their own, `dynamics_lr` times that of all others.

    Raises:
        InputError: a factor for constants, and the model has none that are trained.
    """
    of_dynamics = {id(parameter) for parameter in constants(model).values()}
    if dynamics_lr != 1 and not of_dynamics:
        raise InputError(
            f"dynamics_lr is {dynamics_lr:g}, and no constant of the dynamics of this network is trained: leave it out"
        )
    parts: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        constant = id(parameter) in of_dynamics
        spared = bool(weight_decay) and (constant or parameter.dim() <= 1)
        parts.setdefault((spared, constant and dynamics_lr != 1), []).append(parameter)
    made_: Groups = []
    for (spared, slow), parameters in sorted(parts.items()):
        group: dict[str, Any] = {"params": parameters}
        if spared:
            group["weight_decay"] = 0.0
        if slow:
            group[FACTOR] = dynamics_lr
        made_.append(group)
    return made_


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its learning rate, where that of the run is `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[FACTOR] if FACTOR in group else rate
