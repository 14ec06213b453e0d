"""One step of a loop, recorded from the plain Python that takes it.

What depends on parameters alone is split off (the prologue): torch computes it once per solve and autograd
differentiates it. The rest becomes a graph of `ir`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from solvers.base.counted import Counted, bare
from solvers.base.leaves import Key, Leaves
from solvers.base.loop import Loop
from solvers.compiled.step.arrays import NodeArray, ParameterMatrix, entries_of
from solvers.compiled.step.columns import Item
from solvers.compiled.step.ir import Graph, Matrix, Node, Tile
from solvers.compiled.step.layout import Layout
from solvers.compiled.step.lower import Lowering
from solvers.compiled.step.observed import observed
from solvers.compiled.step.ops import FORMULAS
from solvers.compiled.step.reductions import REDUCTIONS
from solvers.compiled.step.refused import Refused
from solvers.compiled.step.writes import unwritten


@dataclass
class Traced:
    """A step as a graph.

    Attributes:
        graph: what made the nodes.
        outputs: each component of the state after the step.
        prologue: from the tensors in `given` to the uniform tensors the step uses.
        given: keys of the tensors the prologue takes.
        behind: for each tensor it returns, the places in `given` of what that depends on.
        evaluations: right-hand-side evaluations of one step.
        stepwise: keys of the items that change from step to step and are used.
        read: the tensors whose values Python read, by address: numbers and branches that the graph holds as they were.
    """

    graph: Graph
    outputs: list[Node]
    prologue: fx.GraphModule
    given: list[Key]
    behind: list[frozenset[int]]
    evaluations: int
    stepwise: list[Key]
    read: dict[int, Tensor]


def field_tensors(field: Any) -> dict[Key, Tensor]:
    """Every tensor of a bound field by a key that says what it is: parameters, buffers, bound constants."""
    tensors: dict[Key, Tensor] = {}
    if isinstance(field, nn.Module):
        tensors.update({("buffer", name): value for name, value in field.named_buffers()})
        tensors.update({("parameter", name): value for name, value in field.named_parameters()})
        for name, value in getattr(field, "constants", {}).items():
            if isinstance(value, Tensor):
                tensors["constant", name] = value
    return tensors


def trace(loop: Loop, layout: Layout, state: Tensor, items: tuple[Item, ...]) -> Traced:
    """Record one step of the loop, whose state is carried in a `layout` and packed in `state`.

    Raises:
        Refused: something in it cannot be recorded or is not understood.
    """
    # Axes are told apart by their size in the recording: that of the batch must be no other's.
    sizes = {n for item in items for n in item.shape} | set(state.shape[1:])
    batch = next(n for n in (11, 13, 17, 19, 23, 29, 31, 37) if n not in sizes)
    # Of its own: recording a step must not change what anybody in this process draws next.
    generator = torch.Generator().manual_seed(0)
    examples = [_example(item, batch, state.dtype, generator) for item in items]
    leaves = Leaves(loop, 0, 1)
    counts: list[int] = []
    read: dict[int, Tensor] = {}

    def step(x: Tensor, *values: Tensor) -> Tensor:
        named: dict[Any, Tensor] = {}
        for item, value in zip(items, values, strict=True):
            named[("path", 0, item.key[1]) if item.key[0] == "path" else (item.key[0], 0)] = value
        constants = {key: value for key, value in leaves.tensors.items() if key[0] == "constant"}
        once = leaves.rebuilt({**constants, **named})
        field = bare(once.field)
        counted = Counted(field)
        start, span = once.clock.starts[0], once.clock.spans[0]
        with unwritten(field), observed() as seen:
            carried = once.solver.step(counted, start, span, layout.taken(x), once.paths[0])
        read.update(seen)
        # Recording may run this more than once; the last time counts.
        counts.append(counted.evaluations)
        return layout.packed(carried)

    example = torch.randn(batch, *state.shape[1:], dtype=state.dtype, generator=generator)
    module = _recorded(step, tuple(t.to(state.device) for t in (example, *examples)))
    known = {id(value): key for key, value in field_tensors(leaves.field).items()}
    return _Splitter(module, known, items, state, batch).traced(counts[-1], read)


def _example(item: Item, batch: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    # Positive: a step divides by spans, or takes their root.
    if item.number or not item.shape:
        return torch.tensor(0.1, dtype=dtype)
    return 0.1 + torch.rand(*([batch] if item.batch else []), *item.shape, dtype=dtype, generator=generator)


def _recorded(step: Any, examples: tuple[Tensor, ...]) -> fx.GraphModule:
    try:
        with torch.no_grad():
            # The language has neither: what changes in place becomes a new value, and a view a copy that costs nothing.
            function = functionalize(step, remove="mutations_and_views")
            return make_fx(function, decomposition_table=_decompositions())(*examples)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"it cannot be traced: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error


def _decompositions() -> dict[Any, Any]:
    table = dict(core_aten_decompositions())
    # Its decomposition fails for 256 channels and more.
    table.pop(torch.ops.aten.eye.default, None)
    table.pop(torch.ops.aten.eye.m, None)
    # What the loop has a formula of its own for is not taken apart. Torch's parts have the right value, but not always
    # the gradient of the whole: where a condition leaves out an infinity (softplus, celu, sinc), it is NaN.
    formulas = FORMULAS | REDUCTIONS
    for overload in list(table):
        if getattr(overload, "_schema", None) and overload._schema.name.removeprefix("aten::") in formulas:
            table.pop(overload)
    return table


class _Splitter:
    """Takes a recorded step apart into the prologue and the rest."""

    def __init__(
        self, module: fx.GraphModule, known: dict[int, Key], items: tuple[Item, ...], state: Tensor, batch: int
    ) -> None:
        self.module, self.known, self.items, self.state, self.batch = module, known, items, state, batch
        module.graph.eliminate_dead_code()
        self.keys: dict[fx.Node, Key] = {}
        self.numbers: dict[fx.Node, float] = {}
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        self.start, rest = placeholders[0], placeholders[1:]
        self.item = dict(zip(rest, items, strict=True))
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self._closure(node)
        self.uniform = self._uniform()

    def _closure(self, node: fx.Node) -> None:
        """A tensor the step knows from outside."""
        tensor = getattr(self.module, str(node.target))
        key = self.known.get(id(tensor))
        if key is not None:
            self.keys[node] = key
        elif tensor.numel() == 1 and all("lift_fresh" in str(user.target) for user in node.users):
            # A number that the step makes a tensor of.
            self.numbers[node] = float(tensor)
        else:
            raise Refused("it uses a tensor that is no parameter, buffer or bound constant of the field")

    def _uniform(self) -> set[fx.Node]:
        """What depends on uniform tensors alone, and on one that is more than a number."""
        wide: set[fx.Node] = set()
        uniform: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node in self.keys or (node in self.item and self.item[node].uniform and not self.item[node].batch):
                uniform.add(node)
                if node in self.keys or self.item[node].shape:
                    wide.add(node)
            elif self.batch in _shape(node):
                # Repeated for every sample: so many there are only in this recording.
                pass
            elif node.op == "call_function" and node.all_input_nodes and set(node.all_input_nodes) <= uniform:
                uniform.add(node)
                if set(node.all_input_nodes) & wide:
                    wide.add(node)
            elif node.op == "call_function" and not node.all_input_nodes:
                uniform.add(node)
        # Arithmetic of numbers is left to the loop: it costs nothing there and torch's overhead here. What is made for
        # the prologue alone stays there, such as an identity matrix.
        for node in reversed(self.module.graph.nodes):
            if node in uniform and node.op == "call_function" and node.users and set(node.users) <= wide:
                wide.add(node)
        return {n for n in uniform if n in wide}

    def traced(self, evaluations: int, read: dict[int, Tensor]) -> Traced:
        """The prologue and the graph of the rest."""
        self.frontier: list[fx.Node] = []
        self.env: dict[fx.Node, Any] = {}
        graph = Graph()
        low = Lowering(graph, self.batch)
        outputs: Any = None
        for node in self.module.graph.nodes:
            if node.op == "output":
                outputs = self._value(node.args[0], graph)
            elif node in self.uniform or node in self.numbers:
                continue
            elif node.op == "placeholder":
                self.env[node] = self._placeholder(node, graph)
            elif node.op == "call_function":
                args = fx.node.map_arg(node.args, self._wrapped(graph))
                kwargs = fx.node.map_arg(node.kwargs, self._wrapped(graph))
                self.env[node] = low.call(node.target, _unwrapped(args), _unwrapped(kwargs))
        block = low.block(outputs)
        expected = (self.batch, *self.state.shape[1:])
        if block.shape != expected:
            raise Refused("the step does not return the shape of the state")
        flat = NodeArray(block.dims, block.entries)
        components = [low.selected(flat, 1, i) for i in range(expected[1])]
        made = [graph.wide(c.entries[()], expected[2]) if c.entries.shape == () else None for c in components]
        if any(m is None for m in made):
            raise Refused("the state after the step is not made of whole components")
        given, behind, prologue = self._prologue()
        # What the prologue alone reads is no argument of the kernel.
        stepwise = [item.key for node, item in self.item.items() if node in self.env and node.users]
        return Traced(graph, made, prologue, given, behind, evaluations, stepwise, read)  # type: ignore[arg-type]

    def _wrapped(self, graph: Graph) -> Any:
        return lambda node: _Wrapped(self._value(node, graph))

    def _value(self, node: Any, graph: Graph) -> Any:
        if not isinstance(node, fx.Node):
            return node
        if node in self.numbers:
            return NodeArray((), np.array(graph.const(self.numbers[node]), dtype=object))
        if node in self.uniform and node not in self.env:
            self.env[node] = self._leaf(node, graph)
        return self.env[node]

    def _placeholder(self, node: fx.Node, graph: Graph) -> NodeArray:
        if node is self.start:
            _, components, width = self.state.shape
            made = np.empty(() if components == 1 else (components,), dtype=object)
            for i in range(components):
                made[i if components > 1 else ()] = graph.leaf(("state", i), True, width, True)
            dims: Any = ((("b", self.batch),), _index(components), _channels(width))
            return NodeArray(dims, made)
        item = self.item[node]
        dims = (((("b", self.batch),),) if item.batch else ()) + _dims(item.shape)
        kind = "whole" if item.uniform else "step"
        return _entries(dims, lambda i, n: graph.leaf((kind, item.key, i), item.batch, n, not item.uniform))

    def _leaf(self, node: fx.Node, graph: Graph) -> Any:
        """A result of the prologue, as the step sees it."""
        value: Any = node.meta.get("val")
        if value is None:
            value = node.meta.get("tensor_meta")
        if value is None and node in self.keys:
            value = getattr(self.module, str(node.target))
        if isinstance(value, tuple | list):
            return _Parts(self, node, graph)
        name = len(self.frontier)
        self.frontier.append(node)
        shape = tuple(value.shape)
        products = [u for u in node.users if u not in self.uniform and _is_matrix(node, u)]
        others = [u for u in node.users if u not in self.uniform and u not in products]
        # A product reads a matrix whole, all else reads rows, and a leaf is one or the other.
        if products and others:
            raise Refused("a matrix of parameters is used in a product and outside of one")
        if products:
            rows, columns = shape
            return ParameterMatrix(Matrix(rows, columns, (Tile(("uniform", name), rows, columns),)))
        # Every row would be an argument of the kernel.
        if len(shape) > 1 and int(np.prod(shape[:-1])) > 16:
            raise Refused("a matrix of parameters is used outside of a product")
        return _entries(_dims(shape), lambda i, n: graph.leaf(("uniform", name, i), False, n, False))

    def _prologue(self) -> tuple[list[Key], list[frozenset[int]], fx.GraphModule]:
        """The keys of what the prologue takes, what each result depends on, and the prologue as a module."""
        needed: set[fx.Node] = set()
        waiting = list(self.frontier)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        given: list[Key] = []
        places: dict[Key, fx.Node] = {}
        behind: dict[fx.Node, frozenset[int]] = {}
        for node in self.module.graph.nodes:
            if node not in needed:
                continue
            if node in self.keys or node in self.item:
                key = self.keys[node] if node in self.keys else self.item[node].key
                if key not in places:
                    places[key] = graph.placeholder(f"given_{len(given)}")
                    given.append(key)
                copies[node] = places[key]
                behind[node] = frozenset({given.index(key)})
                continue
            behind[node] = frozenset[int]().union(*(behind[n] for n in node.all_input_nodes))
            if node.op == "get_attr":
                copies[node] = graph.get_attr(str(node.target))
            else:
                copies[node] = graph.node_copy(node, lambda n: copies[n])
        graph.output(tuple(copies[node] for node in self.frontier))
        return given, [behind[node] for node in self.frontier], fx.GraphModule(self.module, graph)


class _Parts:
    """A result of the prologue that has several tensors; the parts are taken by index there."""

    def __init__(self, *_: Any) -> None:
        raise Refused("a function of parameters with several results")


def _shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a recorded result; of several results, all their sizes."""
    value: Any = node.meta.get("val", node.meta.get("tensor_meta"))
    if isinstance(value, tuple | list) and not hasattr(value, "shape"):
        return tuple(n for part in value if hasattr(part, "shape") for n in part.shape)
    return tuple(value.shape) if hasattr(value, "shape") else ()


