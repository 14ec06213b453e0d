"""Tensors that a field or a control reads without declaring them: from a closure, an attribute, a list.

Autograd finds them by itself where it records the steps. A gradient that evaluates the field in its backward pass alone
has to know them beforehand: they are seen by watching operations, and whatever else the backward pass comes upon is
refused there.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from solvers.base.counted import Counted
from solvers.base.loop import Loop
from solvers.base.values import concrete
from solvers.errors import PairingError
from solvers.protocol import describe


class Watch(TorchFunctionMode):
    """Notes the tensors with a gradient that operations read and that no watched operation has made.

    Attributes:
        read: these tensors, by their `id`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self._made and concrete(tensor) and tensor.requires_grad:
                self.read[id(tensor)] = tensor
        result = func(*args, **(kwargs or {}))
        # They are held, so that no other tensor takes the address of one of them.
        self._made.update({id(tensor): tensor for tensor in _tensors(result)})
        return result

    def hidden(self, known: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """What was read beside the known tensors."""
        self._made.clear()
        others = set(map(id, known))
        return tuple(tensor for key, tensor in self.read.items() if key not in others)

    def steps(self, loop: Loop, i: int, carried: Any, first: int, last: int) -> Any:
        """Steps of an interval, watched; not where torch compiles them, which does not go together."""
        with contextlib.nullcontext() if torch.compiler.is_compiling() else self:
            return loop.steps(i, carried, first, last)

    def interval(self, loop: Loop, i: int, carried: Any) -> Any:
        """An interval whose first step is watched; of a method that chooses its steps, the first evaluation."""
        if not loop.solver.adaptive:
            carried = self.steps(loop, i, carried, 0, 1)
            return loop.steps(i, carried, 1, loop.substeps)
        if torch.compiler.is_compiling():
            return loop.interval(i, carried)
        path = loop.paths[i]
        # What the paths of the registered controls are made of is known.
        paths: Sequence[Any] = [path if dataclasses.is_dataclass(path) else _First(path, self)]
        field = loop.field if isinstance(loop.field, Counted) else Counted(loop.field)
        field.watch = self
        return dataclasses.replace(loop.stretch(i, i + 1), field=field, paths=paths).interval(0, carried)


class _First:
    """A path whose first evaluation is watched."""

    def __init__(self, path: Any, watch: Watch) -> None:
        self.path, self.watch = path, watch
        self.asked = False

    def __call__(self, t: Any) -> Any:
        if self.asked:
            return self.path(t)
        self.asked = True
        with self.watch:
            return self.path(t)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.path, name)


class Replacing(TorchFunctionMode):
    """Operations read other tensors in place of those of these `id`s."""

    def __init__(self, others: dict[int, Tensor]) -> None:
        super().__init__()
        self.others = others

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_replaced(args, self.others), **_replaced(kwargs or {}, self.others))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _replaced(value: Any, others: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return others.get(id(value), value)
    if type(value) in (tuple, list):
        return type(value)(_replaced(part, others) for part in value)
    if type(value) is dict:
        return {key: _replaced(part, others) for key, part in value.items()}
    return value


def lost(field: Any, tensor: Tensor) -> PairingError:
    """The error for a tensor whose gradient would be lost."""
    return PairingError(
        f"{describe(field)} depends on a tensor of shape {tuple(tensor.shape)} in the backward pass that was not seen "
        "in its first step, so that a gradient would be lost: make it a parameter, or use gradient 'backprop'"
    )


def strange(outputs: Sequence[Tensor], known: set[int]) -> dict[int, Tensor]:
    """The leaves in the graph of some outputs that are not among the known ones, by `id`."""
    return {id(leaf): leaf for leaf in _leaves(outputs) if id(leaf) not in known}


def _leaves(outputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """The leaves of a graph."""
    yield from (output for output in outputs if output.grad_fn is None and output.requires_grad)
    waiting: list[Any] = [output.grad_fn for output in outputs]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                yield node.variable
            waiting += [before for before, _ in node.next_functions]
