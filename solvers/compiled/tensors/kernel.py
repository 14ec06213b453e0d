"""The loop in pure torch: the same call and the same autograd function around functions that are Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from solvers.compiled.passes import denormals
from solvers.compiled.passes.arguments import Arguments, Kernel
from solvers.compiled.passes.maker import Maker
from solvers.compiled.passes.source import Signature
from solvers.compiled.step.columns import Item
from solvers.compiled.step.plan import Planned
from solvers.compiled.tensors.emit import emit, functions


class TorchArguments(Arguments):
    """Arguments by name, for the whole batch: threads are left to torch."""

    def bounds(self) -> list[tuple[int, int]]:
        """All samples."""
        return [(0, self.batch)]

    def call(self, function: Any, signature: Signature, own: Callable[[int], dict[Hashable, Tensor]]) -> None:
        """Run a function over the whole batch."""
        with denormals.flushed():
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


TORCH = Maker(lambda state: None, kernel)
