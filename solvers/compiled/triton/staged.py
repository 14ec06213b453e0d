"""Running a step as kernels of one level each with the device's own products between them, replayed as CUDA graphs."""

from __future__ import annotations

import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers.compiled.passes.arguments import Arguments
from solvers.compiled.passes.source import Signature
from solvers.compiled.step.plan import Place, Plan
from solvers.compiled.triton import compiler
from solvers.compiled.triton.compiler import Report
from solvers.compiled.triton.emit_staged import StagedSource
from solvers.compiled.triton.persistent import GpuArguments, GpuKernel
from solvers.compiled.triton.tiling import Tiling

#: Steps of the longest graph. An even number: after that many, the state is where it was at first.
GRAPH = 64
#: Batch sizes whose graphs are kept, of each pass of a kernel.
KEPT = 8


@dataclass
class StagedKernel(GpuKernel):
    """A program as some kernels and products a step."""

    source: StagedSource
    works: tuple[OrderedDict[Hashable, Work], OrderedDict[Hashable, Work]] = field(
        default_factory=lambda: (OrderedDict(), OrderedDict())
    )

    def __post_init__(self) -> None:
        self.forward, self.backward = 0, None if self.source.backward is None else 1

    def arguments(self, steps: int, substeps: int, state: Tensor) -> Arguments:
        """The arguments of one call, still to be filled."""
        return StagedArguments(self, steps, substeps, state.shape[0], state.dtype, {}, {})

    def work(self, which: int, state: Tensor) -> Work:
        """The room for one pass over so many samples, kept for the next call."""
        stream = torch.cuda.current_stream(state.device).cuda_stream if state.is_cuda else 0
        key = (state.shape[0], state.device, stream)
        works = self.works[which]
        if key not in works:
            works[key] = Work(self, which, state)
        works.move_to_end(key)
        while len(works) > KEPT:
            works.popitem(last=False)
        return works[key]


class StagedArguments(GpuArguments):
    """The tensors of one call."""

    kernel: StagedKernel

    def launch(
        self,
        function: Any,
        signature: Signature,
        tiling: Tiling,
        grid: tuple[int, int],
        tensors: dict[Hashable, Tensor],
        steps: tuple[int, int],
    ) -> None:
        """Take some of the steps."""
        (first, last), backward = steps, bool(function)
        start = tensors["carry0"] if backward else tensors["states"][first]
        work = self.kernel.work(function, start)
        # Its places hold one call at a time.
        with work.lock:
            numbers = {**self.numbers(signature, tensors), "first": first}
            work.fill(start, tensors, numbers, last if backward else first)
            self.guarded(functools.partial(work.run, last - first, self.flags(function, tensors)))
            if backward:
                # Where the next chunk of steps begins, and where the caller looks for the gradient of the state.
                start.copy_(work.pair[(last - first) % 2])

    def temporaries(self, plan: Plan, state: Tensor) -> dict[Hashable, Tensor]:
        """None: they are among the places that stay."""
        return {}


