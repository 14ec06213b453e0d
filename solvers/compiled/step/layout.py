"""The state as a loop carries it, packed into one tensor, and the states of a whole solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.base.solver import Solver
from solvers.base.state import packed
from solvers.compiled.step.refused import Refused


@dataclass(frozen=True)
class Layout:
    """How what a solver carries from step to step lies in one tensor `(batch, components, hidden)`.

    Attributes:
        counts: components of each part of a carried tuple, 0 for a part that is one component `(batch, hidden)`.
        single: the carried form is a tensor, not a tuple.
    """

    counts: tuple[int, ...]
    single: bool

    @classmethod
    def of(cls, carried: Any, state: Tensor) -> Layout:
        """The layout of a carried form of a state."""
        parts = carried if isinstance(carried, tuple) else (carried,)
        for part in parts:
            if not isinstance(part, Tensor) or part.dim() not in (2, 3) or part.shape[-1] != state.shape[-1]:
                raise Refused("the solver carries something other than components of the state")
        return cls(tuple(0 if p.dim() == 2 else p.shape[1] for p in parts), not isinstance(carried, tuple))

    @property
    def total(self) -> int:
        """Components of the packed tensor."""
        return sum(max(n, 1) for n in self.counts)

    def packed(self, carried: Any) -> Tensor:
        """The carried form as one tensor."""
        if self.single:
            whole: Tensor = carried
            return whole
        if not any(self.counts):
            return packed(carried)
        return torch.cat([part if n else part.unsqueeze(-2) for part, n in zip(carried, self.counts, strict=True)], -2)

    def taken(self, packed: Tensor) -> Any:
        """The carried form of a packed tensor."""
        if self.single:
            return packed
        if not any(self.counts):
            return packed.unbind(-2)
        parts = packed.split([max(n, 1) for n in self.counts], -2)
        return tuple(part if n else part.squeeze(-2) for part, n in zip(parts, self.counts, strict=True))

    def joined(self, components: Sequence[Tensor]) -> Any:
        """The carried form of separate components `(.., hidden)`."""
        found, at = [], 0
        for n in self.counts:
            found.append(torch.stack(list(components[at : at + n]), -2) if n else components[at])
            at += max(n, 1)
        return found[0] if self.single else tuple(found)

    def components(self, carried: Any) -> list[Tensor]:
        """The separate components `(.., hidden)` of a carried form; `joined` taken back."""
        parts = (carried,) if self.single else carried
        return [c for part, n in zip(parts, self.counts, strict=True) for c in (part.unbind(-2) if n else (part,))]

    def position(self, solver: Solver) -> int | None:
        """Which packed component a solver calls the position; None where that is not one of them as it is."""
        unit = torch.eye(self.total)
        shown = solver.position(self.joined(unit.unbind(0)))
        found = [i for i in range(self.total) if torch.equal(shown, unit[i])]
        return found[0] if found else None
