"""The plan of a step written out as Triton: one persistent kernel for the forward pass over a sequence, one backward.

Each program takes a tile of samples through all steps, the state in registers. Products with parameter matrices are
"held": all matrices are read once and stay on the chip; or "streamed": operands go through memory, and tiles of the
matrices come from the cache at each step, but for some that stay. A step without products or sums over channels is
shared out over tiles of channels, too. The gradient of a matrix is not added up here: the backward kernel leaves the
two factors of each of its terms in memory, and one product over all samples and many steps makes it, the same every
time and on the whole device.
"""

from __future__ import annotations

from collections.abc import Hashable

from solvers.compiled.step.ir import Matrix, Node
from solvers.compiled.step.plan import Level, Place, Plan, Product, Program, array_kind
from solvers.compiled.step.refused import Refused
from solvers.compiled.triton.pieces import Piece
from solvers.compiled.triton.tiling import GpuSource, Tiling, said
from solvers.compiled.triton.values import HEAD, Values

#: Most tile products of one step: more would make a kernel that takes minutes to compile.
LARGEST = 256
#: Least width of a tile in a product.
TILE = 16


def emit(program: Program, dtype: str, precision: str, tilings: tuple[Tiling, Tiling]) -> GpuSource:
    """The source of a program.

    Args:
        program: forward and perhaps backward plan.
        dtype: "float32" or "float64".
        precision: of products, as in `tl.dot`: "ieee", "tf32x3" or "tf32"; "bf16" takes matrices in bfloat16.
        tilings: of the forward and the backward kernel.
    """
    matrices: list[Matrix] = []
    forward = _Kernel("forward", program, program.forward, matrices, dtype, precision, tilings[0])
    texts, backward = [forward.text()], None
    if program.backward is not None:
        backward = _Kernel("backward", program, program.backward, matrices, dtype, precision, tilings[1])
        texts.append(backward.text())
    tiles = (forward.tiles, 1 if backward is None else backward.tiles)
    outs = {} if backward is None else backward.outs
    other = None if backward is None else backward.signature
    doubles = (frozenset(forward.doubles), frozenset() if backward is None else frozenset(backward.doubles))
    text = "\n\n".join([HEAD, *texts])
    return GpuSource(text, forward.signature, other, matrices, tilings, tiles, doubles, outs, precision == "bf16")


def joined(pieces: list[Piece]) -> list[tuple[int, int]]:
    """First and last row of pieces, those that follow each other as one."""
    runs: list[tuple[int, int]] = []
    for start, size in pieces:
        first = runs.pop()[0] if runs and runs[-1][1] == start else start
        runs.append((first, start + size))
    return runs


