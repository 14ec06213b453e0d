"""From a traced aten graph to the language of `ir`: what is understood, and how shapes become rows and columns.

A traced tensor becomes a `NodeArray`: an array of nodes, one for each index along the axes that are neither the batch
nor the channels. Selecting, stacking, splitting and reshaping then only rearrange nodes and cost nothing at run time.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from solvers.compiled.step.arrays import Axis, Dim, NodeArray, ParameterMatrix, entries_of, whole
from solvers.compiled.step.ir import Graph, Node
from solvers.compiled.step.ops import POINTWISE, Term
from solvers.compiled.step.reductions import REDUCTIONS
from solvers.compiled.step.refused import Refused


class Lowering:
    """Walks the nodes of an fx graph.

    Attributes:
        graph: where nodes are made.
        batch: size of the batch in the trace.
    """

    def __init__(self, graph: Graph, batch: int) -> None:
        self.graph, self.batch = graph, batch

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of one operation."""
        if target is operator.getitem:
            return args[0][args[1]]
        name = getattr(target, "_schema", None)
        if name is None:
            raise Refused(f"it calls {target}")
        # Without views, torch records their copies.
        short = name.name.removeprefix("aten::").removesuffix("_copy")
        if short in _SHAPES:
            return _SHAPES[short](self, *args, **kwargs)
        if short in POINTWISE:
            return self.pointwise(POINTWISE[short], *args, **kwargs)
        if short in REDUCTIONS:
            return REDUCTIONS[short](self, *args, **kwargs)
        raise Refused(f"it uses {name.name}, which the fast path does not know")

    def scalar(self, value: Any) -> NodeArray:
        """A number as a block."""
        return whole(self.graph.const(float(value)), ())

    def block(self, x: Any) -> NodeArray:
        """An argument of a pointwise function."""
        if isinstance(x, NodeArray):
            return x
        if isinstance(x, ParameterMatrix):
            raise Refused("a matrix of parameters meets the state outside of a product")
        if isinstance(x, bool | int | float):
            return self.scalar(x)
        raise Refused(f"an operand is a {type(x).__name__}")

    def pointwise(self, formula: Callable[..., Term], *args: Any, **kwargs: Any) -> NodeArray:
        """A function entry by entry, with broadcasting."""
        # Numbers are values like others; words, such as the form of gelu, are not.
        operands = [x for x in args if not _option(x)]
        options = [x for x in args if _option(x)]
        blocks = self.aligned([self.block(x) for x in operands])
        shape = blocks[0].entries.shape
        entries = np.empty(shape, dtype=object)
        for index in np.ndindex(*shape):
            terms = [Term(self.graph, b.entries[index]) for b in blocks]
            entries[index] = formula(*terms, *options, **kwargs).node
        return NodeArray(blocks[0].dims, entries)

    def aligned(self, blocks: list[NodeArray]) -> list[NodeArray]:
        """Arrays broadcast against each other."""
        count = max(len(b.dims) for b in blocks)
        padded = [NodeArray(((),) * (count - len(b.dims)) + b.dims, b.entries) for b in blocks]
        dims: list[Dim] = []
        for place in range(count):
            kinds = {b.dims[place] for b in padded} - {()}
            if len(kinds) > 1:
                # (components, channels) meets the same written as one axis.
                padded = [self.flattened(b, place) for b in padded]
                kinds = {b.dims[place] for b in padded} - {()}
            if len(kinds) > 1:
                raise Refused("axes of different meaning meet: batch, components and channels")
            dims.append(kinds.pop() if kinds else ())
        return [self.broadcast(b, tuple(dims)) for b in padded]

    def broadcast(self, block: NodeArray, dims: tuple[Dim, ...]) -> NodeArray:
        """A block with axes repeated where it has none."""
        shape: list[int] = []
        for have, want in zip(block.dims, dims, strict=True):
            shape += entries_of([have]) if have else [1] * len(entries_of([want]))
        return NodeArray(dims, np.broadcast_to(block.entries.reshape(shape), entries_of(dims)))

    def flattened(self, block: NodeArray, place: int) -> NodeArray:
        """A dimension of components and channels as channels alone; without channels, of components of one each."""
        dim = block.dims[place]
        dim = (*dim, ("c", 1)) if dim and dim[-1][0] == "i" else dim
        if len(dim) < 2 or dim[-1][0] != "c" or any(kind != "i" for kind, _ in dim[:-1]):
            return block
        # Nodes beside each other along the channels, instead of nodes along an index.
        width = dim[-1][1]
        at = len(entries_of(block.dims[:place]))
        count = len(dim) - 1
        moved = np.moveaxis(block.entries, range(at, at + count), range(-count, 0))
        lead = moved.shape[: moved.ndim - count]
        entries = np.empty(lead, dtype=object)
        for index in np.ndindex(*lead):
            parts = [self.graph.wide(node, width) for node in np.ravel(moved[index])]
            entries[index] = self.graph.cat(parts)
        total = math.prod(size for _, size in dim)
        return NodeArray((*block.dims[:place], (("c", total),), *block.dims[place + 1 :]), entries)

    def view(self, x: Any, shape: Sequence[int]) -> Any:
        """A tensor in another shape: dimensions merge and split where axes begin and end."""
        if isinstance(x, ParameterMatrix):
            if tuple(shape) == (x.matrix.rows, x.matrix.columns):
                return x
            raise Refused("a matrix of parameters takes another shape inside the step")
        sizes = list(shape)
        if -1 in sizes:
            rest = math.prod(s for s in sizes if s != -1)
            sizes[sizes.index(-1)] = math.prod(x.shape) // max(rest, 1)
        # The axes stay in their order in memory, so a new dimension is as many of the next as its size takes.
        axes = [axis for dim in x.dims for axis in dim]
        entries, dims = x.entries, []
        for size in sizes:
            dim: list[Axis] = []
            have = 1
            while have < size:
                if not axes:
                    raise Refused("a reshape it cannot follow")
                kind, n = axes.pop(0)
                if have * n > size:
                    # Channels split into groups of channels.
                    part = size // have
                    if kind != "c" or size % have or n % part:
                        raise Refused("a reshape that splits the batch or an axis unevenly")
                    entries = self._split_channels(entries, n, part)
                    axes.insert(0, ("c", n // part))
                    kind, n = "i", part
                dim.append((kind, n))
                have *= n
            if have != size:
                raise Refused("a reshape it cannot follow")
            dims.append(tuple(dim))
        return NodeArray(tuple(dims), entries.reshape(entries_of(dims)))

    def _split_channels(self, entries: Any, width: int, parts: int) -> Any:
        each = width // parts
        split = np.empty((*entries.shape, parts), dtype=object)
        for index in np.ndindex(*entries.shape):
            for k in range(parts):
                node = entries[index]
                split[(*index, k)] = node if node.width == 1 else self.graph.slice(node, k * each, each)
        return split

    def permuted(self, x: Any, order: Sequence[int]) -> Any:
        """Dimensions in another order."""
        if isinstance(x, ParameterMatrix):
            return ParameterMatrix(x.matrix.T) if [d % 2 for d in order] == [1, 0] else x
        order = [d % len(x.dims) for d in order]
        counts = [len(entries_of([dim])) for dim in x.dims]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        axes = [a for d in order for a in range(starts[d], starts[d] + counts[d])]
        return NodeArray(tuple(x.dims[d] for d in order), x.entries.transpose(axes))

    def sliced(self, x: Any, dim: int, start: int | None, end: int | None, step: int = 1) -> NodeArray:
        """Part of a dimension."""
        block = self.block(x)
        dim %= len(block.dims)
        size = block.shape[dim]
        first, last, step = slice(start, end, step).indices(size)
        axes = block.dims[dim]
        if first == 0 and last == size and step == 1:
            return block
        # Along an index a part is fewer nodes; along channels, a slice of each.
        if len(axes) == 1 and axes[0][0] == "i":
            at = len(entries_of(block.dims[:dim]))
            entries = block.entries[(slice(None),) * at + (slice(first, last, step),)]
            if last - first == 1:
                return NodeArray((*block.dims[:dim], (), *block.dims[dim + 1 :]), entries.squeeze(at))
            return NodeArray((*block.dims[:dim], (("i", entries.shape[at]),), *block.dims[dim + 1 :]), entries)
        block = self.flattened(block, dim)
        if block.dims[dim][0][0] != "c" or step != 1:
            raise Refused("it takes part of the batch, or every other channel")
        entries = np.empty(block.entries.shape, dtype=object)
        for index in np.ndindex(*entries.shape):
            entries[index] = self.graph.slice(block.entries[index], first, last - first)
        new = (("c", last - first),) if last - first > 1 else ()
        return NodeArray((*block.dims[:dim], new, *block.dims[dim + 1 :]), entries)

    def selected(self, x: Any, dim: int, index: int) -> NodeArray:
        """One index of a dimension."""
        block = self.block(x)
        dim %= len(block.dims)
        index %= block.shape[dim]
        part = self.sliced(block, dim, index, index + 1)
        return NodeArray((*part.dims[:dim], *part.dims[dim + 1 :]), part.entries)

    def joined(self, parts: Sequence[Any], dim: int = 0) -> NodeArray:
        """Tensors one after the other along a dimension."""
        blocks = [b for b in map(self.block, parts) if 0 not in b.shape]
        dim %= len(blocks[0].dims)
        sizes = [b.shape[dim] for b in blocks]
        kinds = {b.dims[dim] for b in blocks}
        at = len(entries_of(blocks[0].dims[:dim]))
        # Values of as many channels become an index of them: whole components beside each other stay apart.
        if len(kinds) == 1 and all(len(d) == 1 and d[0][0] == "c" for d in kinds):
            width = sizes[0]
            entries = np.stack([b.entries for b in blocks], axis=at)
            return NodeArray(
                (*blocks[0].dims[:dim], (("i", len(blocks)), ("c", width)), *blocks[0].dims[dim + 1 :]), entries
            )
        if len(kinds) == 1 and all(len(d) == 1 and d[0][0] == "b" for d in kinds):
            entries = np.stack([b.entries for b in blocks], axis=at)
            samples = (("i", len(blocks)), ("b", sizes[0]))
            return NodeArray((*blocks[0].dims[:dim], samples, *blocks[0].dims[dim + 1 :]), entries)
        if all(not d or (len(d) == 1 and d[0][0] == "i") for d in kinds):
            rows = [b.entries if b.dims[dim] else np.expand_dims(b.entries, at) for b in blocks]
            entries = np.concatenate(rows, axis=at)
            return NodeArray((*blocks[0].dims[:dim], (("i", sum(sizes)),), *blocks[0].dims[dim + 1 :]), entries)
        # Of different widths: one value of all their channels.
        flat = [self.flattened(b, dim) for b in blocks]
        if any(b.dims[dim] and b.dims[dim][0][0] != "c" for b in flat):
            raise Refused("it joins samples")
        entries = np.empty(flat[0].entries.shape, dtype=object)
        for index in np.ndindex(*entries.shape):
            entries[index] = self.graph.cat(
                [self.graph.wide(b.entries[index], n) for b, n in zip(flat, sizes, strict=True)]
            )
        return NodeArray((*flat[0].dims[:dim], (("c", sum(sizes)),), *flat[0].dims[dim + 1 :]), entries)

    def product(self, x: Any, matrix: Any) -> NodeArray:
        """X M of a state and a matrix of parameters."""
        if not isinstance(matrix, ParameterMatrix):
            raise Refused("it multiplies states with each other as matrices")
        block = self.flattened(self.block(x), 1)
        entries = np.empty(block.entries.shape, dtype=object)
        for index in np.ndindex(*entries.shape):
            if _zero(block.entries[index]):
                # A sum that a method starts from zero: the product would be made for nothing at every step.
                entries[index] = self.graph.const(0.0)
                continue
            node = self.graph.wide(block.entries[index], block.shape[1])
            entries[index] = self.graph.mm(node, matrix.matrix)
        columns = matrix.matrix.columns
        return NodeArray((block.dims[0], (("c", columns),) if columns > 1 else ()), entries)

    def each(self, block: NodeArray, function: Callable[[Node], Node]) -> NodeArray:
        """A function of every node."""
        entries = np.empty(block.entries.shape, dtype=object)
        for index in np.ndindex(*entries.shape):
            entries[index] = function(block.entries[index])
        return NodeArray(block.dims, entries)

    def filled(self, shape: Sequence[int], value: Any) -> NodeArray:
        """A number in a shape."""
        dims: list[Dim] = [() if n == 1 else (("b" if n == self.batch else "c", n),) for n in shape]
        # Only the last dimension holds channels; those before it hold indices.
        dims = [((("i", d[0][1]),) if d and d[0][0] == "c" and i < len(dims) - 1 else d) for i, d in enumerate(dims)]
        return whole(self.graph.const(float(value)), dims)

    def expanded(self, x: Any, shape: Sequence[int], **_: Any) -> NodeArray:
        """A tensor repeated along dimensions of size 1."""
        block = self.block(x)
        lead = len(shape) - len(block.dims)
        have = [1] * lead + list(block.shape)
        sizes = [h if s == -1 else s for s, h in zip(shape, have, strict=True)]
        filled = self.filled(sizes, 0.0)
        padded = ((),) * lead + block.dims
        dims = tuple(b or f for b, f in zip(padded, filled.dims, strict=True))
        return self.broadcast(NodeArray(padded, block.entries), dims)


def _zero(node: Node) -> bool:
    """Whether a value is zero for all samples and channels: written so, or a number times that."""
    if node.op == "mul" and all(a.scalar for a in node.args):
        return any(map(_zero, node.args))
    return node.op == "const" and node.data == 0


def _option(x: Any) -> bool:
    return x is None or isinstance(x, str)


def _kept(low: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    return x


def _unsqueezed(low: Lowering, x: Any, dim: int) -> Any:
    block = low.block(x)
    dim %= len(block.dims) + 1
    return NodeArray((*block.dims[:dim], (), *block.dims[dim:]), block.entries)


def _squeezed(low: Lowering, x: Any, dim: Any = None) -> NodeArray:
    block = low.block(x)
    places = range(len(block.dims)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % len(block.dims) for d in places if not block.dims[d]}
    return NodeArray(tuple(d for i, d in enumerate(block.dims) if i not in gone), block.entries)


def _detached(low: Lowering, x: Any) -> Any:
    if isinstance(x, ParameterMatrix):
        raise Refused("it detaches a matrix of parameters")
    return low.each(x, low.graph.stop)


def _split(low: Lowering, x: Any, size: Any, dim: int = 0) -> list[NodeArray]:
    block = low.block(x)
    total = block.shape[dim % len(block.dims)]
    sizes = [min(size, total - at) for at in range(0, total, size)] if isinstance(size, int) else list(size)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [low.sliced(block, dim, at, at + n) for at, n in zip(starts, sizes, strict=True)]


def _unbound(low: Lowering, x: Any, dim: int = 0) -> list[NodeArray]:
    return [low.selected(x, dim, i) for i in range(low.block(x).shape[dim])]


def _stacked(low: Lowering, parts: Sequence[Any], dim: int = 0) -> NodeArray:
    return low.joined([_unsqueezed(low, p, dim % (len(low.block(p).dims) + 1)) for p in parts], dim)


def _like(low: Lowering, x: Any, value: Any, **_: Any) -> NodeArray:
    block = low.block(x)
    return whole(low.graph.const(float(value)), block.dims)


def _addmm(low: Lowering, bias: Any, x: Any, matrix: Any, beta: float = 1, alpha: float = 1) -> NodeArray:
    if beta != 1 or alpha != 1:
        raise Refused("a product with factors")
    return low.pointwise(lambda a, b: a + b, bias, low.product(x, matrix))


def _clamp(low: Lowering, x: Any, least: Any = None, most: Any = None, **bounds: Any) -> NodeArray:
    # As in torch, the gradient passes where a bound is met.
    least, most = bounds.get("min", least), bounds.get("max", most)
    if least is not None:
        x = low.pointwise(lambda a, b: (a < b).where(b, a), x, least)
    if most is not None:
        x = low.pointwise(lambda a, b: (a > b).where(b, a), x, most)
    return low.block(x)


_SHAPES: dict[str, Callable[..., Any]] = {
    "view": lambda low, x, shape: low.view(x, shape),
    "_unsafe_view": lambda low, x, shape: low.view(x, shape),
    "reshape": lambda low, x, shape: low.view(x, shape),
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    "permute": lambda low, x, order: low.permuted(x, order),
    "t": lambda low, x: low.permuted(x, [1, 0]),
    "transpose": lambda low, x, a, b: low.permuted(x, _swapped(low, x, a, b)),
    "expand": lambda low, x, shape, **k: low.expanded(x, shape, **k),
    "clone": _kept,
    "contiguous": _kept,
    "alias": _kept,
    "lift_fresh": _kept,
    "_to": _kept,
    "detach": _detached,
    "clamp": _clamp,
    "select": lambda low, x, dim, index: low.selected(x, dim, index),
    "slice": lambda low, x, dim=0, start=None, end=None, step=1: low.sliced(x, dim, start, end, step),
    "unbind": _unbound,
    "split": _split,
    "split_with_sizes": _split,
    "cat": lambda low, parts, dim=0: low.joined(parts, dim),
    "stack": _stacked,
    "mm": lambda low, x, matrix: low.product(x, matrix),
    "addmm": _addmm,
    "full_like": _like,
    "zeros_like": lambda low, x, **_: _like(low, x, 0),
    "ones_like": lambda low, x, **_: _like(low, x, 1),
    "full": lambda low, shape, value, **_: low.filled(shape, value),
    "zeros": lambda low, shape, **_: low.filled(shape, 0),
    "ones": lambda low, shape, **_: low.filled(shape, 1),
    "scalar_tensor": lambda low, value, **_: low.scalar(value),
}


def _swapped(low: Lowering, x: Any, a: int, b: int) -> list[int]:
    count = 2 if isinstance(x, ParameterMatrix) else len(x.dims)
    order = list(range(count))
    order[a % count], order[b % count] = order[b % count], order[a % count]
    return order
