"""The plan of a step written out as C++: one function for the forward pass over a sequence, one for the backward pass.

Both run over samples `b0` to `b1` - 1 of a batch, so that threads share a batch by calling with different bounds. The
number of steps, the batch and all strides are arguments; widths are constants of the code. Products are made by the
BLAS function that is passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any

from solvers.compiled.passes.source import Signature, Source
from solvers.compiled.step.ir import PREDICATES, Matrix, Node
from solvers.compiled.step.plan import Level, Place, Plan, Program
from solvers.compiled.step.refused import Refused

HEADER = Path(__file__).with_name("vector_math.h")

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}
_INFIX |= {"ne": "!=", "and": "&&", "or": "||"}
_VECTOR = {"tanh", "sigmoid", "exp", "expm1", "log", "log1p"}
_LIBRARY = {"sin", "cos", "sqrt", "erf", "floor"}

_TOP = """
typedef void (*Gemm)(const char*, const char*, const int*, const int*, const int*, const real*, const real*,
                     const int*, const real*, const int*, const real*, real*, const int*);

namespace {

// out (rows, n) [+]= x (rows, k) m (k, n), all by rows.
inline void product(Gemm gemm, int64_t rows, int k, int n, const real* x, int64_t ldx, const real* m, real* out,
                    int64_t ldo, bool add) {
  const real one = 1, beta = add ? 1 : 0;
  const int count = (int)rows, lx = (int)ldx, lo = (int)ldo;
  gemm("N", "N", &n, &count, &k, &one, m, &n, x, &lx, &beta, out, &lo);
}

// out (k, n) += x^T y over all rows.
inline void outer(Gemm gemm, int64_t rows, int k, int n, const real* x, int64_t ldx, const real* y, int64_t ldy,
                  real* out) {
  const real one = 1;
  const int count = (int)rows, lx = (int)ldx, ly = (int)ldy;
  gemm("N", "T", &n, &k, &count, &one, y, &ly, x, &lx, &one, out, &n);
}

// The rows of one thread of `count` steps, one after the other.
inline void gather(real* out, const real* in, int64_t count, int64_t rows, int64_t batch, int64_t ld, int64_t width) {
  for (int64_t s = 0; s < count; ++s)
    for (int64_t b = 0; b < rows; ++b)
      std::memcpy(out + (s * rows + b) * width, in + (s * batch + b) * ld, width * sizeof(real));
}

}  // namespace
"""


def emit(program: Program, dtype: str, over: Collection[int] = ()) -> Source:
    """The source of a program; `dtype` is "float" or "double".

    The saved values in `over` lie as the caller says, by strides over time and samples; others sample by sample.
    """
    matrices: list[Matrix] = []
    forward = _Function("forward", program, program.forward, matrices, over)
    texts = [forward.text()]
    backward = None
    if program.backward is not None:
        backward = _Function("backward", program, program.backward, matrices, over)
        texts.append(backward.text())
    head = f"{HEADER.read_text()}\ntypedef {dtype} real;\n{_TOP}"
    other = None if backward is None else backward.signature
    return Source(head + "\n".join(texts), forward.signature, other, matrices)


class _Function:
    """Writes one of the two functions."""

    def __init__(
        self, name: str, program: Program, plan: Plan, matrices: list[Matrix], over: Collection[int] = ()
    ) -> None:
        self.name, self.program, self.plan, self.matrices, self.over = name, program, plan, matrices, over
        self.signature = Signature()
        self.ld = program.components * program.width
        #: Declarations at the start of the function and of each step.
        self.top: list[str] = []
        self.per_step: list[str] = []
        self.declared: set[Any] = set()
        self.readers: dict[Node, list[Node]] | None = None
        for i, known in enumerate(("steps", "batch", "b0", "b1", "substeps", "chunk")):
            assert self.signature.integer(known) == i
        self.signature.pointer("gemm")

    # Arrays

    def base(self, array: Any) -> tuple[str, str]:
        """The C names of an array's first row of this step, and of its row stride."""
        name = "_".join(str(x) for x in (array if isinstance(array, tuple) else (array,)) if not isinstance(x, tuple))
        kind = array if isinstance(array, str) else array[0]
        if kind in ("state", "next"):
            p = self.given("states")
            shift = "s" if kind == "state" else "(s + 1)"
            self.step_line(kind, f"real* {kind} = {p} + ({shift} * batch + b0) * {self.ld};")
            return kind, str(self.ld)
        if kind in ("carry", "sent"):
            for i in (0, 1):
                self.given(f"carry{i}")
            which = "(steps - 1 - s) & 1"
            pick = "p_carry1 : p_carry0" if kind == "carry" else "p_carry0 : p_carry1"
            self.step_line(kind, f"real* {kind} = ({which} ? {pick}) + b0 * {self.ld};")
            return kind, str(self.ld)
        if kind in ("step", "dstep"):
            label = self.label(array)
            p, st, sb = self.given(array), self.number((*array, "time")), self.number((*array, "sample"))
            at = "s" if array[1] == ("start",) else "at"
            self.step_line(label, f"real* {label} = {p} + {at} * {st} + b0 * {sb};")
            return label, sb
        width = self.plan.widths[array]
        if kind == "saved" and array[1] in self.over:
            p, st, sb = self.given(array), self.number((*array, "time")), self.number((*array, "sample"))
            self.step_line(name, f"real* {name} = {p} + s * {st} + b0 * {sb};")
            return name, sb
        if kind == "saved":
            p = self.given(array)
            self.step_line(name, f"real* {name} = {p} + (s * batch + b0) * {width};")
        elif kind == "chunk":
            self.top_line(name, f"real* {name}_all = scratch.take<real>(chunk * rows * {width});")
            self.step_line(name, f"real* {name} = {name}_all + (s - first) * rows * {width};")
        else:
            self.top_line(name, f"real* {name} = scratch.take<real>(rows * {width});")
        return name, str(width)

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
        if ("top", key) not in self.declared:
            self.declared.add(("top", key))
            self.top.append(line)

    def step_line(self, key: Any, line: str) -> None:
        if ("step", key) not in self.declared:
            self.declared.add(("step", key))
            self.per_step.append(line)

    # Rows and scalars

    def shared(self, node: Node, j: str = "j") -> str:
        """The C expression of a value without batch; of a row, at channel `j`."""
        if node.op == "const":
            return _literal(node.data)
        if node.op == "leaf":
            return self.shared_leaf(node, j)
        return f"row{node.number}[{j}]" if node.width > 1 else f"sum{node.number}"

    def shared_leaf(self, node: Node, j: str) -> str:
        kind = node.data[0]
        if kind == "zeros":
            return "real(0)"
        if kind == "step":
            at = "s" if node.data[1] == ("start",) else "at"
            if node.width == 1:
                return f"{self.given(node.data, 'double')}[{at}]"
            return f"{self.given(node.data)}[{at} * {self.number((*node.data, 'time'))} + {j}]"
        return f"{self.given(node.data)}[{j}]" if node.width > 1 else f"{self.given(node.data, 'double')}[0]"

    def shared_lines(self, nodes: list[Node]) -> list[str]:
        """Compute scalars and rows, the rows of one width in one loop."""
        lines: list[str] = []
        pending: dict[int, list[Node]] = {}

        def flush() -> None:
            for width, rows in pending.items():
                lines.extend(self.row_loop(width, rows))
            pending.clear()

        for node in nodes:
            if node.op in ("csum", "slice", "cat"):
                flush()
            if node.op == "csum":
                x = self.shared(node.args[0])
                lines += [
                    f"double sum{node.number} = 0;",
                    f"for (int j = 0; j < {node.args[0].width}; ++j) sum{node.number} += {x};",
                ]
            elif node.width == 1:
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
        ends = [x for _, x in (*self.plan.sinks, *self.plan.drops)]
        stored = [x for level in self.plan.levels for x, _ in level.stores]
        return (
            node in ends or node in stored or any(r not in here or r.op == "slice" for r in self.readers.get(node, []))
        )

    def function(self, node: Node, args: list[str], kind: str = "real") -> str:
        """One operation on C expressions."""
        op = node.op
        if op in ("slice", "stop"):
            return args[0]
        if op in _INFIX:
            return f"({args[0]}) {_INFIX[op]} ({args[1]})"
        if op in ("neg", "not"):
            return f"{'-' if op == 'neg' else '!'}({args[0]})"
        if op == "where":
            return f"({args[0]}) ? {kind}({args[1]}) : {kind}({args[2]})"
        typed = ", ".join(f"{kind}({a})" for a in args)
        if op in _VECTOR or op in ("sign", "max", "min"):
            return f"v{op}<{kind}>({typed})"
        if op == "abs":
            return f"std::fabs({typed})"
        if op in _LIBRARY:
            return f"std::{op}({typed})"
        if op == "pow":
            return f"std::pow({typed}, {kind}({_literal(node.data)}))"
        raise Refused(f"{op!r} is not known to the CPU emitter" if op != "opaque" else "it sums over the samples")

    # One pass over the samples

    def sweep(self, number: int, level: Level) -> list[str]:
        """The loop over samples of one level."""
        if not level.stores and not level.sums:
            return []
        sweep = _Sweep(self, number)
        # The gradients of the interval's leaves last: they may lie where a saved value was read.
        late = [(node, place) for node, place in level.stores if place.array[0] == "dstep"]
        for node, place in level.stores:
            if (node, place) not in late:
                sweep.store(node, place)
        for node in level.sums:
            sweep.sum(node)
        for node, place in late:
            sweep.store(node, place)
        return sweep.lines()

    def matrix(self, matrix: Matrix) -> str:
        """The C name of a packed matrix."""
        if matrix not in self.matrices:
            self.matrices.append(matrix)
        return self.given(("matrix", self.matrices.index(matrix)))

    def products(self, level: Level) -> list[str]:
        """The products after one level."""
        lines = []
        for p in level.products:
            x, ldx = self.base(p.operand.array)
            out, ldo = self.base(p.result.array)
            k, n = p.matrix.rows, p.matrix.columns
            lines.append(
                f"product(gemm, rows, {k}, {n}, {x} + {p.operand.offset}, {ldx}, {self.matrix(p.matrix)}, "
                f"{out} + {p.result.offset}, {ldo}, {'true' if p.add else 'false'});"
            )
        return lines

    # The whole

    def step_body(self) -> list[str]:
        """One step."""
        body: list[str] = []
        for number, level in enumerate(self.plan.levels):
            body += self.shared_lines(level.scalars) + self.shared_lines(level.rows)
            body += self.sweep(number, level) + self.products(level)
        body += self.endings()
        return body

    def endings(self) -> list[str]:
        """Add up the gradients of what is shared by steps or samples."""
        lines = []
        for i, (key, node) in enumerate(self.plan.sinks):
            p = self.given(("sum", key), "double")
            x = self.shared(node)
            loop = f"for (int j = 0; j < {node.width}; ++j) " if node.width > 1 else ""
            lines.append(f"{loop}{p}[{'j' if loop else '0'}] += {x};  // gradient {i}")
        for key, node in self.plan.drops:
            p = self.given(("drop", key), "double")
            at = "s" if key[1] == ("start",) else "at"
            loop = f"for (int j = 0; j < {node.width}; ++j) " if node.width > 1 else ""
            lines.append(f"{loop}{p}[{at} * {node.width} + {'j' if loop else '0'}] += {self.shared(node)};")
        return lines

    def flush(self) -> list[str]:
        """The gradients of matrices, once for each chunk of steps."""
        lines = []
        for i, outer in enumerate(self.plan.outers):
            out = self.given(("outer", i))
            k, n = outer.matrix.rows, outer.matrix.columns
            x, y = self.gathered(outer.left, k), self.gathered(outer.right, n)
            lines += [*x[0], *y[0], f"outer(gemm, count * rows, {k}, {n}, {x[1]}, {x[2]}, {y[1]}, {y[2]}, {out});"]
        return lines

    def gathered(self, place: Place, width: int) -> tuple[list[str], str, str]:
        """All rows of a chunk of an array: copied where the rows of this thread do not lie one after the other."""
        kind = place.array if isinstance(place.array, str) else place.array[0]
        if kind == "chunk":
            name, ld = self.base(place.array)
            return [], f"{name}_all + {place.offset}", ld
        if kind in ("state", "saved"):
            p = self.given("states" if kind == "state" else place.array)
            ld = str(self.ld if kind == "state" else self.plan.widths[place.array])
            copy = f"copy_{p}_{place.offset}_{width}"
            lines = []
            if copy not in self.declared:
                self.declared.add(copy)
                self.top.append(f"real* {copy} = rows == batch ? nullptr : scratch.take<real>(chunk * rows * {width});")
            source = f"{p} + (first * batch + b0) * {ld} + {place.offset}"
            lines.append(f"if ({copy}) gather({copy}, {source}, count, rows, batch, {ld}, {width});")
            return lines, f"({copy} ? {copy} : {source})", f"({copy} ? {width} : {ld})"
        raise Refused(f"the gradient of a matrix from {kind!r}")

    def text(self) -> str:
        """The function."""
        backward = self.name == "backward"
        setup = self.shared_lines(self.plan.setup)
        body = self.step_body()
        flush = self.flush() if backward else []
        lines = [
            f'extern "C" void {self.name}(const int64_t* integers, void** pointers) {{',
            "const int64_t steps = integers[0], batch = integers[1], b0 = integers[2], rows = integers[3] - b0;",
            "const int64_t substeps = integers[4], chunk = integers[5];",
            "Gemm gemm = (Gemm)pointers[0];",
            "Scratch scratch;",
            *self.top,
            *setup,
            "for (int64_t last = steps; last > 0;) {" if backward else "{",
            "const int64_t first = last > chunk ? last - chunk : 0, count = last - first;"
            if backward
            else "const int64_t first = 0;",
            "for (int64_t s = last - 1; s >= first; --s) {" if backward else "for (int64_t s = 0; s < steps; ++s) {",
            "const int64_t at = s / substeps;",
            "const bool fresh = (s + 1) % substeps == 0;",
            *self.per_step,
            *body,
            "}",
            *flush,
            "last = first;" if backward else "",
            "}",
            "}",
        ]
        return _indented([line for line in lines if line])


