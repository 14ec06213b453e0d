"""What a module holds: parameters and hooks; and a copy of one that shares its tensors and nothing else."""

from __future__ import annotations

import types
import weakref
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from solvers.base.counted import bare


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its `forward`."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(bool, hooks))


def parameters_of(field: Any) -> dict[str, Tensor]:
    """The parameters of a field, by name."""
    module = bare(field)
    return dict(module.named_parameters()) if isinstance(module, nn.Module) else {}


class Likeness:
    """A module as it is now: a copy of the whole tree of modules, with the same tensors.

    A gradient that evaluates a field in the backward pass evaluates this: nothing that happens to the module in between
    is seen there, such as other parameters (as under `torch.func.functional_call`) or a number that was set anew, and
    nothing is done to the module, which other threads may be using. What a module counts in a number
    (`self.calls += 1`) is counted there too.

    It does not keep the module alive, nor states that are kept in it: an attribute with a tensor that was computed is
    left out, unless that is among the `needed` ones, and lists and dicts are copied.

    Attributes:
        module: the copy.
    """

    def __init__(self, module: nn.Module, needed: Container[int] = ()) -> None:
        self._needed = needed
        self._copies: dict[int, nn.Module] = {}
        self._pairs: list[tuple[weakref.ref[nn.Module], nn.Module, dict[str, Any]]] = []
        self.module = self._copied(module)

    def _copied(self, module: nn.Module) -> nn.Module:
        if isinstance(module, torch.jit.ScriptModule):
            # Its tensors are not in Python.
            return module
        copied = self._copies.get(id(module))
        if copied is None:
            # Not by copy.copy, which a parametrized module refuses.
            copied = self._copies[id(module)] = object.__new__(type(module))
            for name, value in vars(module).items():
                if not _left_out(value, self._needed):
                    copied.__dict__[name] = value.copy() if type(value) in (list, dict) else value
            # What a bound field has beside its attributes: its constants, and what it remembers of them.
            for name in slots_of(type(module)):
                if hasattr(module, name):
                    object.__setattr__(copied, name, getattr(module, name))
            for slots in ("_parameters", "_buffers"):
                copied.__dict__[slots] = dict(vars(module)[slots])
            inner = vars(module)["_modules"].items()
            copied.__dict__["_modules"] = {name: m and self._copied(m) for name, m in inner}
            self._pairs.append((weakref.ref(module), copied, _numbers(copied)))
        return copied

    def with_tensors(self, changed: dict[int, Tensor]) -> nn.Module:
        """The copy with other parameters and buffers in place of those of these `id`s."""
        if not changed:
            return self.module
        other = Likeness(self.module, self._needed)
        for _, module, _ in other._pairs:
            for slots in (module._parameters, module._buffers):
                slots.update({n: changed[id(t)] for n, t in slots.items() if id(t) in changed})  # type: ignore[misc]
        return other.module

    @contextmanager
    def counting(self) -> Iterator[None]:
        """What the copy counts in here is added to the counts of the module."""
        try:
            yield
        finally:
            for at, (reference, copied, before) in enumerate(self._pairs):
                now, module = _numbers(copied), reference()
                self._pairs[at] = (reference, copied, now)
                for name in before.keys() & now.keys() if module is not None else ():
                    own = vars(module).get(name)
                    if now[name] != before[name] and type(own) is type(now[name]):
                        setattr(module, name, own + now[name] - before[name])


def slots_of(kind: type) -> list[str]:
    """The names of what the objects of a class hold in slots."""
    members = (item for base in kind.__mro__ for item in vars(base).items())
    return [name for name, member in members if isinstance(member, types.MemberDescriptorType)]


def _numbers(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if type(value) in (int, float)}


def _left_out(value: Any, needed: Container[int]) -> bool:
    """Whether an attribute holds tensors that autograd has computed, none of which is needed."""
    tensors = list(_held(value))
    return any(t.grad_fn is not None for t in tensors) and not any(id(t) in needed for t in tensors)


def _held(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """The tensors in an attribute, in containers and plain objects too, but not those of modules."""
    if isinstance(value, Tensor):
        yield value
    elif depth and not isinstance(value, nn.Module | type):
        parts: Any = value if isinstance(value, list | tuple | set) else ()
        if isinstance(value, dict):
            parts = value.values()
        elif type(value).__module__ != "builtins":
            parts = getattr(value, "__dict__", {}).values()
        for part in list(parts):
            yield from _held(part, depth - 1)
