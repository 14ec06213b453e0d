"""The tensors that a stretch of a loop depends on, as leaves of their own.

A gradient that recomputes slopes in its backward pass needs their derivatives with respect to the parameters, and to
what is derived from the parameters outside the loop: bound constants, input currents, the clock. Those must be cut off
from the parameters first; autograd would otherwise follow them there and count the same gradient twice.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from solvers.base.clock import Clock
from solvers.base.control import path_tensors, with_path_tensors
from solvers.base.counted import Counted
from solvers.base.loop import Loop
from solvers.base.modules import in_place, parameters_of

Key = tuple[Hashable, ...]


class Leaves:
    """What intervals `first` to `last` - 1 of a loop depend on.

    Attributes:
        tensors: every tensor, by a key that names the parameter, constant, path or clock entry it is.
    """

    def __init__(self, loop: Loop, first: int, last: int) -> None:
        self.loop, self.first, self.last = loop, first, last
        self.field = loop.field.field if isinstance(loop.field, Counted) else loop.field
        tensors: dict[Key, Any] = {}
        if isinstance(self.field, nn.Module):
            tensors.update({("parameter", name): value for name, value in parameters_of(self.field).items()})
            tensors.update({("constant", name): value for name, value in getattr(self.field, "constants", {}).items()})
        for i in range(first, last):
            tensors.update({("path", i, name): value for name, value in path_tensors(loop.paths[i]).items()})
            tensors["start", i], tensors["span", i] = loop.clock.starts[i], loop.clock.spans[i]
        self.tensors: dict[Key, Tensor] = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}

    def cut(self) -> dict[Key, Tensor]:
        """The tensors, those that are not parameters cut off from what they were computed from."""
        return {
            key: value if key[0] == "parameter" else value.detach().requires_grad_(value.requires_grad)
            for key, value in self.tensors.items()
        }

    def rebuilt(self, values: dict[Key, Tensor]) -> Loop:
        """The stretch as a loop of its own, made of other tensors."""
        field = self.field
        if hasattr(field, "constants"):
            # Bound anew even where no constant changes: what a bound field remembers belongs to one graph.
            constants = {str(key[1]): value for key, value in values.items() if key[0] == "constant"}
            field = field.bind({**field.constants, **constants})
        stretch = self.loop.stretch(self.first, self.last)
        starts = [values.get(("start", i), t) for i, t in self._numbered(stretch.clock.starts)]
        spans = [values.get(("span", i), dt) for i, dt in self._numbered(stretch.clock.spans)]
        paths: dict[int, dict[str, Tensor]] = {i: {} for i in range(self.first, self.last)}
        for key, value in values.items():
            if key[0] == "path":
                _, i, name = key
                paths[i][str(name)] = value  # type: ignore[index]
        replaced = [with_path_tensors(path, paths[i]) for i, path in self._numbered(stretch.paths)]
        return type(self.loop)(field, self.loop.solver, replaced, Clock(tuple(starts), tuple(spans)), stretch.substeps)

    def in_place(self) -> AbstractContextManager[None]:
        """The field with the parameters it had when these leaves were made."""
        return in_place(self.field, {str(key[1]): v for key, v in self.tensors.items() if key[0] == "parameter"})

    def _numbered(self, items: Any) -> Any:
        return zip(range(self.first, self.last), items, strict=True)
