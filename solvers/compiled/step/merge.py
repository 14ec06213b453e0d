"""Which products of a step are made as one, and at which level each value can be computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from solvers.compiled.step.ir import Graph, Matrix, Node, ordered, uses
from solvers.compiled.step.ops import COLLECTIVE


def merged(graph: Graph, roots: Sequence[Node], fixed: Iterable[Node] = ()) -> list[Node]:
    """The roots with products put together: sums of products along their operands, then those of one operand."""
    # One wide product reads its operand once and fills the processor better than several narrow ones.
    known = {node: node for node in fixed}
    roots = _merged_sums(graph, roots, dict(known))
    nodes = ordered(roots, known)
    groups: dict[Node, list[Node]] = {}
    for node in nodes:
        if node.op == "mm" and node not in known:
            groups.setdefault(node.args[0], []).append(node)
    for node in nodes:
        if node in known:
            continue
        group = groups.get(node.args[0], []) if node.op == "mm" else []
        if len(group) > 1:
            whole = graph.mm(known[node.args[0]], Matrix.beside([n.data for n in group]))
            start = sum(n.width for n in group[: group.index(node)])
            known[node] = graph.slice(whole, start, node.width)
        else:
            known[node] = graph.renewed(node, tuple(known[a] for a in node.args))
    return [known[root] for root in roots]


def _merged_sums(graph: Graph, roots: Sequence[Node], known: dict[Node, Node]) -> list[Node]:
    fixed = set(known)
    nodes = ordered(roots, fixed)
    count = uses(n for n in nodes if n not in fixed)
    for root in roots:
        count[root] = count.get(root, 0) + 1
    depth = levels(nodes, fixed)

    def terms(node: Node, top: bool = True) -> list[Node]:
        if node.op == "add" and node not in fixed and (top or count[node] == 1):
            return terms(node.args[0], False) + terms(node.args[1], False)
        return [node]

    inner = {a for n in nodes if n.op == "add" and n not in fixed for a in n.args if a.op == "add" and count[a] == 1}
    for node in nodes:
        if node in known:
            continue
        if node.op == "add" and node not in inner:
            # X A + Y B = [X Y] [A; B]: the product then does the adding, too. Only of products that nothing else reads.
            parts = terms(node)
            products = [t for t in parts if t.op == "mm" and t not in fixed and count[t] == 1]
            groups: dict[Any, list[Node]] = {}
            for term in products:
                # Components of the state lie beside each other as they are. What is computed is put beside each other
                # when it is written, if it is all there at the same level: waiting for a later one would cost a level.
                operand = term.args[0]
                state = operand.op == "leaf" and operand.data[0] == "state"
                groups.setdefault("state" if state else depth[operand], []).append(term)
            groups = {k: sorted(g, key=_first_component) for k, g in groups.items() if _mergeable(k, g)}
            if groups:
                gone = {t for g in groups.values() for t in g}
                rest = [known[t] for t in parts if t not in gone]
                for group in groups.values():
                    operand = graph.cat([known[t.args[0]] for t in group])
                    rest.append(graph.mm(operand, Matrix.stacked([t.data for t in group])))
                known[node] = graph.sum(rest)
                continue
        known[node] = graph.renewed(node, tuple(known[a] for a in node.args))
    return [known[root] for root in roots]


def _first_component(term: Node) -> int:
    operand = term.args[0]
    return operand.data[1] if operand.op == "leaf" and operand.data[0] == "state" else operand.number


def _mergeable(kind: Any, group: list[Node]) -> bool:
    if len(group) < 2:
        return False
    if kind != "state":
        return len({t.args[0] for t in group}) == len(group) and all(t.args[0].op != "leaf" for t in group)
    components = sorted(t.args[0].data[1] for t in group)
    return components == list(range(components[0], components[0] + len(components)))


def levels(nodes: Sequence[Node], known: Any = ()) -> dict[Node, int]:
    """How many products (or sums over an axis) come before each node."""
    depth: dict[Node, int] = {}
    for node in nodes:
        before = 0 if node in known else max((depth[a] for a in node.args), default=0)
        depth[node] = before + (node.op in COLLECTIVE and node not in known)
    return depth
