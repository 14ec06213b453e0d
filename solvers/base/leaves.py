"""The tensors that a stretch of a loop depends on, as leaves of their own.

A gradient that recomputes slopes in its backward pass needs their derivatives with respect to the parameters, and to
what is derived from the parameters outside the loop: bound constants, input currents, the clock, what a function closes
over. Those must be cut off from the parameters first; autograd would otherwise follow them there and count the same
gradient twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from solvers.base.clock import Clock
from solvers.base.control import path_tensors, with_path_tensors
from solvers.base.counted import again, bare
from solvers.base.hidden import Replacing, lost, strange
from solvers.base.loop import Loop
from solvers.base.modules import Likeness, parameters_of

Key = tuple[Hashable, ...]


class Leaves:
    """What intervals `first` to `last` - 1 of a loop depend on.

    Args:
        hidden: tensors that it depends on, too, and that nothing names, as a function hides what it closes over.
        likeness: of the field of the loop, where other parameters can be put in.

    Attributes:
        tensors: every tensor, by a key that names the parameter, constant, path or clock entry it is; hidden ones go by
            a number.
    """

    def __init__(
        self, loop: Loop, first: int, last: int, hidden: Sequence[Tensor] = (), likeness: Likeness | None = None
    ) -> None:
        self.loop, self.first, self.last, self.likeness = loop, first, last, likeness
        self.field = bare(loop.field)
        tensors: dict[Key, Any] = {}
        if isinstance(self.field, nn.Module):
            tensors.update({("parameter", name): value for name, value in parameters_of(self.field).items()})
            tensors.update({("constant", name): value for name, value in getattr(self.field, "constants", {}).items()})
        for i in range(first, last):
            tensors.update({("path", i, name): value for name, value in path_tensors(loop.paths[i]).items()})
            tensors["start", i], tensors["span", i] = loop.clock.starts[i], loop.clock.spans[i]
        tensors.update({("hidden", n): value for n, value in enumerate(hidden)})
        self.tensors: dict[Key, Tensor] = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}

    def cut(self) -> dict[Key, Tensor]:
        """The tensors, those that were computed cut off from what they were computed from."""
        return {
            key: value
            if key[0] == "parameter" and value.is_leaf
            else value.detach().requires_grad_(value.requires_grad)
            for key, value in self.tensors.items()
        }

    def linked(self) -> dict[Key, Tensor]:
        """The tensors cut off in the same way, and yet parts of the graph, for a gradient of the gradient."""
        return {key: value.view_as(value) if value.requires_grad else value for key, value in self.tensors.items()}

    def rebuilt(self, values: dict[Key, Tensor]) -> Loop:
        """The stretch as a loop of its own, made of other tensors."""
        field = self.field
        if self.likeness is not None:
            field = self.likeness.with_tensors(self._replaced(values, "parameter"))
        if hasattr(field, "constants"):
            # Bound anew even where no constant changes: what a bound field remembers belongs to one graph.
            constants = {str(key[1]): value for key, value in values.items() if key[0] == "constant"}
            field = field.bind({**field.constants, **constants})
        field = again(self.loop.field, field)
        stretch = self.loop.stretch(self.first, self.last)
        starts = [values.get(("start", i), t) for i, t in self._numbered(stretch.clock.starts)]
        spans = [values.get(("span", i), dt) for i, dt in self._numbered(stretch.clock.spans)]
        paths: dict[int, dict[str, Tensor]] = {i: {} for i in range(self.first, self.last)}
        for key, value in values.items():
            if key[0] == "path":
                _, i, name = key
                paths[i][str(name)] = value  # type: ignore[index]
        replaced = [with_path_tensors(path, paths[i]) for i, path in self._numbered(stretch.paths)]
        clock = Clock(tuple(starts), tuple(spans))
        return type(self.loop)(field, self.loop.solver, replaced, clock, stretch.substeps)

    def reading(self, values: dict[Key, Tensor]) -> AbstractContextManager[Any]:
        """Where the hidden tensors are read, their values are read in here."""
        others = self._replaced(values, "hidden")
        return Replacing(others) if others else contextlib.nullcontext()

    def check(
        self, values: dict[Key, Tensor], inputs: Sequence[Tensor], outputs: Sequence[Tensor], again: Callable[[], Any]
    ) -> None:
        """Refuse outputs that depend on leaves beside the values and the inputs.

        Args:
            again: makes the outputs anew. A leaf that a field makes for itself, to differentiate by it, is another one
                then, and no gradient of it is lost.

        Raises:
            PairingError: there are such leaves.
        """
        known = set(map(id, (*values.values(), *inputs)))
        found = strange(outputs, known)
        if found and (same := found.keys() & strange(again(), known).keys()):
            raise lost(self.field, found[same.pop()])

    def _replaced(self, values: dict[Key, Tensor], kind: str) -> dict[int, Tensor]:
        """The tensors of a kind that others stand for, by the `id` of what they replace."""
        pairs = ((value, values[key]) for key, value in self.tensors.items() if key[0] == kind)
        return {id(value): other for value, other in pairs if other is not value}

    def _numbered(self, items: Any) -> Any:
        return zip(range(self.first, self.last), items, strict=True)


def linked_gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of outputs with respect to those inputs that have one; they can be differentiated again."""
    wanted = [each for each in inputs if each.requires_grad]
    found: Any = [None] * len(wanted)
    if any(output.requires_grad for output in outputs):
        found = torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True)
    remaining = iter(found)
    return tuple(next(remaining) if each.requires_grad else None for each in inputs)
