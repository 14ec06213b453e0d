"""What a step takes over its channels and components: sums, means, maxima, and the functions of torch made of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from solvers.compiled.step.arrays import NodeArray, entries_of
from solvers.compiled.step.ir import Graph, Node
from solvers.compiled.step.ops import Term
from solvers.compiled.step.refused import Refused


class Lowers(Protocol):
    """What is asked of a `lower.Lowering`."""

    graph: Graph

    def block(self, x: Any) -> NodeArray:
        """An argument as an array of nodes."""

    def pointwise(self, formula: Callable[..., Term], *args: Any, **kwargs: Any) -> NodeArray:
        """A function entry by entry."""

    def each(self, block: NodeArray, function: Callable[[Node], Node]) -> NodeArray:
        """A function of every node."""


def _opaque(_: Node) -> Node:
    """A value that stands for a sum over samples, which nothing may use."""
    return Node("opaque", (), None, False, 1, False, -2)


def _refused(_: Node) -> Node:
    raise Refused("a maximum over the samples")


def _channel_sum(graph: Graph, size: int, node: Node) -> Node:
    return graph.csum(node) if node.width > 1 else graph.pointwise("mul", graph.const(size), node)


def _channel_max(graph: Graph, _: int, node: Node) -> Node:
    return graph.cmax(node)


def _larger(graph: Graph, nodes: Sequence[Node]) -> Node:
    return functools.reduce(functools.partial(graph.pointwise, "max"), nodes)


def _places(block: NodeArray, dims: int | Sequence[int] | None) -> set[int]:
    """The dimensions that are reduced: all of them where none is named, as in torch."""
    count = len(block.dims)
    named = [dims] if isinstance(dims, int) else dims or range(count)
    return {d % count for d in named} if count else set()


def _count(block: NodeArray, dims: int | Sequence[int] | None) -> int:
    """How many values a reduction takes together."""
    return math.prod(block.shape[place] for place in _places(block, dims))


def _over(
    low: Lowers,
    x: Any,
    dims: int | Sequence[int] | None,
    keepdim: bool,
    samples: Callable[[Node], Node],
    channels: Callable[[Graph, int, Node], Node],
    entries: Callable[[Graph, Sequence[Node]], Node],
) -> NodeArray:
    """A reduction over dimensions, axis by axis: `channels` within a node, `entries` from node to node."""
    block = low.block(x)
    places = _places(block, dims)
    for place in sorted(places, reverse=True):
        at = len(entries_of(block.dims[:place]))
        for kind, size in reversed(block.dims[place]):
            if kind == "b":
                block = low.each(block, samples)
            elif kind == "c":
                block = low.each(block, functools.partial(channels, low.graph, size))
            else:
                axis = at + len([a for a in block.dims[place] if a[0] == "i"]) - 1
                reduced: Any = np.empty(np.delete(block.entries.shape, axis), dtype=object)
                for index in np.ndindex(*reduced.shape):
                    reduced[index] = entries(low.graph, np.moveaxis(block.entries, axis, -1)[index])
                block = NodeArray(block.dims, reduced)
            rest = block.dims[place][:-1]
            block = NodeArray((*block.dims[:place], rest, *block.dims[place + 1 :]), block.entries)
    if not keepdim:
        return NodeArray(tuple(d for i, d in enumerate(block.dims) if i not in places), block.entries)
    return block


def summed(low: Lowers, x: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> NodeArray:
    """A sum."""
    return _over(low, x, dims, keepdim, _opaque, _channel_sum, Graph.sum)


def largest(low: Lowers, x: Any, dims: Any = None, keepdim: bool = False) -> NodeArray:
    """A maximum; where several are the largest, they share its gradient, as in torch."""
    return _over(low, x, dims, keepdim, _refused, _channel_max, _larger)


def smallest(low: Lowers, x: Any, dims: Any = None, keepdim: bool = False) -> NodeArray:
    """A minimum."""
    negative = low.pointwise(lambda a: -a, x)
    return low.pointwise(lambda a: -a, largest(low, negative, dims, keepdim))


def mean(low: Lowers, x: Any, dims: Any = None, keepdim: bool = False, **_: Any) -> NodeArray:
    """A mean."""
    count = _count(low.block(x), dims)
    return low.pointwise(lambda a: a * (1 / count), summed(low, x, dims, keepdim))


def variance(
    low: Lowers, x: Any, dims: Any = None, correction: float | None = None, keepdim: bool = False
) -> NodeArray:
    """sum (x - mean)^2 / (n - correction), where torch's default for the correction is 1."""
    count = _count(low.block(x), dims)
    from_mean = low.pointwise(lambda a, m: (a - m) * (a - m), x, mean(low, x, dims, keepdim=True))
    # As in torch, of a single value it is 0 / 0.
    degrees = max(count - (1 if correction is None else correction), 0)
    return low.pointwise(lambda a: a / degrees, summed(low, from_mean, dims, keepdim))


