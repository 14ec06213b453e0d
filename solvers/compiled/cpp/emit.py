"""The plan of a step written out as C++: one function for the forward pass over a sequence, one for the backward pass.

Both run over samples `b0` to `b1` - 1 of a batch, so that threads share a batch by calling with different bounds. The
number of steps, the batch and all strides are arguments; widths are constants of the code. Products are made by the
BLAS function that is passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from pathlib import Path

from solvers.compiled.cpp.sweep import Sweep
from solvers.compiled.cpp.values import CppWriter
from solvers.compiled.passes.source import Source
from solvers.compiled.step.ir import Matrix, Node
from solvers.compiled.step.plan import Level, Place, Program, array_kind
from solvers.compiled.step.refused import Refused

HEADER = Path(__file__).with_name("vector_math.h")

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

#pragma omp declare reduction(larger : real : omp_out = vmax<real>(omp_out, omp_in)) initializer(omp_priv = -INFINITY)

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


class _Function(CppWriter):
    """Writes one of the two functions."""

    # One pass over the samples

    def sweep(self, number: int, level: Level) -> list[str]:
        """The loop over samples of one level."""
        if not level.stores and not level.sums:
            # Only products: their operands were there before.
            return []
        sweep = Sweep(self, number)
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

    def products(self, level: Level) -> list[str]:
        """The products after one level."""
        lines = []
        for p in level.products:
            x, ldx = self.base(p.operand.array)
            out, ldo = self.base(p.result.array)
            k, n, matrix = p.matrix.rows, p.matrix.columns, self.given(("matrix", self.matrix(p.matrix)))
            lines.append(
                f"product(gemm, rows, {k}, {n}, {x} + {p.operand.offset}, {ldx}, {matrix}, "
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
        self.endings()
        return body + self.last

    def sink(self, number: int, name: Hashable, node: Node) -> None:
        """Add to the gradient of what all steps share."""
        self.ending(f"{self.given(name, 'double')}[{{at}}]", node, f"  // gradient {number}")

    def drop(self, number: int, name: Hashable, node: Node, time: str) -> None:
        """Add to the gradient of what belongs to one step or interval."""
        self.ending(f"{self.given(name, 'double')}[{time} * {node.width} + {{at}}]", node)

    def ending(self, target: str, node: Node, remark: str = "") -> None:
        """Add a number, or the channels of a row one by one, to a target that has `{at}` for the channel."""
        loop, at = (f"for (int j = 0; j < {node.width}; ++j) ", "j") if node.width > 1 else ("", "0")
        self.last.append(f"{loop}{target.format(at=at)} += {self.shared(node)};{remark}")

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
        kind = array_kind(place.array)
        if kind == "chunk":
            name, ld = self.base(place.array)
            return [], f"{name}_all + {place.offset}", ld
        if kind in ("state", "saved"):
            where = self.address(place.array)
            p, ld = self.given(where.pointer), str(where.across)
            # One product over a chunk needs its rows one after the other. For a single thread they lie so; the samples
            # of one of several threads are gathered first.
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
            "const Flushed flushed(integers[6] != 0);",
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


def _indented(lines: list[str]) -> str:
    depth, out = 0, []
    for line in lines:
        if line.startswith("}"):
            depth -= 1
        out.append("  " * (0 if line.startswith("#") else depth) + line)
        if line.endswith("{"):
            depth += 1
    return "\n".join(out) + "\n"