class _Sweep:
    """One loop over samples, with a loop over channels for each width inside."""

    def __init__(self, function: _Function, number: int) -> None:
        self.f, self.number = function, number
        self.pointers: dict[str, str] = {}
        self.columns: list[str] = []
        self.inner: dict[int, list[str]] = {}
        self.after: list[str] = []
        self.before: list[str] = []
        self.reductions: dict[int, list[str]] = {}
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
        homes = plan.homes.get(node)
        if not homes or (node.op == "cat" and plan.depth.get(node, 0) >= self.number):
            return None
        ready = node.op in ("mm", "csum") or node.op == "leaf" or plan.depth.get(node, 0) < self.number
        if not ready and homes[0].array not in ("next",) and homes[0].array[0] != "saved":
            return None
        if not ready and self.f.name == "forward":
            return None
        place = homes[0]
        if place.array == "carry":
            return None
        return f"{self.pointer(place.array)} + {place.offset}"

    def value(self, node: Node, width: int) -> str:
        """The C expression of a value inside the loop over `width` channels, or outside of them for a column."""
        if not node.batch:
            text = self.f.shared(node)
            return text if node.width > 1 else f"real({text})"
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
        width = self.width_of(place, node)
        target = f"{self.pointer(place.array)} + {place.offset}"
        value = self.value(node, width)
        if self.f.program.divided and place.array[0] == "dstep" and place.array[1] != ("start",):
            old = f"({target})[{'j' if width > 1 else '0'}]"
            value = f"fresh ? real({value}) : {old} + {value}"
        if width == 1:
            self.after.append(f"({target})[0] = {value};")
        else:
            self.inner.setdefault(width, []).append(f"({target})[j] = {value};")

    def width_of(self, place: Place, node: Node) -> int:
        kind = place.array if isinstance(place.array, str) else place.array[0]
        if kind in ("next", "sent") and place not in self.f.plan.parts:
            return self.f.program.width
        return node.width

    def sum(self, node: Node) -> None:
        """Sum over channels or samples."""
        x, f = node.args[0], self.f
        value = self.value(x, x.width)
        if node.op == "csum":
            name = f"t{node.number}"
            self.columns_reset(name, x.width)
            self.inner.setdefault(x.width, []).append(f"{name} += {value};")
            place = f.plan.homes[node][0]
            self.after.append(f"{self.pointer(place.array)}[{place.offset}] = {name};")
        elif x.width == 1:
            self.before.append(f"double sum{node.number} = 0;")
            self.after.append(f"sum{node.number} += {value};")
        else:
            f.top_line(("row", node), f"real* row{node.number} = scratch.take<real>({x.width});")
            self.before.append(f"for (int j = 0; j < {x.width}; ++j) row{node.number}[j] = 0;")
            self.inner.setdefault(x.width, []).append(f"row{node.number}[j] += {value};")

    def columns_reset(self, name: str, width: int) -> None:
        self.reductions.setdefault(width, []).append(name)

    def lines(self) -> list[str]:
        """The loop."""
        body: list[str] = []
        for width, inner in self.inner.items():
            names = self.reductions.get(width, [])
            body += [f"real {name} = 0;" for name in names]
            clause = f" reduction(+ : {', '.join(names)})" if names else ""
            body += [f"#pragma omp simd{clause}", f"for (int j = 0; j < {width}; ++j) {{", *inner, "}"]
        head = [*self.before, "for (int64_t b = 0; b < rows; ++b) {", *self.pointers.values(), *self.columns]
        return [*head, *body, *self.after, "}"]


def _literal(value: float) -> str:
    if value != value:
        return "real(NAN)"
    if value in (float("inf"), float("-inf")):
        return "real(INFINITY)" if value > 0 else "(-real(INFINITY))"
    return f"({value!r})" if value < 0 else repr(value)


def _indented(lines: list[str]) -> str:
    depth, out = 0, []
    for line in lines:
        if line.startswith("}"):
            depth -= 1
        out.append("  " * (0 if line.startswith("#") else depth) + line)
        if line.endswith("{"):
            depth += 1
    return "\n".join(out) + "\n"
