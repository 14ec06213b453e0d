"""How a Triton kernel names, finds and computes the values of a step: what all kinds of kernels have in common."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

from solvers.compiled.passes.writer import Writer
from solvers.compiled.step.ir import Matrix, Node
from solvers.compiled.step.ops import OPERATIONS, OVER_CHANNELS, PREDICATES
from solvers.compiled.step.plan import Plan, Program
from solvers.compiled.triton.pieces import Cuts, Piece
from solvers.compiled.triton.tiling import Tiling, literal, power, raised, separable

HEAD = """import triton
import triton.language as tl

from solvers.compiled.triton.math import atan, expm1, half_dot, larger, log1p, sigmoid, sign, smaller, tanh
"""


class Values(Writer):
    """Writes the values of a kernel, piece of channels by piece."""

    language = "triton"
    title = "GPUs"

    def __init__(
        self, name: str, program: Program, plan: Plan, matrices: list[Matrix], dtype: str, tiling: Tiling
    ) -> None:
        super().__init__(name, program, plan, matrices)
        self.real, self.tiling = f"tl.{dtype}", tiling
        #: Least width of a register tensor.
        self.least = 1
        self.split = self.separable()
        self.block = min(tiling.piece, power(program.width))
        self.tiles = -(-program.width // self.block) if self.split else 1
        # What a product adds to must be cut where its result is.
        added = [p.node for level in plan.levels for p in level.products if p.add]
        self.cuts = Cuts(plan.depth, self.looped(), added, program.width if self.split else tiling.piece)
        #: Lines at the top of the kernel, and those of a step.
        self.top: list[str] = []
        self.step: list[str] = []
        self.names: dict[tuple[Any, int], str] = {}
        self.declared: set[Any] = set()
        self.outs: dict[str, Hashable] = {}
        self.doubles: set[Hashable] = set()

    def separable(self) -> bool:
        """Whether programs share the channels out."""
        return separable(self.plan, self.program.width)

    def looped(self) -> list[Node]:
        """The components that stay in registers, before and after a step: cut alike, so that one becomes the other."""
        kind = "state" if self.name == "forward" else "carry"
        before = [node for node in self.plan.depth if node.op == "leaf" and node.data[0] == kind]
        stores = [pair for level in self.plan.levels for pair in level.stores]
        return before + [node for node, place in stores if place.array in ("next", "sent")]

    # Arguments and addresses

    def given(self, name: Hashable) -> str:
        """The name of a pointer argument."""
        return f"p{self.signature.pointer(name)}"

    def double(self, name: Hashable) -> str:
        """The name of a pointer to double precision."""
        self.doubles.add(name)
        return self.given(name)

    def number(self, name: Hashable) -> str:
        """The name of an integer argument."""
        return f"n{self.signature.integer(name)}"

    def once(self, key: Any, section: list[str], *lines: str) -> None:
        """Lines that are written once."""
        if key not in self.declared:
            self.declared.add(key)
            section.extend(lines)

    def padded(self, size: int) -> int:
        """Width of the tensor that holds a piece."""
        if size == 1:
            return 1
        return self.block if self.split else max(self.least, power(size))

    def channels(self, size: int) -> str:
        """Name of the channels within a piece, `(1, padded)`."""
        if size == 1:
            return "0"
        p = self.padded(size)
        shift = f"tl.program_id(1) * {p} + " if self.split else ""
        self.once(("channels", p), self.top, f"j{p} = {shift}tl.arange(0, {p})[None, :]")
        return f"j{p}"

    def inside(self, size: int) -> str:
        """Which channels of the tensor are of the piece; empty where all are."""
        if size == 1 or (self.padded(size) == size and not self.split):
            return ""
        # Every program of the second axis has a whole block.
        if self.split and size % self.block == 0:
            return ""
        return f"({self.channels(size)} < {size})"

    def mask(self, size: int, batch: bool = True) -> str:
        """Arguments of a load or store that leave out what is not there."""
        parts = [*(["here"] if batch else []), *([self.inside(size)] if self.inside(size) else [])]
        return f", mask={' & '.join(parts)}" if parts else ""

    def load(self, address: str, size: int, batch: bool = True) -> str:
        """The values at an address; zeros where none are."""
        mask = self.mask(size, batch)
        return f"tl.load({address}{mask}{', other=0.0' if mask else ''})"

    def base(self, array: Any) -> str:
        """The address of this step's first channel of an array, for each sample of the program."""
        where = self.address(array)
        p = self.given(where.pointer)
        if where.along is not None:
            along, across = self.number(where.along), self.number(where.across)
            return f"{p} + {where.time} * {along} + row * {across}"
        shift = f"(({where.time}) * batch + row)" if where.time else "row"
        return f"{p} + {shift} * {where.across}"

    # Values

    def value(self, node: Node, start: int) -> str:
        """The name of a piece of a value."""
        node, start = self.source(node, start)
        return self.literal(node.data) if node.op == "const" else self.names[node, start if node.width > 1 else 0]

    def source(self, node: Node, start: int) -> tuple[Node, int]:
        """The value, and the channel of it, that a piece of a slice or of parts beside each other is."""
        while node.op in ("slice", "cat") and (node, start) not in self.names:
            if node.op == "slice":
                node, start = node.args[0], node.data[0] + start
                continue
            at = 0
            for part in node.args:
                if at <= start < at + part.width:
                    node, start = part, start - at
                    break
                at += part.width
        return node, start

    def operand(self, node: Node, start: int, tensor: bool) -> str:
        """An argument of a pointwise function; numbers are doubles until they meet a tensor."""
        node, start = self.source(node, start)
        name = self.value(node, start)
        if node.op == "const":
            return name
        if node.scalar and tensor and node.op not in PREDICATES:
            return f"{name}.to({self.real})"
        return name

    def full(self, node: Node, piece: Piece) -> str:
        """A piece of a value as a tensor of all samples and channels."""
        text = self.operand(node, piece[0], True)
        node, _ = self.source(node, piece[0])
        if node.batch and (node.width > 1 or piece[1] == 1):
            return text
        return f"(tl.zeros([{self.tiling.rows}, {self.padded(piece[1])}], {self.real}) + {text})"

    def clean(self, name: str, size: int, empty: str = "0.0") -> str:
        """A piece with zeros, or what `empty` says, in the channels that are not there."""
        return f"tl.where({self.inside(size)}, {name}, {empty})" if self.inside(size) else name

    def define(self, node: Node, start: int, text: str, section: list[str]) -> None:
        """Give a piece of a value its name."""
        kind = "v" if node.batch else "r" if node.width > 1 else "s"
        name = f"{kind}{node.number}" + (f"_{start}" if node.width > 1 else "")
        self.names[node, start] = name
        section.append(f"{name} = {text}")

    def compute(self, node: Node, section: list[str]) -> None:
        """All pieces of a value that is no product."""
        home = self.plan.homes.get(node)
        known = home and node.batch and (node.op == "leaf" or home[0].array == "next" or home[0].array[0] == "saved")
        known = known and (self.name == "backward" or node.op == "leaf")
        if node.op == "slice" and node.scalar:
            # One channel of a row is a number like any other.
            self.define(node, 0, f"tl.sum({self.value(node.args[0], node.data[0])}.to(tl.float64))", section)
        if node.op == "const" or (node.op in ("cat", "slice", "mm") and not known):
            return
        # What was stored is loaded rather than computed again in the backward pass; forward it is still in registers.
        for start, size in self.cuts.of(node):
            if node.op == "leaf" and node.data[0] in ("state", "carry") and self.carried(node):
                name = f"{node.data[0]}{node.data[1]}_{start}"
                self.names[node, start] = name
            elif known and home:
                address = f"{self.base(home[0].array)} + {home[0].offset + start} + {self.channels(size)}"
                self.define(node, start, self.load(address, size), section)
            elif node.op == "leaf":
                self.define(node, start, self.shared_leaf(node, start, size), section)
            elif node.op in OVER_CHANNELS:
                self.define(node, start, self.over_channels(node), section)
            elif node.op == "bsum":
                self.define(node, start, self.sample_sum(node, start), section)
            else:
                self.define(node, start, self.function(node, start), section)

    def carried(self, node: Node) -> bool:
        """Whether a state or its gradient stays in registers from step to step."""
        raise NotImplementedError

    def literal(self, value: float) -> str:
        """A number as Python writes it."""
        return literal(value)

    def zeros(self, node: Node, *where: Any) -> str:
        """A piece of a row of zeros."""
        return f"tl.zeros([1, {self.padded(where[1])}], {self.real})"

    def shared_number(self, node: Node, time: str | None) -> str:
        """A number from outside, which stays in double precision."""
        return f"tl.load({self.double(node.data)}{f' + {time}' if time else ''})"

    def shared_row(self, node: Node, time: str | None, *where: Any) -> str:
        """A piece of a row from outside."""
        start, size = where
        shift = f" + {time} * {self.number((*node.data, 'time'))}" if time else ""
        return self.load(f"{self.given(node.data)}{shift} + {start} + {self.channels(size)}", size, batch=False)

    def over_channels(self, node: Node) -> str:
        """The sum or the largest of all pieces: for each sample, or of a row."""
        (x,) = node.args
        whole: list[str] = []
        for start, size in self.cuts.of(x):
            name = self.value(x, start)
            # What is not there must not change the result.
            name = self.clean(name, size, "0.0" if node.op == "csum" else 'float("-inf")')
            if not x.batch:
                name = f"{name}.to(tl.float64)"
                whole.append(f"tl.sum({name})" if node.op == "csum" else f"tl.reduce(tl.ravel({name}), 0, larger)")
            elif size == 1:
                whole.append(name)
            else:
                one = f"tl.sum({name}, 1)" if node.op == "csum" else f"tl.reduce({name}, 1, larger)"
                whole.append(f"{one}[:, None]")
        if node.op == "csum":
            return " + ".join(whole)
        return functools.reduce(lambda a, b: f"larger({a}, {b})", whole)

    def sample_sum(self, node: Node, start: int) -> str:
        """The sum over the samples of a program."""
        x = node.args[0]
        kept = f"tl.where(here, {self.value(x, start)}, 0.0)"
        return f"tl.sum({kept}, 0)[None, :]" if node.width > 1 else f"tl.sum({kept}.to(tl.float64))"

    def function(self, node: Node, start: int) -> str:
        """One operation."""
        tensor = not node.scalar
        args = [self.operand(a, start if a.width > 1 else 0, tensor) for a in node.args]
        if node.op == "stop":
            return args[0]
        if node.op == "pow":
            return raised(args[0], node.data)
        alike = node.op in OPERATIONS and OPERATIONS[node.op].alike
        if alike or all(a.op == "const" for a in node.args):
            # Left to itself Triton would take a number for one of single precision.
            kind = self.real if tensor else "tl.float64"
            args = [
                f"tl.full([], {text}, {kind})" if a.op == "const" else text
                for a, text in zip(node.args, args, strict=True)
            ]
        return self.operation(node, args)

    # What a value is stored as

    def state_pieces(self) -> list[Piece]:
        """The pieces of a component of the state."""
        width = self.program.width
        like = next((node for node in self.looped() if node.width == width), None)
        if like is not None:
            return self.cuts.of(like)
        return [(at, min(self.cuts.largest, width - at)) for at in range(0, width, self.cuts.largest)]

    def shared_type(self, node: Node, size: int) -> tuple[str, str]:
        """Shape and type of what all samples share."""
        return ("[]", "tl.float64") if node.width == 1 else (f"[1, {self.padded(size)}]", self.real)

    def typed(self, node: Node, start: int, size: int) -> str:
        """A row or a scalar in the type it is added up in."""
        text = self.operand(node, start, node.width > 1)
        if node.op == "const":
            return text
        if node.width > 1 and size == 1:
            return f"tl.zeros([1, 1], {self.real}) + {text}"
        return text if node.width > 1 else f"{text}.to(tl.float64)"

    def row_channels(self, size: int) -> str:
        """The channels of a row, as a tensor also where there is one."""
        return "tl.zeros([1, 1], tl.int32)" if size == 1 else self.channels(size)
