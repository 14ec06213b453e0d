"""Running a Triton kernel over a sequence: the same arguments and the same autograd function as on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.compiled.passes.arguments import Arguments, Kernel
from solvers.compiled.passes.source import Signature
from solvers.compiled.step.columns import Item
from solvers.compiled.step.plan import Place, Plan, Program, array_kind
from solvers.compiled.step.refused import Refused
from solvers.compiled.triton import compiler
from solvers.compiled.triton.compiler import Target
from solvers.compiled.triton.emit_persistent import emit
from solvers.compiled.triton.tiling import GpuSource, Tiling

#: Bytes of the factors of matrix gradients that are kept at a time.
CHUNK = 1 << 28


@dataclass
class GpuKernel(Kernel):
    """A program as two Triton kernels."""

    source: GpuSource

    def arguments(self, steps: int, substeps: int, state: Tensor) -> Arguments:
        """The arguments of one call, still to be filled."""
        return GpuArguments(self, steps, substeps, state.shape[0], state.dtype, {}, {})

    def matrix(self, whole: Tensor) -> Tensor:
        """A packed matrix as the kernel reads it."""
        return whole.bfloat16() if self.half else whole


class GpuArguments(Arguments):
    """The tensors of one call, as a Triton kernel reads them."""

    kernel: GpuKernel

    def bounds(self) -> list[tuple[int, int]]:
        """All samples: the programs of a kernel share them."""
        return [(0, self.batch)]

    def call(self, function: Any, signature: Signature, own: Callable[[int], dict[Hashable, Tensor]]) -> None:
        """Run a kernel over all steps."""
        which = int(signature is self.kernel.source.backward)
        tiling = self.kernel.source.tilings[which]
        grid = (-(-self.batch // tiling.rows), self.kernel.source.tiles[which])
        state = self.tensors["states"]
        plan = self.kernel.program.backward if which else self.kernel.program.forward
        assert plan is not None
        tensors = dict(self.tensors)
        tensors |= self.temporaries(plan, state)
        if not which:
            self.launch(function, signature, tiling, grid, tensors, (0, self.steps))
            return
        # The kernel takes what flows back in one buffer and leaves it there.
        flowing = tensors["carry0"]
        chunk = self.chunk(sum(width for array, width in plan.widths.items() if array[0] == "chunk"))
        for array, width in plan.widths.items():
            if array[0] == "chunk":
                tensors[array] = state.new_empty(chunk, self.batch, width)
        mine = own(0)
        added, dropped = ([name for name in mine if _kind(name) == kind] for kind in ("sum", "drop"))
        # Every program adds to a slab of its own, in the order of the steps, so that sums come out the same every time;
        # atomic additions would not.
        slabs = {n: state.new_zeros(grid[0], *mine[n].shape, dtype=mine[n].dtype) for n in (*added, *dropped)}
        tensors.update(slabs)
        # From the end, as many steps at a time as there is memory for the factors of matrices' gradients.
        last = self.steps
        while last > 0:
            first = max(0, (last - 1) // chunk * chunk)
            self.launch(function, signature, tiling, grid, tensors, (first, last))
            for i, outer in enumerate(plan.outers):
                left = self.factor(tensors, outer.left, outer.matrix.rows, first, last)
                right = self.factor(tensors, outer.right, outer.matrix.columns, first, last)
                mine["outer", i].addmm_(left.T, right)
            for name in added:
                mine[name] += slabs[name].sum(0)
                # Kernels of one level each add to what is there.
                slabs[name].zero_()
            last = first
        for name in dropped:
            mine[name] += slabs[name].sum(0)
        self.tensors[f"carry{self.steps % 2}"].copy_(flowing)

    def temporaries(self, plan: Plan, state: Tensor) -> dict[Hashable, Tensor]:
        """Room for what goes through memory within a step."""
        widths = {array: width for array, width in plan.widths.items() if array[0] == "temp"}
        return {array: state.new_empty(self.batch, width) for array, width in widths.items()}

    def chunk(self, width: int) -> int:
        """Steps of one launch of the backward kernel: as many as the memory for matrix gradients lets, by intervals."""
        fit = CHUNK // max(1, self.batch * width * self.dtype.itemsize)
        return max(1, min(fit, self.steps) // self.substeps) * self.substeps

    def factor(self, tensors: dict[Hashable, Tensor], place: Place, width: int, first: int, last: int) -> Tensor:
        """One factor of the gradient of a matrix, `(steps · batch, width)`."""
        kind = array_kind(place.array)
        if kind not in ("state", "saved", "chunk"):
            raise Refused(f"the gradient of a matrix from {kind!r}")
        whole = tensors["states" if kind == "state" else place.array]
        whole = whole[: last - first] if kind == "chunk" else whole[first:last]
        return whole.flatten(2).flatten(0, 1)[:, place.offset : place.offset + width]

    def launch(
        self,
        function: Any,
        signature: Signature,
        tiling: Tiling,
        grid: tuple[int, int],
        tensors: dict[Hashable, Tensor],
        steps: tuple[int, int],
    ) -> None:
        """Start a kernel for some of the steps."""
        which = int(signature is self.kernel.source.backward)
        numbers = self.numbers(signature, tensors)
        # A gradient that was not given is not read, but its argument must be some address.
        nothing = tensors["states"]
        pointers = [tensors.get(name, nothing) for name in signature.pointers]
        integers = [numbers.get(name, 0) for name in signature.integers]
        flags = self.flags(which, tensors)

        def launch() -> None:
            function[grid](*pointers, *integers, *steps, self.batch, **flags, **compiler.options(tiling))

        self.guarded(launch)

    def numbers(self, signature: Signature, tensors: dict[Hashable, Tensor]) -> dict[Hashable, int]:
        """The strides that a kernel is given."""
        dropped = [name for name in signature.integers if isinstance(name, tuple) and name[0] == "drop"]
        return {**self.strides, **{name: tensors["drop", name[1]].shape[1] for name in dropped}}

    def flags(self, which: int, tensors: dict[Hashable, Tensor]) -> dict[str, Any]:
        """The constants of a pass: steps of an interval and, backward, which outputs have a gradient."""
        # Triton compiles a kernel for each set of them, and what is not given is not even asked for.
        outs = self.kernel.source.outs if which else {}
        return {"SUBSTEPS": self.substeps, **{flag: name in tensors for flag, name in outs.items()}}

    def guarded(self, run: Callable[[], None]) -> None:
        """Run kernels on the device of the call.

        Raises:
            Refused: they cannot be, and this is the first time.
        """
        try:
            # The interpreter computes with NumPy, which warns of what padding is divided by.
            with np.errstate(all="ignore"), torch.cuda.device_of(self.tensors["states"]):
                run()
        except Exception as error:
            # A kernel that has run before is not what fails now: memory, or another kernel's fault.
            if self.kernel.checked:
                raise
            said = next((line for line in str(error).splitlines() if line.strip()), "no message")
            raise Refused(f"Triton does not run it: {type(error).__name__}: {said}") from error


def _kind(name: Hashable) -> Hashable:
    return name[0] if isinstance(name, tuple) else name


def kernel(
    program: Program,
    target: Target,
    items: list[Item],
    scalars: list[Item],
    dtype: torch.dtype,
    wanted: frozenset[Hashable],
) -> GpuKernel:
    """The two kernels of a program.

    Raises:
        Refused: they cannot be made for the target.
    """
    name = str(dtype).removeprefix("torch.")
    plans = [program.forward] + ([program.backward] if program.backward is not None else [])
    chosen: list[Tiling] = []
    for which, plan in enumerate(plans):
        tried = compiler.tilings(plan, program, dtype.itemsize, target.precision)
        if target.arch and len(tried) > 1:
            # Each with the simplest of the other kernel: the two are compiled apart.
            pairs = [(tiling, tried[-1]) if which == 0 else (chosen[0], tiling) for tiling in tried]
            alone = program if which else replace(program, backward=None)
            sources = [emit(alone, name, target.precision, pair) for pair in pairs]
            tried = [tried[compiler.best(sources, which, target.arch, dtype)]]
        chosen.append(tried[0])
    source = emit(program, name, target.precision, (chosen[0], chosen[-1]))
    gpu_kernel = GpuKernel(program, source, compiler.module(source.text), items, scalars, dtype, wanted)
    gpu_kernel.half, gpu_kernel.slack = source.half, target.slack
    return gpu_kernel
