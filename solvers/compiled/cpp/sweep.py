"""One loop of the C++ over the samples, with everything that is done entry by entry inside."""

from __future__ import annotations

from typing import Any

from solvers.compiled.cpp.values import JOIN, START, CppWriter
from solvers.compiled.step.ir import Node
from solvers.compiled.step.ops import OVER_CHANNELS, PREDICATES
from solvers.compiled.step.plan import Place
from solvers.compiled.step.refused import Refused

#: What OpenMP calls the reductions; `larger` is declared at the head of the code, since its own `max` drops NaN.
CLAUSE = {"csum": "+", "cmax": "larger"}


class Sweep:
    """One loop over samples, with a loop over channels for each width inside."""

    def __init__(self, function: CppWriter, number: int) -> None:
        self.f, self.number = function, number
        self.pointers: dict[str, str] = {}
        self.columns: list[str] = []
        self.inner: dict[int, list[str]] = {}
        self.after: list[str] = []
        self.before: list[str] = []
        self.reductions: dict[int, list[tuple[str, str]]] = {}
        self.done: set[Any] = set()

    def pointer(self, array: Any) -> str:
        """The C name of this sample's row of an array."""
        name, ld = self.f.base(array)
        self.pointers[f"{name}_b"] = f"real* {name}_b = {name} + b * {ld};"
        return f"{name}_b"

    def located(self, node: Node) -> str | None:
        """Where a value already lies, without the channel."""
        plan = self.f.plan
        if node.op == "slice":
            base = self.located(node.args[0])
            return None if base is None else f"{base} + {node.data[0]}"
        # A place holds the value only once it was written: by a product or a sum, or by the pass of an earlier level.
        # In the forward pass this level's own results are still in registers and are taken from there.
        homes = plan.homes.get(node)
        if not homes or (node.op == "cat" and plan.depth.get(node, 0) >= self.number):
            return None
        ready = node.op in ("mm", *OVER_CHANNELS) or node.op == "leaf" or plan.depth.get(node, 0) < self.number
        if not ready and homes[0].array not in ("next",) and homes[0].array[0] != "saved":
            return None
        if not ready and self.f.name == "forward":
            return None
        place = homes[0]
        if place.array == "carry":
            # To this the gradient of the output is added first.
            return None
        return f"{self.pointer(place.array)} + {place.offset}"

    def value(self, node: Node, width: int) -> str:
        """The C expression of a value inside the loop over `width` channels, or outside of them for a column."""
        if not node.batch:
            text = self.f.shared(node)
            return text if node.width > 1 else f"real({text})"
        # A column is computed outside of the loops over channels, once; everything else once for each width it meets.
        column = node.width == 1
        name = f"{'c' if column else 'v'}{node.number}"
        if (name, 1 if column else width) in self.done:
            return name
        self.done.add((name, 1 if column else width))
        lines = self.columns if column else self.inner.setdefault(width, [])
        place = self.located(node)
        j = "0" if column else "j"
        if place is not None:
            value = f"({place})[{j}]"
        elif node.op == "leaf" and node.data[0] == "carry":
            value = self.carry(node, j)
        elif node.op == "slice":
            base, start = node.args[0], node.data[0]
            if base.op != "leaf" or base.data[0] != "carry":
                raise Refused("some channels of a computed value")
            value = self.carry(base, f"{start} + {j}")
        else:
            value = self.f.function(node, [self.value(a, width) for a in node.args])
        kind = "bool" if node.op in PREDICATES else "real"
        lines.append(f"const {kind} {name} = {value};")
        return name

    def carry(self, node: Node, j: str) -> str:
        """The gradient from the step after plus that of the output itself."""
        f, i = self.f, node.data[1]
        p, st, sb = f.given(("gout", i)), f.number(("gout", i, "time")), f.number(("gout", i, "sample"))
        zero = f.given("nothing")
        f.step_line(("gout", i), f"const real* out{i} = fresh && {p} ? {p} + at * {st} + b0 * {sb} : {zero};")
        f.step_line(("gout", i, "ld"), f"const int64_t out{i}_ld = fresh && {p} ? {sb} : 0;")
        self.pointers[f"out{i}_b"] = f"const real* out{i}_b = out{i} + b * out{i}_ld;"
        return f"{self.pointer('carry')}[{i * f.program.width} + {j}] + out{i}_b[{j}]"

    def store(self, node: Node, place: Place) -> None:
        """Write a value."""
        width = self.f.program.width if self.f.whole(place) else node.width
        target = f"{self.pointer(place.array)} + {place.offset}"
        value = self.value(node, width)
        if self.f.adds(place):
            old = f"({target})[{'j' if width > 1 else '0'}]"
            value = f"fresh ? real({value}) : {old} + {value}"
        if width == 1:
            self.after.append(f"({target})[0] = {value};")
        else:
            self.inner.setdefault(width, []).append(f"({target})[j] = {value};")

    def sum(self, node: Node) -> None:
        """A sum or maximum over channels, or a sum over samples."""
        x, f = node.args[0], self.f
        value = self.value(x, x.width)
        if node.op in OVER_CHANNELS:
            name = f"t{node.number}"
            self.reductions.setdefault(x.width, []).append((node.op, name))
            join = JOIN[node.op].format(total=name, value=f"real({value})", real="real")
            self.inner.setdefault(x.width, []).append(join)
            place = f.plan.homes[node][0]
            self.after.append(f"{self.pointer(place.array)}[{place.offset}] = {name};")
        elif x.width == 1:
            # Over the samples in double precision: there may be very many.
            self.before.append(f"double sum{node.number} = 0;")
            self.after.append(f"sum{node.number} += {value};")
        else:
            f.top_line(("row", node), f"real* row{node.number} = scratch.take<real>({x.width});")
            self.before.append(f"for (int j = 0; j < {x.width}; ++j) row{node.number}[j] = 0;")
            self.inner.setdefault(x.width, []).append(f"row{node.number}[j] += {value};")

    def lines(self) -> list[str]:
        """The loop."""
        body: list[str] = []
        for width, inner in self.inner.items():
            reductions = self.reductions.get(width, [])
            body += [f"real {name} = {START[op].format(real='real')};" for op, name in reductions]
            clause = "".join(f" reduction({CLAUSE[op]} : {name})" for op, name in reductions)
            body += [f"#pragma omp simd{clause}", f"for (int j = 0; j < {width}; ++j) {{", *inner, "}"]
        head = [*self.before, "for (int64_t b = 0; b < rows; ++b) {", *self.pointers.values(), *self.columns]
        return [*head, *body, *self.after, "}"]
