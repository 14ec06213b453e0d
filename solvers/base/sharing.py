"""Modules that share what they hold: another view of one, and a tree of its own over the same tensors."""

from __future__ import annotations

import contextlib
import weakref
from typing import TypeVar

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

M = TypeVar("M", bound=nn.Module)

#: Hooks that set a weight from other tensors when its module is called.
REPARAMETRIZATIONS = (BasePruningMethod, SpectralNorm, WeightNorm)

#: What a module keeps in dictionaries that a second one must not change along with it.
_OWN = ("_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Lineage:
    """What a module and its twins have in common; it lives as long as one of them."""


_LINEAGES: weakref.WeakKeyDictionary[nn.Module, Lineage] = weakref.WeakKeyDictionary()


def lineage(module: nn.Module) -> Lineage:
    """The lineage of a module, by which what was made for it is found for its twins."""
    return _LINEAGES.setdefault(module, Lineage())


def view(module: M, apart: bool = False) -> M:
    """The same module as another object: all attributes in common, but for slots of its class.

    A copy would keep to itself what it sets; and torch refuses to copy a module that is parametrized.

    Args:
        module: the module.
        apart: attributes set on one are not set on the other.
    """
    seen = object.__new__(type(module))
    object.__setattr__(seen, "__dict__", dict(vars(module)) if apart else vars(module))
    return seen


def twin(module: M, twins: dict[int, nn.Module] | None = None) -> M:
    """A tree of modules of its own over the same parameters and buffers.

    It has its own mode (`train`, `eval`), hooks and attributes. Parameters and buffers are held in common, so that
    training one trains the other and `to` reaches both.
    """
    twins = {} if twins is None else twins
    if id(module) not in twins:
        copied = twins[id(module)] = view(module, apart=True)
        with contextlib.suppress(TypeError):
            # A module that defines equality alone cannot be looked up, and so has no kernels.
            _LINEAGES[copied] = lineage(module)
        for name in _OWN:
            copied.__dict__[name] = vars(module)[name].copy()
        for name, child in module._modules.items():
            copied._modules[name] = None if child is None else twin(child, twins)
    made = twins[id(module)]
    assert isinstance(made, type(module))
    return made


def refresh(module: nn.Module) -> None:
    """Set the weights that hooks of torch (`prune`, the old `weight_norm` and `spectral_norm`) set in a call.

    For whoever reads the weight of a module without calling it.
    """
    for child in module.modules():
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, REPARAMETRIZATIONS):
                hook(child, ())