def _root(a: Term) -> Term:
    """The root of a sum of squares, whose gradient at zero is zero, as torch has it."""
    zero = a.equals(0.0)
    return zero.where(0.0, zero.where(1.0, a).of("sqrt"))


def deviation(
    low: Lowers, x: Any, dims: Any = None, correction: float | None = None, keepdim: bool = False
) -> NodeArray:
    """The root of the variance."""
    return low.pointwise(_root, variance(low, x, dims, correction, keepdim))


def norm(low: Lowers, x: Any, order: float = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> NodeArray:
    """The Euclidean norm."""
    if order != 2:
        raise Refused(f"a norm of order {order}")
    return low.pointwise(_root, summed(low, low.pointwise(lambda a: a * a, x), dims, keepdim))


def _from_largest(low: Lowers, x: Any, dims: Any) -> tuple[NodeArray, NodeArray]:
    """The largest value, and how far below it each lies, whose exponential cannot overflow.

    It cancels out of what is made with it, so no gradient passes there.
    """
    top = low.each(largest(low, x, dims, keepdim=True), low.graph.stop)
    return top, low.pointwise(lambda a, b: a - b, x, top)


def logsumexp(low: Lowers, x: Any, dims: Any, keepdim: bool = False) -> NodeArray:
    """log sum exp(x)."""
    below = _from_largest(low, x, dims)[1]
    total = summed(low, low.pointwise(lambda a: a.of("exp"), below), dims, keepdim)
    top = low.each(largest(low, x, dims, keepdim), low.graph.stop)
    return low.pointwise(lambda a, b: a.of("log") + b, total, top)


def softmax(low: Lowers, x: Any, dim: int, *_: Any) -> NodeArray:
    """exp(x) / sum exp(x)."""
    weights = low.pointwise(lambda a: a.of("exp"), _from_largest(low, x, dim)[1])
    return low.pointwise(lambda a, b: a / b, weights, summed(low, weights, dim, keepdim=True))


def log_softmax(low: Lowers, x: Any, dim: int, *_: Any) -> NodeArray:
    """x - log sum exp(x)."""
    below = _from_largest(low, x, dim)[1]
    total = summed(low, low.pointwise(lambda a: a.of("exp"), below), dim, keepdim=True)
    return low.pointwise(lambda a, b: a - b.of("log"), below, total)


def layer_norm(
    low: Lowers, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> list[NodeArray]:
    """(x - mean) / sqrt(variance + eps) weight + bias over the last axes; with it the mean and 1 / sqrt(..)."""
    dims = list(range(-len(shape), 0))
    center = mean(low, x, dims, keepdim=True)
    apart = low.pointwise(lambda a, b: a - b, x, center)
    square = mean(low, low.pointwise(lambda a: a * a, apart), dims, keepdim=True)
    scale = low.pointwise(lambda a: 1.0 / (a + eps).of("sqrt"), square)
    normal = low.pointwise(lambda a, b: a * b, apart, scale)
    if weight is not None:
        normal = low.pointwise(lambda a, b: a * b, normal, weight)
    if bias is not None:
        normal = low.pointwise(lambda a, b: a + b, normal, bias)
    return [normal, center, scale]


#: What makes the value of a function of torch, by its aten name.
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": summed,
    "mean": mean,
    "var": variance,
    "std": deviation,
    "amax": largest,
    "amin": smallest,
    "linalg_vector_norm": norm,
    "logsumexp": logsumexp,
    "_softmax": softmax,
    "_log_softmax": log_softmax,
    "native_layer_norm": layer_norm,
}
