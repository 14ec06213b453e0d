"""A step as two C++ functions, called over a sequence on several threads."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from solvers.compiled.cpp import compiler, gemm, noise
from solvers.compiled.cpp.emit import emit
from solvers.compiled.passes import denormals, precision
from solvers.compiled.passes.arguments import Arguments, Kernel
from solvers.compiled.passes.maker import Maker
from solvers.compiled.passes.source import Signature
from solvers.compiled.step.columns import Item
from solvers.compiled.step.plan import Planned
from solvers.compiled.step.reuse import overlays
from solvers.methods import increments


class CppKernel(Kernel):
    """A program compiled to machine code."""

    def arguments(self, steps: int, substeps: int, state: Tensor) -> Arguments:
        """The arguments of one call, still to be filled."""
        return CppArguments(self, steps, substeps, state.shape[0], state.dtype, {}, {})

    def matrix(self, whole: Tensor) -> Tensor:
        """A packed matrix as the kernel reads it."""
        return gemm.halved(whole) if self.half else whole


class CppArguments(Arguments):
    """Addresses and numbers in the order of a signature, for the samples of each thread."""

    def bounds(self) -> list[tuple[int, int]]:
        """The samples of each thread."""
        parts = min(torch.get_num_threads(), self.batch)
        if not self.threaded() or self.small():
            parts = 1
        edges = [self.batch * i // parts for i in range(parts + 1)]
        return list(itertools.pairwise(edges))

    def threaded(self) -> bool:
        """Whether there is what runs several threads and keeps products from having more of them."""
        return {"MKL_Set_Num_Threads_Local", "GOMP_parallel"} <= set(compiler.blas())

    def small(self) -> bool:
        """Whether it is less than several threads are worth."""
        program = self.kernel.program
        return self.batch * program.components * program.width * self.steps < 20_000

    def shares_products(self) -> bool:
        """Whether a function that runs alone has the library share out its products: where they are large, and its."""
        return not (self.small() or self.kernel.half or gemm.own())

    def call(self, function: Any, signature: Signature, own: Callable[[int], dict[Hashable, Tensor]]) -> None:
        """Run a function over the whole batch; `own` gives what each thread has for itself."""
        bounds = self.bounds()
        largest = max(b - a for a, b in bounds)
        chunk = max(1, min(self.steps, -(-512 // largest), 1024))
        blas, product = compiler.blas(), gemm.gemm(self.dtype, self.kernel.half)
        integers, pointers = [], []
        for part, (first, last) in enumerate(bounds):
            numbers = dict(self.strides)
            numbers.update({"steps": self.steps, "batch": self.batch, "b0": first, "b1": last})
            numbers.update({"chunk": chunk, "substeps": self.substeps, "flush": denormals.flushing()})
            mine = own(part)
            addresses = []
            for name in signature.pointers:
                tensor = mine.get(name, self.tensors.get(name))
                addresses.append(product if name == "gemm" else 0 if tensor is None else tensor.data_ptr())
            integers.append(
                (ctypes.c_int64 * len(signature.integers))(*(numbers.get(n, 0) for n in signature.integers))
            )
            pointers.append((ctypes.c_void_p * len(addresses))(*addresses))
        if len(bounds) == 1 and (self.shares_products() or not self.threaded()):
            # Products may be shared out to threads of the library, which the function itself does not reach.
            with denormals.flushed():
                function(integers[0], pointers[0])
            return
        rows = [(ctypes.c_void_p * len(bounds))(*map(ctypes.addressof, arrays)) for arrays in (integers, pointers)]
        parallel, alone = (ctypes.c_void_p(blas[name]) for name in ("GOMP_parallel", "MKL_Set_Num_Threads_Local"))
        self.kernel.library.launch(parallel, alone, function, ctypes.c_int64(len(bounds)), *rows)


def _half(state: Tensor) -> bool:
    """Whether products are those of bfloat16: where they are asked for, and the processor has any."""
    return precision.asked(state) == torch.bfloat16 and gemm.has_half()


def kernel(
    plan: Planned,
    half: bool,
    items: list[Item],
    scalars: list[Item],
    dtype: torch.dtype,
    wanted: frozenset[Hashable],
) -> CppKernel:
    """The two functions of a program.

    Raises:
        Refused: they cannot be written, or there is no compiler.
    """
    program = plan()
    over = overlays(program, items)
    source = emit(program, "float" if dtype == torch.float32 else "double", over)
    gemm.gemm(dtype, half)
    functions = ("forward", *(["backward"] if source.backward is not None else []))
    library = compiler.library(source.text, *functions)
    return CppKernel(program, source, library, items, scalars, dtype, wanted, over, half)


CPP = Maker(_half, kernel, lambda state: gemm.compile_ahead(precision.working(state.dtype), _half(state)))

# Noise is drawn on every path, and the methods that ask for it know no compiler.
increments.FASTER.append(noise.draw)
