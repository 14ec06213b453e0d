"""Tensors in the order a kernel reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers.compiled.passes import memory
from solvers.compiled.passes.checked import Checked
from solvers.compiled.passes.source import Signature, Source
from solvers.compiled.step.columns import Item
from solvers.compiled.step.ir import Matrix
from solvers.compiled.step.plan import Program
from solvers.compiled.step.reuse import Overlays


@dataclass
class Kernel(Checked):
    """A compiled program.

    Attributes:
        program, source: what it was compiled from.
        items: the leaves that have a value for each interval, in the order in which they are passed.
        scalars: the leaves that are one number, likewise.
        dtype: of the state.
        wanted: leaves whose gradient the backward pass gives, as ("uniform", i), ("step", key) or ("whole", key).
        over: saved values that the gradient of an item is written over.
    """

    program: Program
    source: Source
    library: Any
    items: list[Item]
    scalars: list[Item]
    dtype: torch.dtype
    wanted: frozenset[Hashable]
    over: Overlays = field(default_factory=dict)
    #: Products in bfloat16.
    half: bool = False
    #: How it is run, where there are several ways.
    note: str = ""

    def __post_init__(self) -> None:
        self.forward = self.library.forward
        self.backward = self.library.backward if self.source.backward is not None else None

    def arguments(self, steps: int, substeps: int, state: Tensor) -> Arguments:
        """The arguments of one call, still to be filled."""
        raise NotImplementedError("each kind of kernel has arguments of its own")

    def matrix(self, whole: Tensor) -> Tensor:
        """A packed matrix as the kernel reads it."""
        return whole


@dataclass
class Arguments:
    """The tensors of one call, in the layout the kernel reads."""

    kernel: Kernel
    steps: int
    substeps: int
    batch: int
    dtype: torch.dtype
    tensors: dict[Hashable, Tensor]
    strides: dict[Hashable, int]

    def stretch(self, first: int, last: int) -> Arguments:
        """The arguments for steps `first` to `last` - 1 alone: whole intervals, or some steps of one."""
        sub, count, tensors = self.substeps, last - first, dict(self.tensors)
        goes_on = last % sub != 0
        for name, tensor in self.tensors.items():
            if isinstance(name, tuple) and name[0] in ("step", "dstep"):
                tensors[name] = tensor[self.rows(name[1], first, last)]
            elif isinstance(name, tuple) and name[0] == "gout":
                tensors[name] = tensor[self.rows(("span",), first, last)]
        if goes_on:
            # Nothing is given for a state within an interval.
            tensors = {name: t for name, t in tensors.items() if not (isinstance(name, tuple) and name[0] == "gout")}
        whole = first % sub == 0 and not goes_on
        # An interval that is longer than what is run of it does not end there.
        substeps = sub if whole else count + goes_on
        return dataclasses.replace(self, steps=count, substeps=substeps, tensors=tensors, strides=dict(self.strides))

    def rows(self, key: Hashable, first: int, last: int) -> slice:
        """Where an item has its values for some steps: starts have one for each, all else for each interval."""
        return slice(first, last) if key == ("start",) else slice(first // self.substeps, -(-last // self.substeps))

    def backwards(self) -> Arguments:
        """The arguments for the same steps in the opposite order."""
        turned = dataclasses.replace(self, tensors=dict(self.tensors), strides=dict(self.strides))
        for item in self.kernel.items:
            for name, tensor in self.tensors.items():
                if isinstance(name, tuple) and name[:2] == ("step", item.key):
                    turned.put(name, tensor.flip(0), item.batch)
        return turned

    def put(self, name: tuple[Hashable, ...], tensor: Tensor, batch: bool) -> None:
        """Pass a tensor `(time, ..)`, whose second axis may be the batch."""
        self.tensors[name] = tensor
        self.strides[(*name, "time")] = tensor.stride(0)
        self.strides[(*name, "sample")] = tensor.stride(1) if batch else 0

    def bounds(self) -> list[tuple[int, int]]:
        """The samples of each part of the batch that has sums of its own: of one thread or one program."""
        raise NotImplementedError("each kind of kernel says how it shares out a batch")

    def call(self, function: Any, signature: Signature, own: Callable[[int], dict[Hashable, Tensor]]) -> None:
        """Run a function over the whole batch; `own` gives what each part of it has for itself."""
        raise NotImplementedError("each kind of kernel says how it is called")


@dataclass
class Prologue:
    """What parameters alone decide.

    Attributes:
        inputs: what it was computed from, cut off from what that was computed from.
        results: the uniform tensors, with their graph where there will be a backward pass.
        passed: scalars, rows and matrices as the kernel reads them.
    """

    inputs: list[Tensor]
    results: list[Tensor]
    passed: dict[Hashable, Tensor]


def assembled(matrix: Matrix, uniform: list[Tensor]) -> Tensor:
    """A matrix put together."""
    like = uniform[matrix.tiles[0].leaf[1]]  # type: ignore[index]
    whole = like.new_zeros(matrix.rows, matrix.columns)
    for tile in matrix.tiles:
        part = uniform[tile.leaf[1]]  # type: ignore[index]
        part = part.T if tile.transposed else part
        whole[tile.top : tile.top + tile.rows, tile.left : tile.left + tile.columns] = part
    return whole


def kept_arrays(kernel: Kernel) -> list[Any]:
    """The arrays that hold what is saved: its own, or that of the gradient which will be written over it."""
    return list(dict.fromkeys(kernel.over.get(i, (("saved", i), 0))[0] for i in range(len(kernel.program.saved))))


def pass_kept(args: Arguments, kept: Sequence[Tensor]) -> None:
    """Pass each saved value where it lies in the arrays."""
    arrays = dict(zip(kept_arrays(args.kernel), kept, strict=True))
    for i, width in enumerate(args.kernel.program.saved):
        array, column = args.kernel.over.get(i, (("saved", i), 0))
        part = arrays[array][..., column : column + width]
        args.tensors["saved", i] = part
        args.strides["saved", i, "time"], args.strides["saved", i, "sample"] = part.stride(0), part.stride(1)


def alias(view: Tensor) -> Tensor:
    """The same memory as a tensor that is no view: autograd would not let a user change a view in place."""
    same = torch.empty(0, dtype=view.dtype, device=view.device)
    return same.set_(view.untyped_storage(), view.storage_offset(), view.shape, view.stride())


def like(tensor: Tensor) -> Tensor:
    """Room for as much, in the same order."""
    return memory.empty((tensor.numel(),), tensor.dtype, tensor.device).as_strided(tensor.shape, _dense(tensor))


def _dense(tensor: Tensor) -> tuple[int, ...]:
    """Strides in the order of a tensor's own, without gaps or repetition."""
    # Channels last whatever their stride, since kernels take no other.
    strided = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda d: (-strided[d], d))
    order = [d for d in order if d != tensor.dim() - 1] + [tensor.dim() - 1]
    strides, size = [0] * tensor.dim(), 1
    for d in reversed(order):
        strides[d] = size
        size *= tensor.shape[d]
    return tuple(strides)


def pass_item(args: Arguments, kind: str, item: Item, tensor: Tensor) -> None:
    """Pass each index of an item, all the axes between the batch and the channels, as an array of its own."""
    # An index is a number when the code is written, so what it chooses is an argument by itself.
    lead = 2 if item.batch else 1
    inner = tensor.shape[lead:-1] if tensor.dim() > lead else ()
    count = 1
    for n in inner:
        count *= n
    for index in range(count):
        part, rest = tensor, index
        for n in reversed(inner):
            part = part.select(-2, rest % n) if part.dim() > lead + 1 else part
            rest //= n
        args.put((kind, item.key, index), part, item.batch)