class _Kernel(Values):
    """Writes one of the two kernels."""

    def __init__(
        self,
        name: str,
        program: Program,
        plan: Plan,
        matrices: list[Matrix],
        dtype: str,
        precision: str,
        tiling: Tiling,
    ) -> None:
        super().__init__(name, program, plan, matrices, dtype, tiling)
        self.precision = precision
        self.products = any(level.products for level in plan.levels)
        self.least = TILE if self.products else 1
        #: Lines after the loop over steps.
        self.after: list[str] = []
        known = [node for _, node in plan.sinks if node.op == "bsum" and node.width > 1]
        read = {arg for node in plan.depth for arg in node.args} | {node for _, node in plan.drops}
        #: What changes from step to step; a sum over samples that is only added up is taken after the last one.
        self.varying = [
            node
            for node in sorted(plan.depth, key=lambda node: node.number)
            if (node.batch or node.varies) and (node not in known or node in read)
        ]
        #: Expressions of what goes to the next step, by component and first channel.
        self.sent: dict[tuple[int, int], str] = {}
        #: Tiles of streamed matrices that stay on the chip, and their numbers.
        self.kept: dict[tuple[Matrix, int, int], int] = {}
        self.read = {p.operand.array for level in plan.levels for p in level.products}
        # Every tile product is written out, and the compiler's time grows faster than their number.
        if sum(self.dots(p) for level in plan.levels for p in level.products) > LARGEST:
            raise Refused(f"its products are more than {LARGEST} tiles, too many for one GPU kernel")

    def dots(self, product: Product) -> int:
        """Tile products of one product."""
        columns = len(self.cuts.of(product.node))
        return columns * (1 if self.tiling.depth else len(self.cuts.of(product.node.args[0])))

    def carried(self, node: Node) -> bool:
        """The state of the forward pass, and what flows back through the backward one."""
        return self.name == "forward" or node.data[0] == "carry"

    # Products

    def product(self, p: Product) -> None:
        """A product, piece by piece of its result."""
        node, x = p.node, p.node.args[0]
        for start, size in self.cuts.of(node):
            # The tensor cores take no narrower tile.
            tile = max(self.padded(size), TILE)
            name = f"v{node.number}_{start}" if node.width > 1 else f"v{node.number}"
            self.step.append(f"{name} = tl.zeros([{self.tiling.rows}, {tile}], {self.real})")
            streamed = [piece for piece in self.cuts.of(x) if not self.stays(p.matrix, piece, (start, tile))]
            for piece in self.cuts.of(x):
                if piece not in streamed:
                    self.held(p, name, piece, (start, size), tile)
            for first, last in joined(streamed):
                self.streamed(p, name, (first, last), (start, size), tile)
            if size == 1:
                self.step.append(f"{name} = tl.sum({name}, 1)[:, None]")
            self.names[node, start] = name
            if p.add:
                # To the gradient that is sent, which is in registers.
                component, at = divmod(p.result.offset + start, self.program.width)
                self.sent[component, at] = f"{self.sent[component, at]} + {name}"

    def stays(self, matrix: Matrix, rows: Piece, columns: Piece) -> bool:
        """Whether a tile of a matrix stays on the chip: all where nothing is streamed, else the first that fit."""
        if not self.tiling.depth or matrix.rows == 1:
            return True
        tile, numbers = (matrix, rows[0], columns[0]), self.padded(rows[1]) * columns[1]
        if tile not in self.kept and sum(self.kept.values()) + numbers <= self.tiling.kept:
            self.kept[tile] = numbers
        return tile in self.kept

    def held(self, p: Product, name: str, rows: Piece, columns: Piece, tile: int) -> None:
        """Add the product of a piece with a tile of the matrix that stays on the chip."""
        x, (k, depth), (n, size) = p.node.args[0], rows, columns
        matrix = f"m{self.matrix(p.matrix)}_{k}_{n}"
        address = f"{self.given(('matrix', self.matrix(p.matrix)))}"
        wide = f"tl.arange(0, {tile})[None, :]"
        if depth == 1:
            # An outer product, by broadcasting: of one row nothing is to be summed.
            load = f"tl.load({address} + {k * p.matrix.columns + n} + {wide}, mask={wide} < {size}, other=0.0)"
            self.once(matrix, self.top, f"{matrix} = {load}")
            number = f"{matrix}.to({self.real})" if self.precision == "bf16" else matrix
            self.step.append(f"{name} += {self.full(x, rows)} * {number}")
            return
        deep = f"tl.arange(0, {self.padded(depth)})[:, None]"
        load = f"{address} + ({k} + {deep}) * {p.matrix.columns} + {n} + {wide}"
        masks = [f"({deep} < {depth})"] if self.padded(depth) > depth else []
        masks += [f"({wide} < {size})"] if tile > size else []
        mask = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
        self.once(matrix, self.top, f"{matrix} = tl.load({load}{mask})")
        self.step.append(f"{name} = {self.dot(self.clean(self.full(x, rows), depth), matrix, name)}")

    def streamed(self, p: Product, name: str, rows: Piece, columns: Piece, tile: int) -> None:
        """Add the product of what lies in memory with rows of a matrix that are read some at a time."""
        depth, (first, last), (n, size) = self.tiling.depth, rows, columns
        x = f"x{p.node.number}"
        self.once(x, self.step, f"{x} = {self.base(p.operand.array)} + {p.operand.offset}")
        wide, deep = f"tl.arange(0, {tile})[None, :]", f"(k + tl.arange(0, {depth}))"
        address = self.given(("matrix", self.matrix(p.matrix)))
        masks = [f"({deep}[:, None] < {last})"] if (last - first) % depth else []
        masks += [f"({wide} < {size})"] if tile > size else []
        mask = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
        tail = f" & ({deep}[None, :] < {last})" if (last - first) % depth else ""
        self.step += [
            f"for k in range({first}, {last}, {depth}):",
            f"    x_{name} = tl.load({x} + {deep}[None, :], mask=here{tail}, other=0.0)",
            f"    m_{name} = tl.load({address} + {deep}[:, None] * {p.matrix.columns} + {n} + {wide}{mask})",
            f"    {name} = {self.dot(f'x_{name}', f'm_{name}', name)}",
        ]

    def dot(self, x: str, matrix: str, total: str) -> str:
        if self.precision == "bf16":
            return f"half_dot({x}, {matrix}, {total})"
        return f'tl.dot({x}, {matrix}, {total}, input_precision="{self.precision}", out_dtype={self.real})'

    # Results

    def store(self, node: Node, place: Place) -> None:
        """Write a value where it is wanted."""
        kind = array_kind(place.array)
        if kind == "temp" and not (self.tiling.depth and place.array in self.read):
            return
        if kind in ("next", "sent") and place in self.plan.parts:
            raise Refused("a component of the state is put together from channels computed apart")
        for start, size in self.pieces_to(node, kind):
            text = self.full(node, (start, size))
            if kind in ("next", "sent"):
                component = place.offset // self.program.width
                name = f"{kind}{component}_{start}"
                self.step.append(f"{name} = {text}")
                self.sent[component, start] = name
                text = name
            if kind == "dstep" and place.array[1] != ("start",):
                text = self.accumulated(f"d{self.signature.pointer(place.array)}_{place.offset + start}", text, size)
            if kind != "sent":
                address = f"{self.base(place.array)} + {place.offset + start} + {self.channels(size)}"
                self.step.append(f"tl.store({address}, {text}{self.mask(size)})")

    def pieces_to(self, node: Node, kind: str) -> list[Piece]:
        """The pieces in which a value is stored; a number or a column may be wanted for all channels."""
        if kind not in ("next", "sent"):
            return self.cuts.of(node)
        return self.state_pieces()

    def accumulated(self, name: str, text: str, size: int) -> str:
        """What is added up over the steps of an interval."""
        self.once(name, self.top, f"{name} = tl.zeros([{self.tiling.rows}, {self.padded(size)}], {self.real})")
        self.step.append(f"{name} = tl.where(fresh, {text}, {name} + {text})")
        return name

    def drop(self, number: int, name: Hashable, node: Node, time: str) -> None:
        """A gradient of one step or interval: added up in registers over the steps of an interval."""
        p, count = self.double(name), self.number((*name, "count"))  # type: ignore[misc]
        for start, size in self.cuts.of(node):
            shape, kind = self.shared_type(node, size)
            text, total = self.typed(node, start, size), f"h{number}_{start}"
            if time == "at":
                self.once(total, self.top, f"{total} = tl.zeros({shape}, {kind})")
                self.step.append(f"{total} = tl.where(fresh, {text}, {total} + {text})")
                text = total
            address = f"{p} + (tl.program_id(0) * {count} + {time}) * {node.width} + {start}"
            self.keep(address, text, node, size, self.step)

    def sink(self, number: int, name: Hashable, node: Node) -> None:
        """A gradient that is added up over all steps; a sum over samples is taken at the end, once."""
        p = self.double(name)
        for start, size in self.cuts.of(node):
            total, address = f"g{number}_{start}", f"{p} + tl.program_id(0) * {node.width} + {start}"
            if node.op == "bsum" and node.args[0].batch and node.width > 1:
                self.top.append(f"{total} = tl.zeros([{self.tiling.rows}, {self.padded(size)}], {self.real})")
                self.step.append(f"{total} += {self.value(node.args[0], start)}")
                self.keep(address, f"tl.sum(tl.where(here, {total}, 0.0), 0)[None, :]", node, size, self.after)
                continue
            shape, kind = self.shared_type(node, size)
            self.top.append(f"{total} = tl.zeros({shape}, {kind})")
            self.step.append(f"{total} += {self.typed(node, start, size)}")
            self.keep(address, total, node, size, self.after)

    def keep(self, address: str, text: str, node: Node, size: int, section: list[str]) -> None:
        if node.width == 1:
            section.append(f"tl.store({address}, {text})")
        else:
            section.append(f"tl.store({address} + {self.row_channels(size)}, {text}{self.mask(size, batch=False)})")

    # The whole

    def level(self, number: int, level: Level) -> None:
        """One level: what can be computed, what is stored, and the products after it."""
        for node in self.varying:
            if self.plan.depth[node] == number:
                self.compute(node, self.step)
        for node, place in level.stores:
            self.store(node, place)
        if level.products and self.tiling.depth:
            # Operands go through memory: all threads must have written before any reads.
            self.step.append("tl.debug_barrier()")
        for p in level.products:
            self.product(p)
            self.stored_result(p)

    def stored_result(self, p: Product) -> None:
        """A product whose result another one reads from memory."""
        if not self.tiling.depth or p.add or p.result.array not in self.read:
            return
        for start, size in self.cuts.of(p.node):
            address = f"{self.base(p.result.array)} + {p.result.offset + start} + {self.channels(size)}"
            self.step.append(f"tl.store({address}, {self.value(p.node, start)}{self.mask(size)})")

    def carries(self) -> tuple[list[str], list[str]]:
        """What goes from step to step: its start before the loop, and its renewal."""
        before, renewal = [], []
        kind = "state" if self.name == "forward" else "carry"
        for i in range(self.program.components):
            for start, size in self.state_pieces():
                offset = f"{i * self.program.width + start} + {self.channels(size)}"
                name = f"{kind}{i}_{start}"
                address = f"{self.given('states' if kind == 'state' else 'carry0')} + row * {self.ld} + {offset}"
                before.append(f"{name} = {self.load(address, size)}")
                renewal.append(f"{name} = {self.sent[i, start]}")
                if kind == "carry":
                    self.after.append(f"tl.store({address}, {name}{self.mask(size)})")
        return before, renewal

    def arriving(self) -> list[str]:
        """The gradients of the outputs join those from the step after."""
        lines = ["ending = row < tl.where(fresh, batch, 0)"]
        for i in range(self.program.components):
            p, st, sb = (self.given(("gout", i)), *(self.number(("gout", i, k)) for k in ("time", "sample")))
            self.outs[f"OUT{i}"] = ("gout", i)
            lines.append(f"if OUT{i}:")
            for start, size in self.state_pieces():
                name, inside = f"carry{i}_{start}", self.inside(size)
                mask = f"ending{' & ' + inside if inside else ''}"
                address = f"{p} + at * {st} + row * {sb} + {start} + {self.channels(size)}"
                lines.append(f"    {name} += tl.load({address}, mask={mask}, other=0.0)")
        return lines

    def described(self) -> str:
        """How the kernel lies on the device, in words."""
        rows, depth = self.tiling.rows, self.tiling.depth
        said = f"{rows} sample{'s' if rows > 1 else ''} a program, {32 * self.tiling.warps} threads"
        if self.split:
            return f"{said}; programs share the channels, {self.block} each."
        if not self.products:
            return f"{said}."
        where = f"streamed, {depth} rows at a time" if depth else "held on the chip"
        return f"{said}; matrices {where}{', but for what stays on the chip' if self.kept else ''}."

    def text(self) -> str:
        """The kernel."""
        backward = self.name == "backward"
        for node in sorted(self.plan.depth, key=lambda node: node.number):
            if not node.batch and not node.varies:
                self.compute(node, self.top)
        head = ["at = s // SUBSTEPS", "fresh = (s + 1) % SUBSTEPS == 0", *(self.arriving() if backward else [])]
        for number, level in enumerate(self.plan.levels):
            self.level(number, level)
        self.endings()
        before, renewal = self.carries()
        loop = [*head, *self.step, *renewal]
        # And have read before the next step writes there again.
        loop += ["tl.debug_barrier()"] if self.tiling.depth and self.products else []
        rows = self.tiling.rows
        lines = [
            f"row = tl.program_id(0).to(tl.int64) * {rows} + tl.arange(0, {rows})[:, None]",
            "here = row < batch",
            *self.top,
            *before,
            f"s = tl.program_id(0).to(tl.int64) * 0 + {'last' if backward else 'first - 1'}",
            "for _ in range(first, last):",
            *(f"    {line}" for line in (f"s {'-' if backward else '+'}= 1", *loop)),
            *self.after,
        ]
        pointers = [f"p{i}" for i in range(len(self.signature.pointers))]
        numbers = [f"n{i}" for i in range(len(self.signature.integers))]
        flags = ["SUBSTEPS", *self.outs]
        arguments = [*pointers, *numbers, "first", "last", "batch", *(f"{flag}: tl.constexpr" for flag in flags)]
        comments = [
            f"# {self.described()}",
            *(f"# {name}: {said(key)}" for name, key in zip(pointers, self.signature.pointers, strict=True)),
        ]
        return "\n".join(
            [
                '@triton.jit(do_not_specialize=["first", "last", "batch"])',
                f"def {self.name}({', '.join(arguments)}):",
                *(f"    {line}" for line in (*comments, *lines)),
                "",
            ]
        )