class Work:
    """Places that stay, for one pass over a number of samples, and the graphs recorded with them.

    Attributes:
        pair: the state, or the gradient that flows back, before and after a step, in turn.
    """

    def __init__(self, kernel: StagedKernel, which: int, start: Tensor) -> None:
        self.kernel, self.which, self.batch = kernel, which, start.shape[0]
        source, program = kernel.source, kernel.program
        plan = program.backward if which else program.forward
        signature = source.backward if which else source.forward
        assert plan is not None and signature is not None
        # What a graph has recorded are addresses: all that its kernels and products name directly stays where it is.
        self.pair = [torch.empty_like(start, memory_format=torch.contiguous_format) for _ in range(2)]
        widths = {array: width for array, width in plan.widths.items() if array[0] == "temp"}
        self.temps = {array: start.new_empty(self.batch, width) for array, width in widths.items()}
        numbers = {matrix: i for i, matrix in enumerate(source.matrices)}
        used = {p.matrix: numbers[p.matrix] for _, products in source.stages[which] for p in products}
        kind = torch.bfloat16 if kernel.half else start.dtype
        self.matrices = {matrix: start.new_empty(matrix.rows, matrix.columns, dtype=kind) for matrix in used}
        self.packed: dict[Any, Hashable] = {matrix: ("matrix", i) for matrix, i in used.items()}
        self.signature = signature
        self.pointers = torch.zeros(max(1, len(signature.pointers)), dtype=torch.int64, device=start.device)
        self.integers = torch.zeros(1 + len(signature.integers), dtype=torch.int64, device=start.device)
        self.graphs: dict[Hashable, Callable[[], None] | None] = {}
        self.lock = threading.Lock()

    def fill(self, start: Tensor, tensors: dict[Hashable, Tensor], numbers: dict[Hashable, int], step: int) -> None:
        """What one call brings along: the state, matrices, where its tensors lie, and the step to begin with."""
        self.pair[0].copy_(start)
        for matrix, name in self.packed.items():
            self.matrices[matrix].copy_(tensors[name])
        own = {**tensors, **self.temps}
        addresses = [own[name].data_ptr() if name in own else 0 for name in self.signature.pointers]
        counts = [step, *(numbers.get(name, 0) for name in self.signature.integers)]
        self.pointers[: len(addresses)] = torch.tensor(addresses, dtype=torch.int64)
        self.integers.copy_(torch.tensor(counts, dtype=torch.int64))

    def run(self, count: int, flags: dict[str, Any]) -> None:
        """Take so many steps, as many of them at a time as a graph has."""
        for done in range(0, count, GRAPH):
            self.replayed(min(GRAPH, count - done), flags)

    def replayed(self, count: int, flags: dict[str, Any]) -> None:
        """Some steps: one by one at first, which compiles the kernels, then recorded, and replayed ever after."""
        # A graph is of one length; most are of the longest, and the rest of a sequence has one of its own.
        key = (count, *flags.values())
        if key not in self.graphs:
            # Nothing may be compiled while a graph is recorded.
            self.graphs[key] = None
            self.steps(count, flags)
            return
        graph = self.graphs[key]
        if graph is None:
            graph = self.graphs[key] = self.recorded(count, flags)
        graph()

    def recorded(self, count: int, flags: dict[str, Any]) -> Callable[[], None]:
        """What takes the steps again."""
        again = functools.partial(self.steps, count, flags)
        if not self.pointers.is_cuda:
            return again
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                again()
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            warnings.warn(f"no CUDA graph could be recorded ({said}): steps are launched one by one", stacklevel=2)
            return again
        return graph.replay

    def steps(self, count: int, flags: dict[str, Any]) -> None:
        """Launch every kernel and product of some steps."""
        source, module = self.kernel.source, self.kernel.library
        stages, backward = source.stages[self.which], self.which
        options = compiler.options(source.tilings[self.which])
        grid = (-(-self.batch // source.tilings[self.which].rows),)
        for k in range(count):
            before, after = self.pair[k % 2], self.pair[1 - k % 2]
            for name, products in stages:
                if name:
                    known = {flag: flags[flag] for flag in source.flags[name]}
                    kernel = getattr(module, name)[grid]
                    kernel(self.pointers, self.integers, before, after, k + backward, self.batch, **known, **options)
                for p in products:
                    x = self.place(p.operand, p.matrix.rows, before, after)
                    out = self.place(p.result, p.matrix.columns, before, after)
                    self.product(x, self.matrices[p.matrix], out, p.add)
        # On the device and part of the graph: the next replay goes on from there.
        self.integers[:1].add_(-count if backward else count)

    def product(self, x: Tensor, matrix: Tensor, out: Tensor, add: bool) -> None:
        """One product, or what it adds; in bfloat16 its result is rounded, as under autocast."""
        if self.kernel.half:
            result = torch.mm(x.bfloat16(), matrix)
            out.add_(result) if add else out.copy_(result)
        elif add:
            out.addmm_(x, matrix)
        else:
            torch.mm(x, matrix, out=out)

    def place(self, place: Place, width: int, before: Tensor, after: Tensor) -> Tensor:
        """Columns of an array that stays."""
        kept = {"state": before, "carry": before, "next": after, "sent": after}
        whole = kept[place.array].flatten(1) if place.array in kept else self.temps[place.array]
        return whole[:, place.offset : place.offset + width]


def reports(source: StagedSource, arch: int, dtype: torch.dtype) -> dict[str, Report]:
    """What every kernel takes on an architecture; no GPU is needed.

    Raises:
        Refused: one does not compile, with Triton's reason.
    """
    real = "*fp32" if dtype == torch.float32 else "*fp64"
    types = {"pointers": "*i64", "integers": "*i64", "before": real, "after": real, "k": "i32", "batch": "i32"}
    found = {}
    for name, flags in source.flags.items():
        function = getattr(compiler.module(source.text), name)
        values: dict[str, Any] = {flag: 1 if flag == "SUBSTEPS" else True for flag in flags}
        found[name] = compiler.taken(
            function, types | dict.fromkeys(flags, "constexpr"), values, {}, source.tilings[0], arch
        )
    return found
