"""The vector-Jacobian product of a step, node by node, in the same language."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from solvers.compiled.step.ir import Graph, Matrix, Node, ordered
from solvers.compiled.step.ops import COLLECTIVE, OPERATIONS, PREDICATES, Term
from solvers.compiled.step.refused import Refused


@dataclass
class Cotangents:
    """What flows back through one step.

    Attributes:
        leaves: cotangent of each leaf asked for, by its key.
        products: x and cotangent of every x M; together the gradient of M.
    """

    leaves: dict[Any, Node] = field(default_factory=dict)
    products: list[tuple[Node, Node, Matrix]] = field(default_factory=list)


def pullback(
    graph: Graph,
    outputs: Sequence[Node],
    cotangents: Sequence[Node],
    wanted: Callable[[Any], bool],
) -> Cotangents:
    """Cotangents of the leaves (and matrices) that are `wanted`, for those of the outputs."""
    nodes = ordered(outputs)
    # What is not made from anything wanted needs no cotangent, and no arithmetic for it.
    active: set[Node] = set()
    for node in nodes:
        if node.op == "leaf":
            needs = wanted(node.data)
        elif node.op == "mm":
            needs = node.args[0] in active or any(wanted(tile.leaf) for tile in node.data.tiles)
        else:
            needs = node.op not in PREDICATES | {"stop"} and any(a in active for a in node.args)
        if needs:
            active.add(node)
    flows: dict[Node, list[Node]] = {}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if output in active:
            flows.setdefault(output, []).append(cotangent)
    result = Cotangents()
    # From the end: whatever uses a value has given its share before the value itself is reached.
    for node in reversed(nodes):
        if node not in flows:
            continue
        g = _total(graph, node, flows.pop(node))
        # Of these the channels are told apart, even where their cotangents are all the same.
        if node.op in ("leaf", "mm", "slice", "cat"):
            g = graph.wide(g, node.width)
        if node.op == "leaf":
            result.leaves[node.data] = g
            continue
        if node.op == "mm" and any(wanted(tile.leaf) for tile in node.data.tiles):
            result.products.append((node.args[0], g, node.data))
        for arg, flow in zip(node.args, _flows(graph, node, g), strict=True):
            if flow is not None and arg in active:
                flows.setdefault(arg, []).append(_reduced(graph, flow, node, arg))
    return result


def _total(graph: Graph, node: Node, terms: list[Node]) -> Node:
    """The sum of cotangents; those of slices are cut where any of them begins or ends, and put beside each other."""
    whole = [t for t in terms if t.op != "pad"]
    pads = [(t.data[0], t.args[0]) for t in terms if t.op == "pad"]
    if pads:
        edges = {0, node.width} | {edge for start, g in pads for edge in (start, start + g.width)}
        row = []
        for first, last in itertools.pairwise(sorted(edges)):
            here = [(start, g) for start, g in pads if start <= first and last <= start + g.width]
            parts = [graph.slice(g, first - start, last - first) for start, g in here]
            row.append(graph.sum(parts) if parts else _zeros(graph, last - first))
        whole.append(graph.cat(row))
    return graph.sum(whole)


def _zeros(graph: Graph, width: int) -> Node:
    return graph.leaf(("zeros", width), False, width, False)


def _reduced(graph: Graph, flow: Node, node: Node, arg: Node) -> Node:
    """A cotangent summed over the axes along which the argument was repeated."""
    if flow.op == "pad" or node.op in (*COLLECTIVE, "cat"):
        return flow
    if node.width > arg.width:
        flow = graph.csum(flow) if flow.width > 1 else graph.pointwise("mul", graph.const(node.width), flow)
    return graph.bsum(flow) if node.batch and not arg.batch else flow


def _flows(graph: Graph, node: Node, g: Node) -> list[Node | None]:
    """The cotangents of the arguments, before `_reduced`."""
    op, args = node.op, node.args
    if op == "slice":
        # No node of the graph: `_total` puts it together with the others before anything computes it.
        start = node.data[0]
        return [Node("pad", (g,), (start, args[0].width), g.batch, args[0].width, True, -1)]
    if op == "cat":
        starts = [sum(a.width for a in args[:i]) for i in range(len(args))]
        parts = [graph.slice(g, start, a.width) for start, a in zip(starts, args, strict=True)]
        return [p if a.batch else graph.bsum(p) for p, a in zip(parts, args, strict=True)]
    if op == "mm":
        return [graph.mm(g, node.data.T)]
    if op in ("csum", "bsum"):
        return [g]
    if op == "cmax":
        # Where several channels are the largest each gets its share, as in torch.
        largest = graph.pointwise("where", graph.pointwise("eq", *args, node), graph.const(1.0), graph.const(0.0))
        share = graph.pointwise("div", g, graph.csum(largest))
        return [graph.pointwise("mul", largest, share)]
    derivative = OPERATIONS[op].derivative if op in OPERATIONS else None
    if derivative is None:
        raise Refused(f"no derivative of {op!r}")
    shares = derivative(*(Term(graph, x) for x in (g, node, *args)))
    return [None if share is None else share.node for share in shares]
