"""The plan of a step written out as Python on whole-batch tensors: the loop for where there is no compiler.

As in the C++ of `cpp.emit` there is one function for each pass over a sequence, with its own backward pass. Arrays with
a place for each step are taken apart once, before the loop; the gradient of a matrix is one product over all steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import torch

from solvers.compiled.passes import memory
from solvers.compiled.passes.source import Source
from solvers.compiled.passes.writer import Writer
from solvers.compiled.step.ir import Matrix, Node, uses
from solvers.compiled.step.ops import OPERATIONS
from solvers.compiled.step.plan import Level, Outer, Place, Plan, Program, array_kind
from solvers.compiled.step.refused import Refused

#: Operations whose function, unlike their sign, can write into a place that is there.
_CALLS = {"add", "sub", "mul", "div"}
_REDUCED = {"csum": "sum", "cmax": "amax"}

#: Both passes: tensors by name, steps, steps per interval, samples.
Pass = Callable[[dict[Any, Any], int, int, int], None]


def emit(program: Program) -> Source:
    """The source of a program."""
    matrices: list[Matrix] = []
    forward = _Function("forward", program, program.forward, matrices)
    texts = [forward.text()]
    backward = None
    if program.backward is not None:
        backward = _Function("backward", program, program.backward, matrices)
        texts.append(backward.text())
    return Source("\n".join(texts), forward.signature, None if backward is None else backward.signature, matrices)


def functions(source: Source) -> tuple[Pass, Pass | None]:
    """What the source defines."""
    scope: dict[str, Any] = {"torch": torch, "empty": functools.partial(memory.empty, device=torch.device("cpu"))}
    exec(compile(source.text, "<step>", "exec"), scope)
    return scope["forward"], scope.get("backward")


class _Function(Writer):
    """Writes one of the two functions."""

    language = "torch"
    title = "torch"

    def __init__(self, name: str, program: Program, plan: Plan, matrices: list[Matrix]) -> None:
        super().__init__(name, program, plan, matrices)
        #: Lines before the loop, and of a step; names of what they define.
        self.top: list[str] = []
        self.body: list[str] = []
        self.declared: dict[Any, str] = {}
        self.values: dict[Node, str] = {}
        self.setup = False
        nodes = [*plan.depth, *(node for level in plan.levels for node, _ in level.stores)]
        self.count = uses(dict.fromkeys(nodes))
        for level in plan.levels:
            for node, _ in level.stores:
                self.count[node] = self.count.get(node, 0) + 1
        #: Arrays with a place for each step that another one holds already; here every step is kept, so that a chunk of
        #: them need not be a copy.
        self.same = self.shared_arrays()
        self.after: list[str] = []

    def shared_arrays(self) -> dict[Any, Place]:
        """Chunks of one value that also lies in the states, in what is saved, or in the gradient of an input."""
        stored: dict[Any, list[Node]] = {}
        places: dict[Node, list[Place]] = {}
        for level in self.plan.levels:
            for node, place in level.stores:
                places.setdefault(node, []).append(place)
                stored.setdefault(place.array, []).append(node)
        shared = {}
        for array, nodes in stored.items():
            if array[0] != "chunk" or len(nodes) > 1 or self.plan.widths[array] != nodes[0].width:
                continue
            known = [p for p in self.plan.homes.get(nodes[0], []) if array_kind(p.array) in ("state", "next", "saved")]
            whole = [p for p in places[nodes[0]] if array_kind(p.array) == "dstep" and not self.program.divided]
            if known or whole:
                shared[array] = (known or whole)[0]
        return shared

    # Arrays

    def declare(self, key: Any, text: str) -> str:
        """A name for what is made once, before the loop."""
        if key not in self.declared:
            self.declared[key] = f"a{len(self.declared)}"
            self.top.append(f"{self.declared[key]} = {text}")
        return self.declared[key]

    def given(self, name: Any) -> str:
        """An argument."""
        self.signature.pointer(name)
        return f"given[{name!r}]"

    def all_steps(self, place: Place, width: int) -> str:
        """All steps of an array that has a place for each."""
        place = self.moved(place)
        if array_kind(place.array) in ("state", "next"):
            text = self.declare("states", f"{self.given('states')}.flatten(2)")
        elif array_kind(place.array) == "chunk":
            shape = f"(steps, batch, {self.plan.widths[place.array]})"
            text = self.declare(place.array, f"empty({shape}, {self.dtype()})")
        else:
            text = self.given(place.array)
        return f"{text}[..., {place.offset}:{place.offset + width}]"

    def moved(self, place: Place) -> Place:
        """Where the columns of an array really lie."""
        other = self.same.get(place.array)
        return place if other is None else Place(other.array, other.offset + place.offset)

    def steps_of(self, place: Place, width: int) -> str:
        """The rows of all steps and samples, one after the other."""
        steps = {"state": "[:-1]", "next": "[1:]"}.get(array_kind(self.moved(place).array), "")
        return f"{self.all_steps(place, width)}{steps}.reshape(-1, {width})"

    def dtype(self) -> str:
        return f"{self.given('states')}.dtype"

    def view(self, place: Place, width: int) -> str:
        """Columns of an array in this step."""
        place = self.moved(place)
        array, kind, last = place.array, array_kind(place.array), place.offset + width
        columns = f"{place.offset}:{last}"
        if kind in ("carry", "sent"):
            both = [f"{self.given(f'carry{i}')}.flatten(1)[:, {columns}]" for i in (0, 1)]
            name = self.declare(("carry", columns), f"({', '.join(both)})")
            return f"{name}[{'turn' if kind == 'carry' else '1 - turn'}]"
        if kind == "temp":
            room = self.declare(array, f"torch.empty(batch, {self.plan.widths[array]}, dtype={self.dtype()})")
            return self.declare((array, columns), f"{room}[:, {columns}]")
        # Taken apart once: selecting a step from the whole tensor at every step costs as much as computing with it.
        parts = self.declare(
            ("states" if kind in ("state", "next") else array, columns),
            f"{self.all_steps(place, width)}.unbind(0)",
        )
        # A chunk has all steps here.
        return f"{parts}[{'s' if kind == 'chunk' else self.address(array).time}]"

    # Values

    def value(self, node: Node) -> str:
        """The expression of a value: a name, an array or a number."""
        if node.op == "const":
            return self.literal(node.data)
        if node not in self.values:
            known = self.located(node)
            if known is not None:
                self.values[node] = known
            else:
                text, name = self.function(node), f"v{node.number}"
                self.line(f"{name} = {text}")
                self.values[node] = name
        return self.values[node]

    def line(self, text: str) -> None:
        (self.top if self.setup else self.body).append(text)

    def located(self, node: Node) -> str | None:
        """Where a value lies that need not be computed."""
        if node.op == "stop":
            return self.value(node.args[0])
        if node.op == "slice" and node.args[0].op == "leaf" and node.args[0].data[0] in ("state", "step"):
            homes = self.plan.homes.get(node.args[0])
            if homes:
                return self.view(Place(homes[0].array, homes[0].offset + node.data[0]), node.width)
        if node.op == "leaf" and node.data[0] == "carry":
            return self.carry(node)
        if node.op == "leaf" and not node.batch:
            return self.shared_leaf(node)
        homes = self.plan.homes.get(node, [])
        for place in homes:
            kind = array_kind(place.array)
            stays = self.name == "backward" and kind in ("next", "saved")
            if node.op in ("leaf", "mm") or stays:
                return self.view(place, node.width)
        if node.op == "leaf":
            raise Refused(f"the leaf {node.data!r} has no place")
        return None

    def literal(self, value: float) -> str:
        """A number."""
        return f"({value!r})" if math.isfinite(value) else f"float({str(value)!r})"

    def zeros(self, node: Node, *where: Any) -> str:
        """A row of zeros."""
        return self.declare(node.data, f"torch.zeros({node.width}, dtype={self.dtype()})")

    def shared_number(self, node: Node, time: str | None) -> str:
        """A number from outside, which stays in double precision: in this form it changes no other tensor's."""
        if time is None:
            return self.declare(node.data, f"{self.given(node.data)}.reshape(())")
        return self.shared_row(node, time)

    def shared_row(self, node: Node, time: str | None, *where: Any) -> str:
        """A row from outside."""
        if time is None:
            return self.declare(node.data, self.given(node.data))
        return f"{self.declare(node.data, f'{self.given(node.data)}.unbind(0)')}[{time}]"

    def carry(self, node: Node) -> str:
        """The gradient from the step after plus that of the output itself."""
        width, name = self.program.width, f"v{node.number}"
        whole = self.declare(("gout", node.data[1]), f"given.get({('gout', node.data[1])!r})")
        parts = self.declare(("gout", node.data[1], "parts"), f"None if {whole} is None else {whole}.unbind(0)")
        before = self.view(Place("carry", node.data[1] * width), width)
        self.line(f"{name} = {before} + {parts}[at] if fresh and {parts} is not None else {before}")
        return name

    def function(self, node: Node) -> str:
        """The operation that makes a value."""
        op, args = node.op, node.args
        fused = self.fused(node)
        if fused is not None:
            return fused
        if op == "slice":
            return f"{self.value(args[0])}[..., {node.data[0]}:{node.data[0] + node.width}]"
        if op == "cat":
            parts = [f"{self.value(a)}.expand({'batch, ' if node.batch else ''}{a.width})" for a in args]
            return f"torch.cat(({', '.join(parts)}), -1)"
        if op in _REDUCED:
            return f"{self.value(args[0])}.{_REDUCED[op]}(-1{', keepdim=True' if args[0].batch else ''})"
        if op == "bsum":
            return f"{self.value(args[0])}.sum({'0' if args[0].width > 1 else ''})"
        if op in _CALLS and node.batch:
            # The first argument of these functions is a tensor.
            x, y = args[::-1] if args[0].op == "const" and op in ("add", "mul") else args
            if x.op != "const":
                return f"torch.{op}({self.value(x)}, {self.value(y)})"
        if op in OPERATIONS and OPERATIONS[op].alike:
            return self.operation(node, [self.typed(a) for a in args])
        # Of two numbers Python would make a number, or a truth value that no tensor follows.
        first = self.typed(args[0]) if all(a.op == "const" for a in args[1:]) else self.value(args[0])
        return self.operation(node, [first, *map(self.value, args[1:])])

    def typed(self, node: Node) -> str:
        """A value as a tensor of the state's type, also where it is a number, of which torch makes one of its own."""
        if node.op != "const":
            return self.value(node)
        return self.declare(("number", repr(node.data)), f"torch.tensor({self.value(node)}, dtype={self.dtype()})")

    def fused(self, node: Node) -> str | None:
        """A sum or difference with a product in one operation, where that product is used here alone."""
        if node.op == "mul" and node.batch:
            return self.slope(*node.args) or self.slope(*node.args[::-1])
        # Torch's calls cost more than their arithmetic for small states: one fused call instead of two or three.
        if node.op not in ("add", "sub") or not node.batch:
            return None
        pairs = [node.args] if node.op == "sub" else [node.args, node.args[::-1]]
        for x, product in pairs:
            alone = product.op == "mul" and self.count.get(product, 0) == 1 and product not in self.values
            if not alone or x.scalar or product in self.plan.homes:
                continue
            a, b = product.args
            sign = "-" if node.op == "sub" else ""
            if a.op == "const":
                return f"torch.add({self.value(x)}, {self.value(b)}, alpha={sign}{self.value(a)})"
            if not (a.scalar or b.scalar):
                rest = ", value=-1" if sign else ""
                return f"torch.addcmul({self.value(x)}, {self.value(a)}, {self.value(b)}{rest})"
        return None

    def slope(self, flow: Node, factor: Node) -> str | None:
        """What flows back through tanh and sigmoid, which is one operation from their results."""
        if not (flow.batch and flow.width == factor.width) or self.count.get(factor, 0) != 1 or factor in self.values:
            return None
        if factor.op == "sub" and factor.args[0].op == "const" and factor.args[0].data == 1:
            square = factor.args[1]
            if square.op == "mul" and square.args[0] is square.args[1] and square not in self.values:
                return f"torch.ops.aten.tanh_backward({self.value(flow)}, {self.value(square.args[0])})"
        if factor.op == "mul":
            for y, rest in (factor.args, factor.args[::-1]):
                turned = rest.op == "sub" and rest.args[0].op == "const" and rest.args[0].data == 1
                if turned and rest.args[1] is y and rest not in self.values:
                    return f"torch.ops.aten.sigmoid_backward({self.value(flow)}, {self.value(y)})"
        return None

    # Steps

    def store(self, node: Node, place: Place) -> None:
        """Write a value."""
        if place.array in self.same:
            return
        width = self.program.width if self.whole(place) else node.width
        target = self.view(place, width)
        if node.op == "mm" and place in self.plan.homes.get(node, [])[:1]:
            return
        if self.adds(place):
            value = self.value(node)
            self.line(f"{target}.copy_({value}) if fresh else {target}.add_({value})")
            return
        if node.batch and node.width == width and node not in self.values and self.located(node) is None:
            # Written where it is wanted by the function that computes it, without a tensor in between.
            text = self.function(node)
            if text.startswith("torch.ops.aten."):
                text = text.replace("_backward(", "_backward.grad_input(")[:-1] + f", grad_input={target})"
            elif text.startswith("torch.") and node.op not in ("where", "pow", "cat"):
                text = f"{text[:-1]}, out={target})"
            else:
                text = f"{target}.copy_({text})"
            self.values[node] = f"v{node.number}"
            self.line(f"v{node.number} = {text}")
            return
        value = self.value(node)
        self.line(f"{target}.fill_({value})" if node.op == "const" else f"{target}.copy_({value})")

    def level(self, level: Level) -> None:
        """One level."""
        for node, place in level.stores:
            self.store(node, place)
        for p in level.products:
            matrix = self.declare(p.matrix, self.given(("matrix", self.matrix(p.matrix))))
            x, out = self.view(p.operand, p.matrix.rows), self.view(p.result, p.matrix.columns)
            self.line(f"{out}.addmm_({x}, {matrix})" if p.add else f"torch.mm({x}, {matrix}, out={out})")

    def sink(self, number: int, name: Hashable, node: Node) -> None:
        """Add to the gradient of what all steps share; a sum over samples read here alone is taken at the end."""
        total = self.declare(name, self.given(name))
        if node.op == "bsum" and node.args[0].width == node.width > 1 and self.count.get(node, 0) == 0:
            self.after.append(f"{total}.add_({self.summed(node.args[0])})")
        else:
            self.line(f"{total}.add_({self.value(node)})")

    def drop(self, number: int, name: Hashable, node: Node, time: str) -> None:
        """Add to the gradient of what belongs to one step or interval."""
        parts = self.declare(name, f"{self.given(name)}.unbind(0)")
        self.line(f"{parts}[{time}].add_({self.value(node)})")

    def summed(self, node: Node) -> str:
        """The sum of a value over steps and samples, taken once after the loop."""
        for level in self.plan.levels:
            for other, place in level.stores:
                kept = array_kind(place.array) == "chunk" or (
                    array_kind(place.array) == "dstep" and not self.program.divided
                )
                if other is node and kept:
                    return f"{self.steps_of(place, node.width)}.sum(0)"
        known = ("sum of", node) in self.declared
        total = self.declare(("sum of", node), f"torch.zeros(batch, {node.width}, dtype={self.dtype()})")
        if not known:
            # The gradients of two rows may be the same sum.
            self.line(f"{total}.add_({self.value(node)})")
        return f"{total}.sum(0)"

    def outer(self, number: int, outer: Outer) -> str:
        """The gradient of a matrix."""
        left, right = self.steps_of(outer.left, outer.matrix.rows), self.steps_of(outer.right, outer.matrix.columns)
        return f"{self.given(('outer', number))}.addmm_({left}.T, {right})"

    def text(self) -> str:
        """The function."""
        backward = self.name == "backward"
        self.setup = True
        # What no step changes is computed before the loop.
        for node in self.plan.setup:
            self.value(node)
        self.setup = False
        for level in self.plan.levels:
            self.level(level)
        self.endings()
        self.after += [self.outer(i, outer) for i, outer in enumerate(self.plan.outers)]
        steps = "reversed(range(steps))" if backward else "range(steps)"
        divided = self.program.divided
        counters = ["at = s // substeps" if divided else "at = s"]
        fresh = "(s + 1) % substeps == 0" if divided else "True"
        counters += [f"fresh, turn = {fresh}, (steps - 1 - s) & 1"] if backward else []
        lines = [f"def {self.name}(given, steps, substeps, batch):"]
        lines += [f"    {line}" for line in self.top]
        lines += [f"    for s in {steps}:", *(f"        {line}" for line in (*counters, *self.body))]
        return "\n".join([*lines, *(f"    {line}" for line in self.after)]) + "\n"
