"""A tensor of a recorded step as an array of nodes, one for each index along axes other than batch and channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from solvers.compiled.step.ir import Matrix, Node
from solvers.compiled.step.refused import Refused

#: An axis: ("b", size) the batch, ("c", size) channels, ("i", size) an index. A dimension of a tensor is a tuple of
#: axes that were flattened into it; of none where its size is 1.
Axis = tuple[str, int]
Dim = tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class NodeArray:
    """A tensor as an array of nodes, whose axes are the index axes of `dims` in their order.

    Raises:
        Refused: two of its dimensions are channels, or samples: a node has one axis of each, along which it would be
            taken for the diagonal.
    """

    dims: tuple[Dim, ...]
    entries: Any

    def __post_init__(self) -> None:
        for kind, name in (("b", "samples"), ("c", "channels")):
            if sum(axis[0] == kind for dim in self.dims for axis in dim) > 1:
                raise Refused(f"{name} meet {name} along another axis, as in an outer product")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(math.prod(size for _, size in dim) for dim in self.dims)


@dataclass(frozen=True, eq=False)
class ParameterMatrix:
    """A matrix of parameters."""

    matrix: Matrix


def entries_of(dims: Sequence[Dim]) -> tuple[int, ...]:
    """Sizes of the index axes."""
    return tuple(size for dim in dims for kind, size in dim if kind == "i")


def whole(node: Node, dims: Sequence[Dim]) -> NodeArray:
    """An array of one node."""
    entries = np.empty(entries_of(dims), dtype=object)
    entries.fill(node)
    return NodeArray(tuple(dims), entries)
