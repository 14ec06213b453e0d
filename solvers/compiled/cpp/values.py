"""How the C++ of a step names and finds arrays, rows and numbers, and spells its operations."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Any

from solvers.compiled.passes.writer import Writer
from solvers.compiled.step.ir import Matrix, Node
from solvers.compiled.step.ops import OVER_CHANNELS, PREDICATES
from solvers.compiled.step.plan import Plan, Program, array_kind

#: Reductions over channels: what they start from, and how a value joins the result so far, for a type of number.
START = {"csum": "{real}(0)", "cmax": "-{real}(INFINITY)"}
JOIN = {"csum": "{total} += {value};", "cmax": "{total} = vmax<{real}>({total}, {value});"}


class CppWriter(Writer):
    """Writes arrays, rows and numbers in C++."""

    language = "cpp"
    title = "CPUs"

    def __init__(
        self, name: str, program: Program, plan: Plan, matrices: list[Matrix], over: Collection[int] = ()
    ) -> None:
        super().__init__(name, program, plan, matrices, over)
        #: Declarations at the start of the function and of each step, and what ends a step.
        self.top: list[str] = []
        self.per_step: list[str] = []
        self.last: list[str] = []
        self.declared: set[Any] = set()
        self.readers: dict[Node, list[Node]] | None = None
        for i, known in enumerate(("steps", "batch", "b0", "b1", "substeps", "chunk", "flush")):
            assert self.signature.integer(known) == i
        self.signature.pointer("gemm")

    # Arrays

    def base(self, array: Any) -> tuple[str, str]:
        """The C names of an array's first row of this step, and of its row stride."""
        kind = array_kind(array)
        name = "_".join(str(x) for x in (array if isinstance(array, tuple) else (array,)) if not isinstance(x, tuple))
        if kind in ("carry", "sent"):
            for i in (0, 1):
                self.given(f"carry{i}")
            # What flows back lies in two places in turn, so that a step reads one while it writes the other.
            which = "(steps - 1 - s) & 1"
            pick = "p_carry1 : p_carry0" if kind == "carry" else "p_carry0 : p_carry1"
            self.step_line(kind, f"real* {kind} = ({which} ? {pick}) + b0 * {self.ld};")
            return kind, str(self.ld)
        if kind in ("chunk", "temp"):
            # Each thread has its own, of its own samples alone.
            width = self.plan.widths[array]
            if kind == "temp":
                self.top_line(name, f"real* {name} = scratch.take<real>(rows * {width});")
            else:
                self.top_line(name, f"real* {name}_all = scratch.take<real>(chunk * rows * {width});")
                self.step_line(name, f"real* {name} = {name}_all + (s - first) * rows * {width};")
            return name, str(width)
        where = self.address(array)
        if kind in ("step", "dstep"):
            name = self.label(array)
        p = self.given(where.pointer)
        if where.along is None:
            self.step_line(name, f"real* {name} = {p} + (({where.time}) * batch + b0) * {where.across};")
            return name, str(where.across)
        along, across = self.number(where.along), self.number(where.across)
        self.step_line(name, f"real* {name} = {p} + {where.time} * {along} + b0 * {across};")
        return name, across

    def label(self, key: Any) -> str:
        """A C name for a leaf."""
        return f"{key[0]}{self.signature.pointer(key)}"

    def given(self, name: Hashable, kind: str = "real") -> str:
        """The C name of a pointer argument."""
        index = self.signature.pointer(name)
        label = f"p_{name}" if isinstance(name, str) else f"p{index}"
        self.top_line(label, f"{kind}* {label} = ({kind}*)pointers[{index}];")
        return label

    def number(self, name: Hashable) -> str:
        """The C name of an integer argument."""
        index = self.signature.integer(name)
        self.top_line(("n", index), f"const int64_t n{index} = integers[{index}];")
        return f"n{index}"

    def top_line(self, key: Any, line: str) -> None:
        """A line at the start of the function, once."""
        if ("top", key) not in self.declared:
            self.declared.add(("top", key))
            self.top.append(line)

    def step_line(self, key: Any, line: str) -> None:
        """A line at the start of each step, once."""
        if ("step", key) not in self.declared:
            self.declared.add(("step", key))
            self.per_step.append(line)

    # Rows and numbers

    def literal(self, value: float) -> str:
        """A number."""
        if value != value:
            return "real(NAN)"
        if value in (float("inf"), float("-inf")):
            return "real(INFINITY)" if value > 0 else "(-real(INFINITY))"
        return f"({value!r})" if value < 0 else repr(value)

    def shared(self, node: Node, j: str = "j") -> str:
        """The C expression of a value without batch; of a row, at channel `j`."""
        if node.op == "const":
            return self.literal(node.data)
        if node.op == "leaf":
            return self.shared_leaf(node, j)
        return f"row{node.number}[{j}]" if node.width > 1 else f"sum{node.number}"

    def zeros(self, node: Node, *where: Any) -> str:
        """A row of zeros."""
        return "real(0)"

    def shared_number(self, node: Node, time: str | None) -> str:
        """A number from outside, which stays in double precision."""
        return f"{self.given(node.data, 'double')}[{time or 0}]"

    def shared_row(self, node: Node, time: str | None, *where: Any) -> str:
        """A channel of a row from outside."""
        shift = f"{time} * {self.number((*node.data, 'time'))} + " if time else ""
        return f"{self.given(node.data)}[{shift}{where[0]}]"

    def shared_lines(self, nodes: list[Node]) -> list[str]:
        """Compute scalars and rows, the rows of one width in one loop."""
        lines: list[str] = []
        pending: dict[int, list[Node]] = {}

        def flush() -> None:
            for width, rows in pending.items():
                lines.extend(self.row_loop(width, rows))
            pending.clear()

        for node in nodes:
            if node.op in (*OVER_CHANNELS, "slice", "cat"):
                # These read other channels than their own, so the rows before them must be complete.
                flush()
            if node.op in OVER_CHANNELS:
                total, x = f"sum{node.number}", self.shared(node.args[0])
                join = JOIN[node.op].format(total=total, value=f"double({x})", real="double")
                lines += [
                    f"double {total} = {START[node.op].format(real='double')};",
                    f"for (int j = 0; j < {node.args[0].width}; ++j) {join}",
                ]
            elif node.width == 1:
                # In double precision: times and step sizes, of which rounding would add up.
                j = str(node.data[0]) if node.op == "slice" else "0"
                value = self.function(node, [self.shared(a, j) for a in node.args], "double")
                lines.append(f"const double sum{node.number} = {value};")
            elif node.op == "cat":
                lines += self.row_parts(node)
            else:
                pending.setdefault(node.width, []).append(node)
        flush()
        return lines

    def row_parts(self, node: Node) -> list[str]:
        """Rows beside each other."""
        self.top_line(("row", node), f"real* row{node.number} = scratch.take<real>({node.width});")
        lines, at = [], 0
        for part in node.args:
            lines.append(f"for (int j = 0; j < {part.width}; ++j) row{node.number}[{at} + j] = {self.shared(part)};")
            at += part.width
        return lines

    def row_loop(self, width: int, rows: list[Node]) -> list[str]:
        """Rows computed channel by channel; those that nothing else reads are not kept."""
        lines = ["#pragma omp simd", f"for (int j = 0; j < {width}; ++j) {{"]
        here = set(rows)
        for node in rows:
            j = f"j + {node.data[0]}" if node.op == "slice" else "j"
            args = [
                f"w{a.number}"
                if a in here and node.op != "slice"
                else self.shared(a, j)
                if a.width > 1
                else f"real({self.shared(a)})"
                for a in node.args
            ]
            kind = "bool" if node.op in PREDICATES else "real"
            lines.append(f"const {kind} w{node.number} = {self.function(node, args)};")
            if self.kept(node, here):
                self.top_line(("row", node), f"real* row{node.number} = scratch.take<real>({width});")
                lines.append(f"row{node.number}[j] = w{node.number};")
        return [*lines, "}"]

    def kept(self, node: Node, here: set[Node]) -> bool:
        """Whether a row is read outside of the loop that computes it."""
        if self.readers is None:
            self.readers = {}
            for reader in self.plan.depth:
                for arg in reader.args:
                    self.readers.setdefault(arg, []).append(reader)
        # A row that lives in its loop alone needs no memory, which is what most of them do.
        ends = [x for _, x in (*self.plan.sinks, *self.plan.drops)]
        stored = [x for level in self.plan.levels for x, _ in level.stores]
        return (
            node in ends or node in stored or any(r not in here or r.op == "slice" for r in self.readers.get(node, []))
        )

    def function(self, node: Node, args: list[str], kind: str = "real") -> str:
        """One operation on C expressions."""
        return args[0] if node.op in ("slice", "stop") else self.operation(node, args, kind)
