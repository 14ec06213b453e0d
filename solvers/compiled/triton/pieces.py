"""Values cut into pieces of channels, so that no register tensor is ever sliced or joined.

A tensor in registers cannot be taken apart. Where a step slices a value or puts values beside each other, everything
that is combined with it entry by entry is cut at the same channels, and each piece is a tensor of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from solvers.compiled.step.ir import Node
from solvers.compiled.step.ops import OVER_CHANNELS

#: First channel and number of channels.
Piece = tuple[int, int]


class Cuts:
    """Where every value of a plan is cut.

    Args:
        nodes: all values.
        looped: values of one width that are cut alike, because one becomes the other in the next step.
        added: values that are added to some of these beside each other.
        largest: most channels of a piece.
    """

    def __init__(self, nodes: Iterable[Node], looped: list[Node], added: list[Node], largest: int) -> None:
        self.largest = largest
        self.at: dict[Node, set[int]] = {node: {0, node.width} for node in nodes}
        links = [link for node in self.at for link in _links(node)]
        wide = [node for node in looped if node.width > 1]
        links += [(wide[0], other, 0) for other in wide[1:]]
        links += [(node, part, at) for part in wide[:1] for node in added for at in range(0, node.width, part.width)]
        # A cut travels through every combination that either value takes part in, until nothing new is cut.
        changed = True
        while changed:
            changed = False
            for whole, part, start in links:
                changed |= self._linked(whole, part, start)

    def _linked(self, whole: Node, part: Node, start: int) -> bool:
        """Carry the cuts of a value and of the part of it that begins at a channel over to each other."""
        if whole not in self.at or part not in self.at:
            return False
        of_whole, of_part = self.at[whole], self.at[part]
        before = len(of_whole) + len(of_part)
        of_whole |= {c + start for c in of_part}
        of_part |= {c - start for c in of_whole if start <= c <= start + part.width}
        return len(of_whole) + len(of_part) > before

    def of(self, node: Node) -> list[Piece]:
        """The pieces of a value."""
        edges = sorted(self.at[node])
        pieces: list[Piece] = []
        for left, right in itertools.pairwise(edges):
            pieces += [(at, min(self.largest, right - at)) for at in range(left, right, self.largest)]
        return pieces


def _links(node: Node) -> list[tuple[Node, Node, int]]:
    """A value, another that is part of it, and the channel where that begins."""
    if node.op in ("mm", *OVER_CHANNELS):
        return []
    if node.op == "slice":
        return [(node.args[0], node, node.data[0])]
    if node.op == "cat":
        starts = [sum(a.width for a in node.args[:i]) for i in range(len(node.args))]
        return [(node, part, start) for part, start in zip(node.args, starts, strict=True)]
    return [(node, arg, 0) for arg in node.args if arg.width == node.width > 1]
