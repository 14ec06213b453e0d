"""What writing out a plan is in every language: which argument an array lies in and where, leaves, operations, endings.

A writer of one language says how it spells an address, a number, a row and the adding up of a gradient; everything that
decides what is meant by them is here.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from solvers.compiled.passes.source import Signature
from solvers.compiled.step.ir import Matrix, Node
from solvers.compiled.step.ops import OPERATIONS
from solvers.compiled.step.plan import Place, Plan, Program, array_kind
from solvers.compiled.step.refused import Refused


@dataclass(frozen=True)
class Address:
    """Where the rows of an array lie in this step: `pointer + time * along + sample * across`.

    Attributes:
        pointer: the argument that holds it.
        time: which of its steps, as an expression in the loop's `s` and `at`; "" where one place serves all steps.
        along: from step to step; None for all samples of `across` numbers, else the name of an integer argument.
        across: from sample to sample, a number or the name of an integer argument.
    """

    pointer: Hashable
    time: str
    along: Hashable | None
    across: int | Hashable


class Writer:
    """Writes one of the two passes of a program.

    Args:
        name: "forward" or "backward".
        program: both passes.
        plan: the one to write.
        matrices: the packed matrices that both take, in the order they are first named.
        over: numbers of the saved values that lie by strides over time and samples, as the caller says.
    """

    #: The attribute of an `ops.Operation` that has its text.
    language: ClassVar[str]
    #: What the language is called in a message.
    title: ClassVar[str]

    def __init__(
        self, name: str, program: Program, plan: Plan, matrices: list[Matrix], over: Collection[int] = ()
    ) -> None:
        self.name, self.program, self.plan, self.matrices, self.over = name, program, plan, matrices, over
        self.signature = Signature()
        #: Numbers of a sample's state.
        self.ld = program.components * program.width

    # Where things lie

    def address(self, array: Any) -> Address:
        """Where an array lies that a caller or an earlier step fills."""
        kind = array_kind(array)
        if kind in ("state", "next"):
            return Address("states", "s" if kind == "state" else "s + 1", None, self.ld)
        if kind in ("step", "dstep") or (kind == "saved" and array[1] in self.over):
            time = "s" if kind == "saved" else self.time(array)
            return Address(array, time, (*array, "time"), (*array, "sample"))
        # A chunk holds the steps since `first`; what is only temporary has one place.
        time = f"s - {self.first()}" if kind == "chunk" else "s" if kind == "saved" else ""
        return Address(array, time, None, self.plan.widths[array])

    def time(self, key: Any) -> str:
        """The number of the step or, for what the steps of an interval share, of the interval."""
        return "s" if key[1] == ("start",) else "at"

    def first(self) -> str:
        """The first step of the chunk that a step belongs to."""
        return "first"

    def adds(self, place: Place) -> bool:
        """Whether a place is the gradient of an interval's leaf to which each of its steps adds."""
        return self.program.divided and array_kind(place.array) == "dstep" and place.array[1] != ("start",)

    def whole(self, place: Place) -> bool:
        """Whether a place is a whole component of the state, which a number or a column is repeated to fill."""
        return array_kind(place.array) in ("next", "sent") and place not in self.plan.parts

    def matrix(self, matrix: Matrix) -> int:
        """The number of a packed matrix."""
        if matrix not in self.matrices:
            self.matrices.append(matrix)
        return self.matrices.index(matrix)

    # Values

    def operation(self, node: Node, args: list[str], real: str = "real") -> str:
        """An operation of the table on expressions; `real` is the type of a number where one is named."""
        row = OPERATIONS.get(node.op)
        text: str = "" if row is None else getattr(row, self.language)
        if not text:
            known = f"{node.op!r} is not known to the emitter for {self.title}"
            raise Refused("it sums over the samples" if node.op == "opaque" else known)
        data = "" if node.data is None else self.literal(node.data)
        return text.format(*args, real=real, data=data)

    def literal(self, value: float) -> str:
        """A number."""
        raise NotImplementedError

    def shared_leaf(self, node: Node, *where: Any) -> str:
        """A leaf that all samples share; of a row, the channels that `where` says."""
        kind = node.data[0]
        if kind == "zeros":
            return self.zeros(node, *where)
        time = self.time(node.data) if kind == "step" else None
        return self.shared_number(node, time) if node.width == 1 else self.shared_row(node, time, *where)

    def zeros(self, node: Node, *where: Any) -> str:
        """A row of zeros."""
        raise NotImplementedError

    def shared_number(self, node: Node, time: str | None) -> str:
        """A number from outside; of the steps, the one at `time`."""
        raise NotImplementedError

    def shared_row(self, node: Node, time: str | None, *where: Any) -> str:
        """A row from outside; of the steps, the one at `time`."""
        raise NotImplementedError

    # Gradients of what is shared

    def endings(self) -> None:
        """Add this step's share to the gradients of what is shared by steps or samples."""
        for number, (key, node) in enumerate(self.plan.sinks):
            self.sink(number, ("sum", key), node)
        for number, (key, node) in enumerate(self.plan.drops):
            self.drop(number, ("drop", key), node, self.time(key))

    def sink(self, number: int, name: Hashable, node: Node) -> None:
        """Add to the gradient of what all steps share."""
        raise NotImplementedError

    def drop(self, number: int, name: Hashable, node: Node, time: str) -> None:
        """Add to the gradient of what belongs to one step, or to one interval, of all samples."""
        raise NotImplementedError
