"""What makes a kernel of the plan of a step: C++, pure torch or Triton."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.compiled import build, gpu_build, gpu_stages, multiply, run_torch
from solvers.compiled.emit_cpu import emit
from solvers.compiled.inputs import Item
from solvers.compiled.overlay import overlays
from solvers.compiled.plan import Planned
from solvers.compiled.run import Kernel


@dataclass(frozen=True)
class Maker:
    """Makes kernels of one kind.

    Attributes:
        key: from the packed state to what a kernel depends on besides the program.
        make: from what plans the step, key, items, scalars, `working` dtype and gradients wanted to a kernel.
        begin: what can go on while a step is recorded.

    All of them refuse what they cannot take.
    """

    key: Callable[[Tensor], Any]
    make: Callable[[Planned, Any, list[Item], list[Item], torch.dtype, frozenset[Hashable]], Kernel]
    begin: Callable[[Tensor], None] = lambda state: None


def working(dtype: torch.dtype) -> torch.dtype:
    """The type a kernel computes in: a state of few significant bits would lose what a small step adds to it."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def _half(state: Tensor) -> bool:
    """Whether products are those of bfloat16: where they are asked for, and the processor has any."""
    return multiply.asked(state) == torch.bfloat16 and multiply.has_half()


def _cpp(
    plan: Planned,
    half: bool,
    items: list[Item],
    scalars: list[Item],
    dtype: torch.dtype,
    wanted: frozenset[Hashable],
) -> Kernel:
    program = plan()
    over = overlays(program, items)
    source = emit(program, "float" if dtype == torch.float32 else "double", over)
    multiply.gemm(dtype, half)
    return Kernel(program, source, build.library(source.text), items, scalars, dtype, wanted, over, half)


CPP = Maker(_half, _cpp, lambda state: multiply.prepare(working(state.dtype), _half(state)))
TORCH = Maker(lambda state: None, run_torch.kernel)
#: Takes tensors in main memory too, in Triton's interpreter.
TRITON = Maker(lambda state: gpu_build.target(state), gpu_stages.kernel)
