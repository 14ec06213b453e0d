"""What one step does, in order: which products are merged, what is saved, recomputed and kept, and where.

A step is a list of levels. Each level is scalars, rows, one pass over the samples with everything entry by entry, and
then the products whose operands that pass made. Nothing here knows the language the plan is written out in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from solvers.base.leaves import Key
from solvers.compiled.step.ir import Graph, Matrix, Node, ordered, uses
from solvers.compiled.step.merge import levels, merged
from solvers.compiled.step.ops import COLLECTIVE, DEAR, OVER_CHANNELS
from solvers.compiled.step.pullback import pullback
from solvers.compiled.step.trace import Traced


@dataclass(frozen=True)
class Place:
    """Columns `offset` onwards of an array with one row per sample.

    Arrays: "state" and "next" (the state before and after the step, all components), "carry" and "sent" (the gradient
    that comes from the step after and that goes to the step before), ("step", ..) a leaf of the interval,
    ("dstep", ..) its gradient, ("saved", i), ("temp", i), and ("chunk", i) with a place for each step of a chunk.
    """

    array: Any
    offset: int = 0


def array_kind(array: Any) -> str:
    """What an array is: the first word of its name."""
    kind: str = array if isinstance(array, str) else array[0]
    return kind


@dataclass
class Product:
    """A (rows, n) times a matrix, into an array; `add` adds to what is there. `node` is the product in the graph."""

    node: Node
    operand: Place
    matrix: Matrix
    result: Place
    add: bool


@dataclass
class Level:
    """One stage of a step."""

    scalars: list[Node] = field(default_factory=list)
    rows: list[Node] = field(default_factory=list)
    stores: list[tuple[Node, Place]] = field(default_factory=list)
    sums: list[Node] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)


@dataclass
class Outer:
    """The gradient of a matrix: the sum over steps and samples of left^T right."""

    left: Place
    right: Place
    matrix: Matrix


@dataclass
class Plan:
    """A step, or its vector-Jacobian product.

    Attributes:
        levels: what to do, in order.
        setup: scalars and rows that are the same in every step.
        homes: where the value of a node is found.
        widths: columns of each ("temp", i), ("chunk", i) and ("saved", i).
        outers: gradients of matrices.
        sinks: rows and scalars added up over the steps, by the leaf whose gradient they are.
        drops: rows and scalars that are the gradient of one step's leaf.
        depth: the level at which a node can be computed.
        parts: places that take some channels of a component, where what is stored is put together there; elsewhere a
            component takes one value, and a column for all of its channels.
    """

    levels: list[Level]
    setup: list[Node]
    homes: dict[Node, list[Place]]
    widths: dict[Any, int]
    outers: list[Outer] = field(default_factory=list)
    sinks: list[tuple[Key, Node]] = field(default_factory=list)
    drops: list[tuple[Key, Node]] = field(default_factory=list)
    depth: dict[Node, int] = field(default_factory=dict)
    parts: set[Place] = field(default_factory=set)


@dataclass
class Program:
    """Both passes of a step.

    Attributes:
        components, width: of the state.
        saved: widths of what the forward pass keeps of each step, the states aside.
        divided: intervals have several steps, which share the leaves of the interval.
    """

    components: int
    width: int
    forward: Plan
    backward: Plan | None
    saved: list[int]
    divided: bool


#: Gives the program of a step, as `program` does; may be told that it is to be `lasting`.
Planned = Callable[..., Program]

#: Arrays that products read as they lie; and those of each pass with one place for all steps and solves.
READABLE = ("state", "next", "saved", "chunk", "temp")
LASTING = (("state", "next", "temp"), ("temp",))


class Planner:
    """Makes the plan of one pass."""

    def __init__(
        self, known: dict[Node, list[Place]], width: int, divided: bool, lasting: Collection[str] = ()
    ) -> None:
        #: Where leaves and what another pass left are found; the arrays that alone products may use, if there are any.
        self.known, self.width, self.divided, self.lasting = known, width, divided, lasting
        self.plan = Plan([], [], dict(known), {})
        self.wanted: list[tuple[Node, Place]] = []
        self.operands: dict[tuple[Node, str], Place] = {}

    def array(self, kind: str, width: int) -> Place:
        """A new array."""
        name = (kind, sum(1 for k in self.plan.widths if k[0] == kind))
        self.plan.widths[name] = width
        return Place(name)

    def store(self, node: Node, place: Place) -> None:
        """Ask for a value in a place."""
        # What others are added to cannot be read back: by a product, or by the other steps of an interval.
        stays = place.array != "sent" and not (self.divided and place.array[0] == "dstep")
        if stays and node not in self.known:
            self.plan.homes.setdefault(node, []).append(place)
        if node.op != "cat":
            self.wanted.append((node, place))
            return
        at = 0
        for part in node.args:
            each = Place(place.array, place.offset + at)
            self.plan.parts.add(each)
            self.store(part, each)
            at += part.width

    def operand(self, node: Node, kind: str = "temp") -> Place:
        """Where all columns of a value lie side by side, as a product reads it."""
        if (node, kind) not in self.operands:
            self.operands[node, kind] = self._operand(node, kind)
        return self.operands[node, kind]

    def _operand(self, node: Node, kind: str) -> Place:
        # Best it lies somewhere already: by itself, as part of something wider, or as parts that are neighbours.
        for place in self.plan.homes.get(node, []):
            if self.reads(place, kind):
                return place
        if node.op == "slice" and any(self.reads(place, kind) for place in self.plan.homes.get(node.args[0], [])):
            base = self.operand(node.args[0], kind)
            return Place(base.array, base.offset + node.data[0])
        if node.op == "cat":
            part_homes = [self.plan.homes.get(part, []) for part in node.args]
            for first in part_homes[0]:
                at, fits = first.offset, self.reads(first, kind)
                for part, places in zip(node.args, part_homes, strict=True):
                    fits = fits and Place(first.array, at) in places
                    at += part.width
                if fits:
                    return first
        place = self.array(kind, node.width)
        self.store(node, place)
        return place

    def reads(self, place: Place, kind: str) -> bool:
        """Whether a product (or, as a "chunk", the gradient of a matrix) can read an array as it lies."""
        return array_kind(place.array) in (("state", "saved", "chunk") if kind == "chunk" else self.lasting or READABLE)

    def made_in_place(self, node: Node) -> bool:
        """Whether a product can be written where it is wanted first."""
        homes = self.plan.homes.get(node, [])
        return bool(homes) and (not self.lasting or self.reads(homes[0], "temp"))

    def finish(self, others: Sequence[Node], adding: dict[Node, Place]) -> Plan:
        """Order everything that the stores, and the rows and scalars in `others`, need.

        Args:
            others: rows and scalars wanted.
            adding: products whose result is added to a place.
        """
        roots = [node for node, _ in self.wanted] + list(others) + list(adding)
        nodes = ordered(roots, self.known)
        for node in nodes:
            if node.op == "mm" and node not in self.known:
                self.operand(node.args[0])
                if node not in adding and not self.made_in_place(node):
                    self.plan.homes.setdefault(node, []).insert(0, self.array("temp", node.width))
            elif node.op in OVER_CHANNELS and node.batch and node not in self.known:
                self.plan.homes[node] = [self.array("temp", 1)]
        # Operands that had to be given a place are wanted as well, by now.
        nodes = ordered([*nodes, *(node for node, _ in self.wanted)], self.known)
        depth = levels(nodes, self.known)
        self._keep(nodes, depth)
        plan = self.plan
        plan.depth = depth
        plan.levels = [Level() for _ in range(max(depth.values(), default=0) + 1)]
        for node in nodes:
            if node.op in ("leaf", "const", "bsum") or node in self.known:
                pass
            elif not node.batch and not node.varies:
                plan.setup.append(node)
            elif not node.batch:
                (plan.levels[depth[node]].scalars if node.width == 1 else plan.levels[depth[node]].rows).append(node)
            if node in self.known:
                continue
            if node.op in (*OVER_CHANNELS, "bsum") and node.args[0].batch:
                plan.levels[depth[node.args[0]]].sums.append(node)
            if node.op == "mm":
                operand = self.operand(node.args[0])
                result = adding.get(node) or plan.homes[node][0]
                level = plan.levels[depth[node.args[0]]]
                level.products.append(Product(node, operand, node.data, result, node in adding))
        for node, place in self.wanted:
            plan.levels[depth[node]].stores.append((node, place))
        return plan

    def _keep(self, nodes: Sequence[Node], depth: dict[Node, int]) -> None:
        """Give a place to what is dear to compute and used again after a product."""
        # A pass over the samples computes again whatever it needs of earlier levels and finds nowhere: arithmetic is
        # cheaper than memory, but for functions that are dear. So the last level that reads each value is what counts,
        # through everything that is computed again on the way.
        stored = {node for node, _ in self.wanted}
        last: dict[Node, int] = {}
        for node in reversed(nodes):
            if node in self.known:
                continue
            at = last.get(node, depth[node])
            if node.op in COLLECTIVE:
                at = depth[node] - 1
            elif node in stored or node.op in DEAR:
                at = depth[node]
            for arg in node.args:
                last[arg] = max(last.get(arg, 0), at)
        for node in nodes:
            dear = node.op in DEAR and node.batch and last.get(node, 0) > depth[node]
            if dear and node not in self.plan.homes and node not in self.known:
                self.store(node, self.array("temp", node.width))


def _state_places(components: int, width: int, array: str) -> list[Place]:
    return [Place(array, i * width) for i in range(components)]


def program(
    traced: Traced, width: int, wanted: frozenset[Hashable] | None, divided: bool, lasting: bool = False
) -> Program:
    """The plan of a step and, unless `wanted` is None, of its gradient.

    Args:
        traced: the step.
        width: channels of the state.
        wanted: the leaves other than the state whose gradient is asked for, as ("uniform", i) or ("step", key).
        divided: intervals have several steps.
        lasting: products read and write places that are the same for all steps alone.
    """
    places = LASTING if lasting else ((), ())
    graph, count = traced.graph, len(traced.outputs)
    outputs = merged(graph, traced.outputs)
    states = {
        graph.leaf(("state", i), True, width, True): [place]
        for i, place in enumerate(_state_places(count, width, "state"))
    }
    leaves = _step_leaves(outputs)
    backward: Plan | None = None
    saved: list[Node] = []
    if wanted is not None:
        backward, saved = _backward(graph, outputs, width, wanted, {**states, **leaves}, divided, places[1])
    planner = Planner({**states, **leaves}, width, divided, places[0])
    for output, place in zip(outputs, _state_places(count, width, "next"), strict=True):
        planner.store(output, place)
    for i, node in enumerate(saved):
        planner.plan.widths["saved", i] = node.width
        planner.store(node, Place(("saved", i)))
    forward = planner.finish([], {})
    return Program(count, width, forward, backward, [node.width for node in saved], divided)


def _step_leaves(roots: Sequence[Node]) -> dict[Node, list[Place]]:
    return {n: [Place(n.data)] for n in ordered(roots) if n.op == "leaf" and n.data[0] == "step" and n.batch}


def _matches(leaf: Any, wanted: frozenset[Hashable]) -> bool:
    return leaf[0] == "state" or leaf[:2] in wanted


def _backward(
    graph: Graph,
    outputs: list[Node],
    width: int,
    wanted: frozenset[Hashable],
    leaves: dict[Node, list[Place]],
    divided: bool,
    lasting: Collection[str],
) -> tuple[Plan, list[Node]]:
    """The plan of the gradient, and what the forward pass has to save for it."""
    # The values of the forward pass stay the nodes they are, or the two passes would not mean the same by them.
    count, forward = len(outputs), ordered(outputs)
    carry = [graph.leaf(("carry", i), True, width, True) for i in range(count)]
    flows = pullback(graph, outputs, carry, lambda leaf: _matches(leaf, wanted))
    zero = graph.const(0.0)
    sent = [flows.leaves.pop(("state", i), zero) for i in range(count)]
    keys = list(flows.leaves)
    roots = [*sent, *flows.leaves.values(), *(n for x, g, _ in flows.products for n in (x, g))]
    roots = merged(graph, roots, forward)
    sent, rest = roots[:count], roots[count:]
    gradients = dict(zip(keys, rest, strict=False))
    pairs = rest[len(keys) :]
    known = dict(leaves)
    for output, place in zip(outputs, _state_places(count, width, "next"), strict=True):
        if output not in known:
            known[output] = [place]
    for i, node in enumerate(carry):
        known[node] = [Place("carry", i * width)]
    saved = _saved(roots, set(forward), known)
    for i, node in enumerate(saved):
        known[node] = [Place(("saved", i))]
    planner = Planner(known, width, divided, lasting)
    for i, node in enumerate(saved):
        planner.plan.widths["saved", i] = node.width
    # Both factors of a matrix's gradient are kept for a chunk of steps and multiplied at once: one product over many
    # steps costs far less than one at each.
    outers = []
    for k, (_, _, matrix) in enumerate(flows.products):
        left, right = (planner.operand(pairs[2 * k + j], "chunk") for j in (0, 1))
        outers.append(Outer(left, right, matrix))
    adding = _accumulate(graph, planner, sent, roots, width, set(forward))
    others: list[Node] = []
    sinks: list[tuple[Key, Node]] = []
    drops: list[tuple[Key, Node]] = []
    for key, node in gradients.items():
        if key[0] == "step" and _batched(graph, key, leaves):
            planner.store(node, Place(("dstep", *key[1:])))
        else:
            (drops if key[0] == "step" else sinks).append((key, node))
            others.append(node)
    plan = planner.finish(others, adding)
    plan.outers, plan.sinks, plan.drops = outers, sinks, drops
    return plan, saved


def _batched(graph: Graph, key: Any, leaves: dict[Node, list[Place]]) -> bool:
    return any(node.data == key for node in leaves)


def _saved(roots: Sequence[Node], forward: set[Node], known: dict[Node, list[Place]]) -> list[Node]:
    """The forward values the gradient needs that cost more to compute again than to keep."""
    saved: dict[Node, None] = {}
    seen: set[Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node in seen or node in known:
            continue
        seen.add(node)
        if node in forward and node.batch and (node.op in DEAR or node.op in ("mm", *OVER_CHANNELS)):
            saved[node] = None
        else:
            waiting += node.args
    return sorted(saved, key=lambda node: node.number)


def _accumulate(
    graph: Graph, planner: Planner, sent: list[Node], roots: Sequence[Node], width: int, fixed: set[Node]
) -> dict[Node, Place]:
    """Store the gradient of the state; products that end in it alone are added to it in place."""
    # A BLAS product can add to what is there, which saves a pass over memory: for products that are terms of the sent
    # gradient and nothing else, and span whole components, whose places lie beside each other.
    count = uses(ordered(roots, fixed))
    for node in roots:
        count[node] = count.get(node, 0) + 1
    parts: list[list[Node]] = [_terms(node, count) for node in sent]
    added: dict[Node, list[tuple[int, Node]]] = {}
    for i, terms in enumerate(parts):
        for term in terms:
            whole = term.args[0] if term.op == "slice" else term
            span = whole.width // width
            if whole.op != "mm" or whole in added or whole in fixed or whole.width != span * width:
                continue
            slices = [graph.slice(whole, k * width, width) for k in range(span)]
            if i + span > len(sent) or count[whole] != span or any(count[s] != 1 for s in slices):
                continue
            if all(s in parts[i + k] for k, s in enumerate(slices)):
                added[whole] = [(i + k, s) for k, s in enumerate(slices)]
    for places in added.values():
        for i, term in places:
            parts[i].remove(term)
    # What a product is added to has to be there before it: one that comes too early is an ordinary term.
    depth = levels(ordered(roots, planner.known), planner.known)
    early: dict[Node, list[tuple[int, Node]]] | None = None
    while early or early is None:
        early = {}
        for whole, places in added.items():
            if max((depth[t] for i, _ in places for t in parts[i]), default=0) > depth[whole.args[0]]:
                early[whole] = places
        for whole in early:
            for i, term in added.pop(whole):
                parts[i].append(term)
    for i, terms in enumerate(parts):
        planner.store(graph.sum(terms) if terms else graph.const(0.0), Place("sent", i * width))
    return {whole: Place("sent", places[0][0] * width) for whole, places in added.items()}


def _terms(node: Node, count: dict[Node, int]) -> list[Node]:
    if node.op == "add" and count[node] == 1:
        return _terms(node.args[0], count) + _terms(node.args[1], count)
    return [node]
