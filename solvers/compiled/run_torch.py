"""The loop in pure torch: the same call and the same autograd function around functions that are Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from solvers.compiled import build, kernel
from solvers.compiled.carried import Layout
from solvers.compiled.emit_cpu import Signature
from solvers.compiled.emit_torch import emit, functions
from solvers.compiled.inputs import Columns
from solvers.compiled.ir import Refused
from solvers.compiled.kernel import Call
from solvers.compiled.plan import program
from solvers.compiled.run import Arguments, Kernel
from solvers.statistics import Counted

if TYPE_CHECKING:
    from solvers.loop import Loop


class TorchArguments(Arguments):
    """Arguments by name, for the whole batch: threads are left to torch."""

    def bounds(self) -> list[tuple[int, int]]:
        """All samples."""
        return [(0, self.batch)]

    def call(self, function: Any, signature: Signature, own: Callable[[int], dict[Hashable, Tensor]]) -> None:
        """Run a function over the whole batch."""
        function({**self.tensors, **own(0)}, self.steps, self.substeps, self.batch)


class TorchKernel(Kernel):
    """A program as two functions on tensors."""

    def arguments(self, steps: int, substeps: int, state: Tensor) -> Arguments:
        """The arguments of one call, still to be filled."""
        return TorchArguments(self, steps, substeps, state.shape[0], state.dtype, {}, {})


def prepare(original: Any, loop: Loop, layout: Layout, state: Tensor) -> Call:
    """Like `kernel.prepare`, without a compiler.

    Raises:
        Refused: the loop cannot be taken.
    """
    bound = loop.field.field if isinstance(loop.field, Counted) else loop.field
    columns = Columns(loop, state.shape[0])
    with kernel._LOCK:
        entry = kernel._entry(original, loop, layout, state, columns)
        if entry.traced is None:
            raise Refused(entry.refused)
        tensors, items, scalars = kernel._tensors(entry.traced, bound, columns, state)
        wanted = kernel._wanted(entry.traced, state, tensors, items, scalars)
        key = ("torch", wanted, loop.substeps > 1)
        if key not in entry.kernels:
            try:
                plan = program(entry.traced, state.shape[2], wanted, loop.substeps > 1)
                source = emit(plan)
                forward, backward = functions(source)
                made: Any = SimpleNamespace(forward=forward, backward=backward)
                entry.kernels[key] = TorchKernel(plan, source, made, items, scalars, state.dtype, wanted or frozenset())
            except Refused as error:
                entry.kernels[key] = str(error)
        found = entry.kernels[key]
    if isinstance(found, str):
        raise Refused(found)
    return Call(found, entry.traced, loop, layout, tensors)


def missing() -> str:
    """What a compiled loop needs and is not there; empty when all of it is."""
    try:
        build.compiler()
        build.blas()
    except Refused as error:
        return str(error)
    return ""
