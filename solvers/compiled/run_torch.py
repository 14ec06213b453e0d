"""The loop in pure torch: the same call and the same autograd function around functions that are Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from solvers.compiled import build
from solvers.compiled.emit_cpu import Signature
from solvers.compiled.emit_torch import emit, functions
from solvers.compiled.inputs import Item
from solvers.compiled.ir import Refused
from solvers.compiled.plan import Planned
from solvers.compiled.run import Arguments, Kernel


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


def kernel(
    plan: Planned,
    key: Hashable,
    items: list[Item],
    scalars: list[Item],
    dtype: torch.dtype,
    wanted: frozenset[Hashable],
) -> TorchKernel:
    """The two functions of a program.

    Raises:
        Refused: they cannot be written in torch.
    """
    program = plan()
    source = emit(program)
    forward, backward = functions(source)
    return TorchKernel(
        program, source, SimpleNamespace(forward=forward, backward=backward), items, scalars, dtype, wanted
    )


def missing() -> str:
    """What a compiled loop needs and is not there; empty when all of it is."""
    try:
        build.compiler()
        build.blas()
    except Refused as error:
        return str(error)
    return ""