class _Wrapped:
    """Carries a lowered value through fx's own mapping of arguments, which would look inside."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _unwrapped(x: Any) -> Any:
    if isinstance(x, _Wrapped):
        return x.value
    if isinstance(x, tuple | list):
        return type(x)([_unwrapped(y) for y in x]) if type(x) in (tuple, list) else [_unwrapped(y) for y in x]
    if isinstance(x, dict):
        return {k: _unwrapped(v) for k, v in x.items()}
    return x


def _index(size: int) -> tuple[tuple[str, int], ...]:
    return (("i", size),) if size > 1 else ()


def _channels(size: int) -> tuple[tuple[str, int], ...]:
    return (("c", size),) if size > 1 else ()


def _dims(shape: tuple[int, ...]) -> Any:
    return (*(_index(n) for n in shape[:-1]), *(_channels(n) for n in shape[-1:]))


def _entries(dims: Any, leaf: Any) -> NodeArray:
    """One leaf for every index, of the width of the last dimension."""
    width = dims[-1][0][1] if dims and dims[-1] and dims[-1][0][0] == "c" else 1
    shape = entries_of(dims)
    entries = np.empty(shape, dtype=object)
    for number, index in enumerate(np.ndindex(*shape)):
        entries[index] = leaf(number, width)
    return NodeArray(dims, entries)


def _is_matrix(node: fx.Node, user: fx.Node) -> bool:
    name = str(user.target)
    return ("aten.mm." in name and user.args[1] is node and user.args[0] is not node) or (
        "aten.addmm." in name and user.args[2] is node and node not in user.args[:2]
    )
