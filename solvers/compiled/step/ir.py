"""The small language a step is turned into: hash-consed nodes over rows, columns, states and parameter matrices.

A value is `(batch, width)`, where either axis may be missing: a state or an input current has both, a row (one value
per channel) and a scalar have no batch, a column (one value per sample) and a scalar have width 1. Matrices are no
values: they appear as the right factor of a product alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from solvers.compiled.step.ops import OPERATIONS
from solvers.compiled.step.refused import Refused


@dataclass(frozen=True)
class Tile:
    """A parameter matrix, perhaps transposed, at a place of a larger one."""

    leaf: Hashable
    rows: int
    columns: int
    transposed: bool = False
    top: int = 0
    left: int = 0

    def moved(self, top: int, left: int) -> Tile:
        """The same tile further down and right."""
        return Tile(self.leaf, self.rows, self.columns, self.transposed, self.top + top, self.left + left)

    @property
    def T(self) -> Tile:
        """The tile of the transposed matrix."""
        return Tile(self.leaf, self.columns, self.rows, not self.transposed, self.left, self.top)


@dataclass(frozen=True)
class Matrix:
    """A matrix put together from parameter matrices, which acts from the right."""

    rows: int
    columns: int
    tiles: tuple[Tile, ...]

    @property
    def T(self) -> Matrix:
        """Transposed."""
        return Matrix(self.columns, self.rows, tuple(tile.T for tile in self.tiles))

    @classmethod
    def stacked(cls, parts: Sequence[Matrix]) -> Matrix:
        """One above the other."""
        tops = [sum(p.rows for p in parts[:i]) for i in range(len(parts))]
        tiles = tuple(tile.moved(top, 0) for top, p in zip(tops, parts, strict=True) for tile in p.tiles)
        return cls(sum(p.rows for p in parts), parts[0].columns, tiles)

    @classmethod
    def beside(cls, parts: Sequence[Matrix]) -> Matrix:
        """One beside the other."""
        return cls.stacked([p.T for p in parts]).T


@dataclass(frozen=True, eq=False)
class Node:
    """One value.

    Attributes:
        op: what makes it: "leaf", "const", one of `ops.OPERATIONS`, "slice", "cat", "mm" (times a matrix), "csum" and
            "cmax" (sum and maximum over channels), "bsum" (sum over samples), "stop" (no gradient passes).
        args: what it is made of.
        data: the rest: key of a leaf, value of a constant, bounds of a slice, matrix of a product.
        batch: has one value per sample.
        width: number of channels, 1 where all share one value.
        varies: changes from step to step.
        number: its place in the order of creation, in which arguments come first.
    """

    op: str
    args: tuple[Node, ...]
    data: Any
    batch: bool
    width: int
    varies: bool
    number: int

    @property
    def scalar(self) -> bool:
        """One number for all samples and channels."""
        return not self.batch and self.width == 1

    def __repr__(self) -> str:
        return f"%{self.number}"


class Graph:
    """Makes nodes, each different one once."""

    def __init__(self) -> None:
        self._known: dict[Any, Node] = {}

    def leaf(self, key: Hashable, batch: bool, width: int, varies: bool) -> Node:
        """A value from outside."""
        return self._node("leaf", (), key, batch, width, varies)

    def const(self, value: float) -> Node:
        """A number."""
        # The sign of a zero and a NaN must not be lost in the comparison of keys.
        return self._node("const", (), float(value), False, 1, False, key=repr(float(value)))

    def _node(
        self, op: str, args: tuple[Node, ...], data: Any, batch: bool, width: int, varies: bool, key: Any = None
    ) -> Node:
        name = (op, args, data if key is None else key)
        if name not in self._known:
            self._known[name] = Node(op, args, data, batch, width, varies, len(self._known))
        return self._known[name]

    def pointwise(self, op: str, *args: Node, data: Any = None) -> Node:
        """A function of values, entry by entry."""
        values = [a.data if a.op == "const" else None for a in args]
        fold = OPERATIONS[op].fold
        if fold is not None and None not in values:
            try:
                return self.const(fold(*values))
            except (ArithmeticError, ValueError):
                # Such as 1 / 0, which is left to the loop: there it is what torch makes of it.
                pass
        simple = self._simplified(op, args, values, data)
        if simple is not None:
            return simple
        widths = {a.width for a in args} - {1}
        if len(widths) > 1:
            raise Refused(f"widths {sorted(widths)} meet in one operation")
        parted = next((a for a in args if a.op == "cat"), None)
        if parted is not None:
            # Part by part: what lies beside each other is never computed as one.
            computed, start = [], 0
            for part in parted.args:
                pieces = [self.slice(a, start, part.width) for a in args]
                computed.append(self.wide(self.pointwise(op, *pieces, data=data), part.width))
                start += part.width
            return self.cat(computed)
        return self._node(
            op, args, data, any(a.batch for a in args), max(a.width for a in args), any(a.varies for a in args)
        )

    def _simplified(self, op: str, args: tuple[Node, ...], values: list[Any], data: Any) -> Node | None:
        if op == "add":
            return args[1] if values[0] == 0 else args[0] if values[1] == 0 else None
        if op == "sub":
            return args[0] if values[1] == 0 else self.pointwise("neg", args[1]) if values[0] == 0 else None
        if op == "mul":
            for one, other in ((0, 1), (1, 0)):
                if values[one] == 1:
                    return args[other]
                if values[one] == -1:
                    return self.pointwise("neg", args[other])
            if values[1] is not None:
                # The number first, so that the same product is the same node.
                return self.pointwise("mul", args[1], args[0])
            a, b = args
            # (c x) y with a number c, and x y z with shared x y: keep what does not depend on the sample together.
            if b.op == "mul" and not a.batch and not b.args[0].batch and b.args[1].batch:
                return self.pointwise("mul", self.pointwise("mul", a, b.args[0]), b.args[1])
            return self.pointwise("mul", b, a) if a.batch and not b.batch else None
        if op == "div":
            if values[1] == 1:
                return args[0]
            # One division for each channel, or for all, instead of one for each sample.
            if not args[1].batch and (args[0].batch or args[0].width > args[1].width):
                return self.pointwise("mul", args[0], self.pointwise("div", self.const(1.0), args[1]))
        if op == "neg" and args[0].op == "neg":
            return args[0].args[0]
        if op == "pow":
            if data == 1:
                return args[0]
            if data == 2:
                return self.pointwise("mul", args[0], args[0])
            if data == 0.5:
                return self.pointwise("sqrt", args[0])
            if data == 3:
                return self.pointwise("mul", self.pointwise("mul", args[0], args[0]), args[0])
        return None

    def slice(self, x: Node, start: int, width: int) -> Node:
        """Channels `start` to `start + width` - 1."""
        if x.width == 1 or (start == 0 and width == x.width):
            return x
        if x.op == "slice":
            return self.slice(x.args[0], x.data[0] + start, width)
        if x.op == "cat":
            at, overlap = 0, []
            for part in x.args:
                first, last = max(start - at, 0), min(start + width - at, part.width)
                if first < last:
                    overlap.append(self.slice(part, first, last - first))
                at += part.width
            return self.cat(overlap)
        if x.op not in ("leaf", "mm", "bsum"):
            # Of an entry-by-entry function: of its arguments.
            return self.renewed(x, tuple(self.slice(a, start, width) for a in x.args))
        return self._node("slice", (x,), (start, width), x.batch, width, x.varies)

    def cat(self, parts: Sequence[Node]) -> Node:
        """Channels beside each other."""
        if len(parts) == 1:
            return parts[0]
        # Neighbouring slices of one value are a slice of it, and need not be put together.
        if all(p.op == "slice" and p.args == parts[0].args for p in parts):
            ends = [p.data[0] + p.data[1] for p in parts]
            if all(p.data[0] == end for p, end in zip(parts[1:], ends, strict=False)):
                return self.slice(parts[0].args[0], parts[0].data[0], ends[-1] - parts[0].data[0])
        batch, varies = any(p.batch for p in parts), any(p.varies for p in parts)
        return self._node("cat", tuple(parts), None, batch, sum(p.width for p in parts), varies)

    def mm(self, x: Node, matrix: Matrix) -> Node:
        """X M."""
        if x.width != matrix.rows:
            raise Refused(f"a product of width {x.width} with a matrix of {matrix.rows} rows")
        if not x.batch:
            raise Refused("a product of a matrix with what is the same for all samples")
        return self._node("mm", (x,), matrix, True, matrix.columns, True)

    def wide(self, x: Node, width: int) -> Node:
        """What all channels share, once per channel."""
        if x.width == width:
            return x
        # As an addition, so that no emitter needs an operation for it; that of a leaf, which is not simplified away.
        zeros = self.leaf(("zeros", width), False, width, False)
        return self._node("add", (zeros, x), None, x.batch, width, x.varies)

    def csum(self, x: Node) -> Node:
        """Sum over channels."""
        if x.op == "cat":
            return self.sum(self.csum(part) for part in x.args)
        return x if x.width == 1 else self._node("csum", (x,), None, x.batch, 1, x.varies)

    def cmax(self, x: Node) -> Node:
        """Maximum over channels."""
        if x.op == "cat":
            first, *rest = (self.cmax(part) for part in x.args)
            for other in rest:
                first = self.pointwise("max", first, other)
            return first
        return x if x.width == 1 else self._node("cmax", (x,), None, x.batch, 1, x.varies)

    def bsum(self, x: Node) -> Node:
        """Sum over samples."""
        if x.op == "cat" and all(part.batch or (part.op == "leaf" and part.data[0] == "zeros") for part in x.args):
            return self.cat([self.bsum(part) if part.batch else part for part in x.args])
        return self._node("bsum", (x,), None, False, x.width, True)

    def stop(self, x: Node) -> Node:
        """X, as a constant for the gradient."""
        return x if x.op == "const" else self._node("stop", (x,), None, x.batch, x.width, x.varies)

    def sum(self, terms: Iterable[Node]) -> Node:
        """The sum of some values."""
        total, *rest = terms
        for term in rest:
            total = self.pointwise("add", total, term)
        return total

    def renewed(self, node: Node, args: tuple[Node, ...]) -> Node:
        """The same operation on other arguments."""
        if node.op in ("leaf", "const", "opaque"):
            return node
        if node.op == "slice":
            return self.slice(args[0], *node.data)
        if node.op == "cat":
            return self.cat(args)
        if node.op == "mm":
            return self.mm(args[0], node.data)
        if node.op in ("csum", "cmax", "bsum", "stop"):
            made: Node = getattr(self, node.op)(args[0])
            return made
        return self.pointwise(node.op, *args, data=node.data)


def ordered(roots: Iterable[Node], stop: Any = ()) -> list[Node]:
    """Every node the roots depend on, arguments first; nothing behind the nodes in `stop`."""
    reached: set[Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            if node not in stop:
                waiting += node.args
    # A node is made after its arguments: the order of creation is one of computation.
    return sorted(reached, key=lambda node: node.number)


def uses(nodes: Iterable[Node]) -> dict[Node, int]:
    """How often each node is an argument."""
    count: dict[Node, int] = {}
    for node in nodes:
        for arg in node.args:
            count[arg] = count.get(arg, 0) + 1
    return count
