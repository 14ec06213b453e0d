"""The plan of a step written out as Triton kernels of one level each, for steps that fit into no persistent kernel.

Between the kernels the device's own library makes the products. All of a step's kernels and products are replayed as
one CUDA graph, which fixes every address it was recorded with; so what a solve brings along (states, inputs, gradients)
is found through a table of addresses in memory, and the number of the step is counted there, too. What is multiplied
lies in places that stay: the state, and the gradient that flows back, in two of them in turn.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from solvers.compiled.passes.source import Signature
from solvers.compiled.step.ir import Matrix, Node, ordered
from solvers.compiled.step.ops import OVER_CHANNELS
from solvers.compiled.step.plan import Level, Place, Plan, Product, Program, array_kind
from solvers.compiled.triton.tiling import GpuSource, Tiling, literal, power, said
from solvers.compiled.triton.values import HEAD, Values

#: Most channels of one register tensor, and channels for each warp.
PIECE, CHANNELS = 1024, 128


#: The name of a kernel and the products after it.
Stage = tuple[str, list[Product]]


@dataclass
class StagedSource(GpuSource):
    """What the emitter made.

    Attributes:
        stages: of each pass, the kernel of every level, "" where there is nothing to compute, and its products.
        flags: the constants that each kernel takes.
    """

    stages: tuple[list[Stage], list[Stage]]
    flags: dict[str, tuple[str, ...]]


def emit(program: Program, dtype: str, half: bool) -> StagedSource:
    """The source of a program that was planned with places that stay; `half` if matrices will be in bfloat16."""
    matrices: list[Matrix] = []
    widest = power(max(node.width for node in program.forward.depth))
    tiling = Tiling(1, min(widest, PIECE), 0, max(1, min(8, widest // CHANNELS)), 1)
    texts, signatures, stages, doubles = [], [], [], []
    outs: dict[str, Hashable] = {}
    flags: dict[str, tuple[str, ...]] = {}
    for name, plan in (("forward", program.forward), ("backward", program.backward)):
        signature, pass_stages, pass_doubles = Signature(), [], set[Hashable]()
        for number, level in enumerate(plan.levels if plan is not None else ()):
            assert plan is not None
            stage = _Stage(name, number, program, plan, matrices, dtype, tiling, signature, pass_doubles)
            text = stage.text()
            outs |= stage.outs
            for p in level.products:
                stage.matrix(p.matrix)
            pass_stages.append((stage.called if text else "", level.products))
            if text:
                texts.append(text)
                flags[stage.called] = ("SUBSTEPS", *stage.outs)
        signatures.append(signature)
        stages.append(pass_stages)
        doubles.append(frozenset(pass_doubles))
    whole = "\n\n".join([HEAD, *texts])
    backward = None if program.backward is None else signatures[1]
    both = (tiling, tiling), (1, 1), (doubles[0], doubles[1])
    return StagedSource(whole, signatures[0], backward, matrices, *both, outs, half, (stages[0], stages[1]), flags)


class _Stage(Values):
    """Writes the kernel of one level: what its stores and sums need, from what earlier kernels left in memory."""

    def __init__(
        self,
        name: str,
        number: int,
        program: Program,
        plan: Plan,
        matrices: list[Matrix],
        dtype: str,
        tiling: Tiling,
        signature: Signature,
        doubles: set[Hashable],
    ) -> None:
        super().__init__(name, program, plan, matrices, dtype, tiling)
        self.called, self.number_of_level = f"{name}_{number}", number
        self.last = number == len(plan.levels) - 1
        self.signature, self.doubles = signature, doubles

    def separable(self) -> bool:
        """Every program has all channels of its samples."""
        return False

    # Arguments: what may lie elsewhere at the next solve is read from the tables.

    def given(self, name: Hashable) -> str:
        """The name of a pointer."""
        i = self.signature.pointer(name)
        kind = "tl.float64" if name in self.doubles else self.real
        self.once(("p", i), self.top, f"p{i} = tl.load(pointers + {i}).to(tl.pointer_type({kind}))  # {said(name)}")
        return f"p{i}"

    def number(self, name: Hashable) -> str:
        """The name of an integer; the first of the table is the step."""
        i = self.signature.integer(name)
        self.once(("n", i), self.top, f"n{i} = tl.load(integers + {i + 1})  # {said(name)}")
        return f"n{i}"

    def first(self) -> str:
        """The first step of the chunk, which changes from launch to launch."""
        return self.number("first")

    def base(self, array: object) -> str:
        """The address of this step's first channel of an array, for each sample of the program."""
        if self.name == "forward" and array in ("state", "next"):
            return f"{'before' if array == 'state' else 'after'} + row * {self.ld}"
        if array in ("carry", "sent"):
            return f"{'before' if array == 'carry' else 'after'} + row * {self.ld}"
        return super().base(array)

    # Values

    def carried(self, node: Node) -> bool:
        """Nothing stays in registers."""
        return False

    def left(self, node: Node) -> Place | None:
        """Where an earlier kernel or product left a value."""
        if not node.batch or node.op == "leaf":
            return None
        homes = self.plan.homes.get(node, [])
        if node.op in ("mm", *OVER_CHANNELS):
            # Always made by what ran before this kernel.
            return homes[0] if homes else None
        backward = self.name == "backward"
        for place in homes:
            kind = array_kind(place.array)
            if kind in ("next", "saved") and backward:
                return place
            if kind in ("temp", "chunk", "next", "saved") and self.plan.depth[node] < self.number_of_level:
                return place
        return None

    def compute(self, node: Node, section: list[str]) -> None:
        """All pieces of a value."""
        place = None if node.op == "cat" else self.left(node)
        if place is None:
            super().compute(node, section)
        else:
            for start, size in self.cuts.of(node):
                address = f"{self.base(place.array)} + {place.offset + start} + {self.channels(size)}"
                self.define(node, start, self.load(address, size), section)
        if node.op == "leaf" and node.data[0] == "carry":
            self.arrived(node)

    def arrived(self, node: Node) -> None:
        """The gradient of an output joins that from the step after."""
        i = node.data[1]
        key = ("gout", i)
        self.outs[f"OUT{i}"] = key
        p, st, sb = self.given(key), self.number((*key, "time")), self.number((*key, "sample"))
        # Only at the end of an interval: elsewhere the mask lets no sample through.
        self.step.append(f"if OUT{i}:")
        for start, size in self.cuts.of(node):
            inside = self.inside(size)
            mask = f"(row < tl.where(fresh, batch, 0)){' & ' + inside if inside else ''}"
            address = f"{p} + at * {st} + row * {sb} + {start} + {self.channels(size)}"
            self.step.append(f"    {self.names[node, start]} += tl.load({address}, mask={mask}, other=0.0)")

    # Results

    def store(self, node: Node, place: Place) -> None:
        """Write a value where it is wanted; a new state among the states of all steps, too."""
        kind = array_kind(place.array)
        if node.op == "mm" and place in self.plan.homes.get(node, [])[:1] and kind == "temp":
            return
        for start, size in self.state_pieces() if self.whole(place) else self.cuts.of(node):
            text, shift = self.full(node, (start, size)), f"{place.offset + start} + {self.channels(size)}"
            address = f"{self.base(place.array)} + {shift}"
            if self.adds(place):
                # The steps of an interval share it; the last of them comes first.
                text = f"{text} + tl.where(fresh, 0.0, {self.load(address, size)})"
            self.step.append(f"tl.store({address}, {text}{self.mask(size)})")
            if kind == "next" and self.name == "forward":
                # A product reads the place that stays, the caller those of all steps.
                states = f"{self.given('states')} + ((s + 1) * batch + row) * {self.ld}"
                self.step.append(f"tl.store({states} + {shift}, {text}{self.mask(size)})")

    def sink(self, number: int, name: Hashable, node: Node) -> None:
        """Add to the gradient of what all steps share."""
        self.added(name, f"tl.program_id(0) * {node.width}", node)

    def drop(self, number: int, name: Hashable, node: Node, time: str) -> None:
        """Add to the gradient of what belongs to one step or interval."""
        count = self.number((*name, "count"))  # type: ignore[misc]
        self.added(name, f"(tl.program_id(0) * {count} + {time}) * {node.width}", node)

    def added(self, name: Hashable, shift: str, node: Node) -> None:
        """Add to numbers in memory that this program alone adds to."""
        p = self.double(name)
        for start, size in self.cuts.of(node):
            address = f"{p} + {shift} + {start}"
            mask = self.mask(size, batch=False)
            address += f" + {self.row_channels(size)}" if node.width > 1 else ""
            text = literal(node.data) if node.op == "const" else self.typed(node, start, size)
            self.step.append(f"tl.store({address}, tl.load({address}{mask}) + {text}{mask})")

    # The whole

    def text(self) -> str:
        """The kernel; empty where the level has nothing to compute."""
        level: Level = self.plan.levels[self.number_of_level]
        sums = [node for node in level.sums if node.op in OVER_CHANNELS and node.batch]
        ends = [node for _, node in (*self.plan.sinks, *self.plan.drops)] if self.last else []
        if not (sums or ends or level.stores):
            return ""
        # Whatever an earlier kernel left is read, and nothing behind it computed again.
        stop = {node for node in self.plan.depth if self.left(node) is not None} - set(sums)
        for node in ordered([*(node for node, _ in level.stores), *(node.args[0] for node in sums), *ends], stop):
            self.compute(node, self.step)
        for node in sums:
            place = self.plan.homes[node][0]
            address = f"{self.base(place.array)} + {place.offset}"
            self.step.append(f"tl.store({address}, {self.over_channels(node)}{self.mask(1)})")
        for node, place in level.stores:
            self.store(node, place)
        if self.last:
            self.endings()
        flags = "".join(f", {flag}: tl.constexpr" for flag in ("SUBSTEPS", *self.outs))
        sign = "-" if self.name == "backward" else "+"
        lines = [
            f"row = tl.program_id(0).to(tl.int64) * {self.tiling.rows} + tl.arange(0, {self.tiling.rows})[:, None]",
            "here = row < batch",
            f"s = tl.load(integers) {sign} k",
            "at = s // SUBSTEPS",
            "fresh = (s + 1) % SUBSTEPS == 0",
            *self.top,
            *self.step,
        ]
        head = f"def {self.called}(pointers, integers, before, after, k, batch{flags}):"
        return "\n".join(['@triton.jit(do_not_specialize=["k"])', head, *(f"    {line}" for line in lines), ""])
