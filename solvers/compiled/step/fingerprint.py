"""What tells one kind of step from another: everything that a recorded step holds as it was."""

from __future__ import annotations

import types
import weakref
from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from solvers.base.modules import has_hooks
from solvers.compiled.step.refused import Refused


def frozen(value: Any, depth: int = 4) -> Hashable:
    """What a value that is no tensor is made of, so that two that differ can be told apart."""
    if isinstance(value, float | int | str | bytes | type(None)):
        return (type(value).__name__, repr(value))
    if isinstance(value, Tensor):
        return ("tensor", id(value), value._version)
    if isinstance(value, tuple | list | set | frozenset) and depth:
        return (type(value).__name__, *(frozen(v, depth - 1) for v in value))
    if isinstance(value, dict) and depth:
        return tuple((frozen(k, 0), frozen(v, depth - 1)) for k, v in value.items())
    if isinstance(value, types.FunctionType) and depth:
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return (_same(value), frozen(cells, depth - 1), frozen(value.__defaults__, depth - 1))
    if isinstance(value, types.MethodType) and depth:
        return (frozen(value.__func__, depth - 1), _same(value.__self__))
    if depth and hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        return (_same(value), frozen(vars(value), depth - 1))
    return _same(value)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _same(value: Any) -> Hashable:
    """Equal for the same object alone, also when another one takes its place in memory."""
    try:
        reference = weakref.ref(value)
        hash(reference)
    except TypeError:
        return id(value)
    return reference


_MODULE_STATE = frozenset(vars(nn.Module())) - {"training"}


def fingerprint(module: nn.Module) -> Hashable:
    """Everything of a field that a recorded step holds as it was: its class, its numbers, its tensors' shapes.

    Raises:
        Refused: it has hooks, which a recorded step would not call.
    """
    parts: list[Hashable] = []
    for name, child in module.named_modules():
        if has_hooks(child):
            raise Refused("the field has hooks")
        own = {k: v for k, v in vars(child).items() if k not in _MODULE_STATE and k not in ("_bound", "operators")}
        tensors = [
            (k, None if t is None else (t.shape, t.dtype, t.requires_grad))
            for kept in (child._parameters, child._buffers)
            for k, t in kept.items()
        ]
        parts.append((name, type(child), frozen(own), tuple(tensors)))
    return tuple(parts)
