"""Which GPU kernels a step gets: persistent ones, or of one level each."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from solvers.compiled.passes.maker import Maker
from solvers.compiled.step.columns import Item
from solvers.compiled.step.plan import Planned
from solvers.compiled.step.refused import Refused
from solvers.compiled.triton import compiler, persistent
from solvers.compiled.triton.compiler import Target
from solvers.compiled.triton.emit_staged import emit
from solvers.compiled.triton.persistent import GpuKernel
from solvers.compiled.triton.staged import StagedKernel

#: Bytes of a matrix above which persistent kernels are not tried. Each of their programs reads it in every step, at
#: some 100 GB/s of cache bandwidth for each multiprocessor: 1 MiB takes 10 us, about what a step takes in the other
#: form. An estimate, not a measurement.
CACHED = 1 << 20


def kernel(
    plan: Planned,
    target: Target,
    items: list[Item],
    scalars: list[Item],
    dtype: torch.dtype,
    wanted: frozenset[Hashable],
) -> GpuKernel:
    """The kernels of a step: persistent ones, or of one level each where no persistent one fits or would be slower.

    Args:
        plan: gives the program.

    Raises:
        Refused: there are neither.
    """
    program = plan()
    passes = [p for p in (program.forward, program.backward) if p is not None]
    matrices = {p.matrix for each in passes for level in each.levels for p in level.products}
    half = target.precision == "bf16"
    read = (2 if half else dtype.itemsize) * max((m.rows * m.columns for m in matrices), default=0)
    if read > CACHED:
        why = f"its largest matrix has {read >> 10} KiB, which every program would read again in every step"
    else:
        try:
            return persistent.kernel(program, target, items, scalars, dtype, wanted)
        except Refused as error:
            why = str(error)
    program = plan(lasting=True)
    source = emit(program, str(dtype).removeprefix("torch."), half)
    staged_kernel = StagedKernel(program, source, compiler.module(source.text), items, scalars, dtype, wanted)
    staged_kernel.note, staged_kernel.half, staged_kernel.slack = (
        f"in kernels of one level each: {why}",
        half,
        target.slack,
    )
    return staged_kernel


#: Takes tensors in main memory too, in Triton's interpreter.
TRITON = Maker(lambda state: compiler.target(state), kernel)
