"""A kernel run over a whole sequence, and back: one autograd function."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.base.leaves import Key
from solvers.compiled.passes import memory
from solvers.compiled.passes.arguments import (
    Arguments,
    Kernel,
    Prologue,
    alias,
    kept_arrays,
    like,
    pass_item,
    pass_kept,
)
from solvers.compiled.passes.call import Call
from solvers.compiled.step.columns import Item


def run(call: Call, state: Tensor) -> tuple[Tensor, ...]:
    """The components after every interval, and the last state."""
    results: tuple[Tensor, ...] = Run.apply(call, state.to(call.kernel.dtype), *call.tensors)  # type: ignore[no-untyped-call]
    return tuple(t.to(state.dtype) for t in results)


class Run(torch.autograd.Function):
    """The states of a loop: each component after each interval `(time, batch, hidden)`, and the last state."""

    @staticmethod
    def forward(ctx: Any, call: Call, state: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the forward pass; `tensors` are the items, the scalars and the uniform tensors of the kernel."""
        prologue = call.prologue(tensors)
        args = call.arguments(state, tensors, prologue)
        states, kept = _advanced(args, state, tensors)
        rows = states[call.substeps :: call.substeps]
        outs = tuple(alias(rows[:, :, i]) for i in range(state.shape[1]))
        end = states[-1].clone()
        if call.kernel.backward is not None:
            ctx.save_for_backward(state, *tensors, states, *kept, *outs)
            ctx.call, ctx.prologue, ctx.count, ctx.consumed = call, prologue, len(tensors), False
            ctx.set_materialize_grads(False)
        return (*outs, end)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of state, items, scalars and uniform tensors."""
        call = ctx.call
        state, *rest = ctx.saved_tensors
        tensors, states, kept = rest[: ctx.count], rest[ctx.count], rest[ctx.count + 1 : len(rest) - state.shape[1]]
        if torch.is_grad_enabled():
            # A gradient of the gradient is wanted: the plain path gives both.
            return (None, *call.plainly(state, tensors, grads))
        args = call.arguments(state, tensors, ctx.prologue)
        if ctx.consumed:
            # An earlier backward pass wrote over what was kept.
            states, kept = _advanced(args, state, tensors)
        ctx.consumed = bool(call.kernel.over)
        args.tensors["states"] = states
        pass_kept(args, kept)
        over = dict(zip(kept_arrays(call.kernel), kept, strict=True))
        pullback = Pullback(ctx.prologue, args, state, tensors, grads, over)
        pullback.run(args, 0, args.steps)
        return (None, *pullback.gradients())


def _advanced(args: Arguments, state: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The states after all steps, and what is kept besides."""
    kernel = args.kernel
    states = memory.empty((args.steps + 1, *state.shape), state.dtype, state.device)
    states[0] = state
    args.tensors["states"] = states
    kept = []
    for array in kept_arrays(kernel):
        if array[0] == "saved":
            shape = (args.steps, args.batch, kernel.program.saved[array[1]])
            kept.append(memory.empty(shape, state.dtype, state.device))
        else:
            item = next(i for i, item in enumerate(kernel.items) if item.key == array[1])
            kept.append(like(tensors[item]))
    pass_kept(args, kept)
    args.call(kernel.forward, kernel.source.forward, lambda part: {})
    return states, kept


class Pullback:
    """The backward pass of a call, over any stretches of its steps from the last one to the first.

    Args:
        args: the arguments of the whole call.
        grads: gradients of each component after every interval, and of the last state.
        over: what is already there for the gradients of items, by ("dstep", key, 0).
    """

    def __init__(
        self,
        prologue: Prologue,
        args: Arguments,
        state: Tensor,
        tensors: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        over: dict[Any, Tensor],
    ) -> None:
        self.prologue, self.args, self.kernel = prologue, args, args.kernel
        self.state, self.tensors = state, tensors
        self.carry = [torch.zeros_like(state, memory_format=torch.contiguous_format), state.new_empty(state.shape)]
        if grads[-1] is not None:
            self.carry[0].copy_(grads[-1])
        args.tensors["nothing"] = state.new_zeros(state.shape[2])
        for i, grad in enumerate(grads[:-1]):
            if grad is not None:
                grad = grad if grad.stride(-1) == 1 or grad.shape[-1] == 1 else grad.contiguous()
                args.tensors["gout", i] = grad
                args.strides["gout", i, "time"], args.strides["gout", i, "sample"] = grad.stride(0), grad.stride(1)
        self.steps = _step_gradients(self.kernel, args, tensors, over)
        parts = len(args.bounds())
        self.sums = _sums(self.kernel, args, parts, state.device)
        self.outers: dict[Any, Tensor] = {}
        backward = self.kernel.program.backward
        for i, outer in enumerate(backward.outers if backward is not None else ()):
            self.outers["outer", i] = state.new_zeros(parts, outer.matrix.rows, outer.matrix.columns)

    def run(self, args: Arguments, first: int, last: int, again: bool = False) -> None:
        """The backward pass of steps `first` to `last` - 1, which are all that `args` is about.

        `again`: they may be gone through more than once.
        """
        args.tensors["carry0"], args.tensors["carry1"] = self.carry
        # Where a stretch ends within an interval, the rest of that interval has added to its gradients before.
        shares = self._shares(args, again) if again or last % self.args.substeps else {}

        def own(part: int) -> dict[Hashable, Tensor]:
            sums = {name: tensor[part] for name, tensor in (*self.sums.items(), *self.outers.items())}
            for name in sums:
                if name[0] == "drop":
                    sums[name] = sums[name][self.args.rows(name[1][1], first, last)]
            return sums

        signature = self.kernel.source.backward
        assert signature is not None
        args.call(self.kernel.backward, signature, own)
        for name, whole in shares.items():
            whole += args.tensors[name]
        if args.steps % 2:
            # The two took turns at every step: what the next stretch starts from is in the other one.
            self.carry.reverse()

    def _shares(self, args: Arguments, starts: bool = False) -> dict[Hashable, Tensor]:
        """Give what other steps, or these before, have a part in already room of its own, and say where it is added."""
        shared: dict[Hashable, Tensor] = {}
        for name in self.args.tensors:
            if isinstance(name, tuple) and name[0] == "dstep" and (starts or name[1] != ("start",)):
                shared[name] = args.tensors[name]
                args.put(name, torch.zeros_like(shared[name]), batch=True)
        return shared

    def gradients(self) -> list[Tensor | None]:
        """The gradients of state, items, scalars and what the prologue takes."""
        kernel = self.kernel
        gradients: list[Tensor | None] = [self.carry[0]]
        for item, tensor in zip(kernel.items, self.tensors, strict=False):
            wanted = ("step", item.key) in kernel.wanted
            room = self.steps.get(item.key)
            gradients.append(None if not wanted else _dropped(self.sums, item, tensor) if room is None else room)
        for item in kernel.scalars:
            total = self.sums.get(("sum", ("whole", item.key, 0)))
            gradients.append(None if total is None else total.sum().to(self.state.dtype).reshape(item.shape))
        return gradients + _given_gradients(kernel, self.prologue, self.sums, self.outers)


def _step_gradients(
    kernel: Kernel, args: Arguments, tensors: Sequence[Tensor], over: dict[Any, Tensor]
) -> dict[Key, Tensor]:
    """Room for the gradients of what differs from interval to interval and from sample to sample."""
    gradients: dict[Key, Tensor] = {}
    for item, tensor in zip(kernel.items, tensors, strict=False):
        if ("step", item.key) not in kernel.wanted or not item.batch:
            continue
        room = over.get(("dstep", item.key, 0))
        # A new tensor: autograd may hand it on as it is.
        room = like(tensor) if room is None else alias(room)
        if not any(k[:2] == ("dstep", item.key) for k in kernel.source.backward.pointers if isinstance(k, tuple)):  # type: ignore[union-attr]
            room.zero_()
        gradients[item.key] = room
        pass_item(args, "dstep", item, room)
    return gradients


def _sums(kernel: Kernel, args: Arguments, parts: int, device: torch.device) -> dict[Hashable, Tensor]:
    """Rows and scalars that are added up, one for each thread."""
    backward = kernel.program.backward
    sums: dict[Hashable, Tensor] = {}
    assert backward is not None
    for key, node in backward.sinks:
        sums["sum", key] = torch.zeros(parts, node.width, dtype=torch.float64, device=device)
    for key, node in backward.drops:
        steps = args.steps if key[1] == ("start",) else args.steps // args.substeps
        sums["drop", key] = torch.zeros(parts, steps, node.width, dtype=torch.float64, device=device)
    return sums


def _dropped(sums: dict[Hashable, Tensor], item: Item, like: Tensor) -> Tensor:
    """The gradient of what differs from interval to interval but is shared by the samples."""
    parts = [total.sum(0) for key, total in sums.items() if key[0] == "drop" and key[1][:2] == ("step", item.key)]  # type: ignore[index]
    if not parts:
        return torch.zeros_like(like)
    return torch.stack(parts, 1).reshape(like.shape).to(like.dtype)


def _given_gradients(
    kernel: Kernel, prologue: Prologue, sums: dict[Hashable, Tensor], outers: dict[Hashable, Tensor]
) -> list[Tensor | None]:
    """The gradients of what the prologue takes, through the prologue."""
    grads = _uniform_gradients(kernel, prologue.results, sums, outers)
    pairs = [(t, g) for t, g in zip(prologue.results, grads, strict=True) if g is not None and t.requires_grad]
    wanted = [t for t in prologue.inputs if t.requires_grad]
    if not pairs:
        return [None] * len(prologue.inputs)
    results, cotangents = [t for t, _ in pairs], [g for _, g in pairs]
    gradients = torch.autograd.grad(results, wanted, cotangents, allow_unused=True, retain_graph=True)
    by_input = dict(zip(map(id, wanted), gradients, strict=True))
    return [by_input.get(id(t)) for t in prologue.inputs]


def _uniform_gradients(
    kernel: Kernel, uniform: list[Tensor], sums: dict[Hashable, Tensor], outers: dict[Hashable, Tensor]
) -> list[Tensor | None]:
    """The gradients of what the prologue gives, from the sums over steps and samples that each thread made."""
    assert kernel.program.backward is not None
    rows: dict[int, list[tuple[int, Tensor]]] = {}
    for key, value in sums.items():
        if key[0] == "sum" and key[1][0] == "uniform":  # type: ignore[index]
            rows.setdefault(key[1][1], []).append((key[1][2], value.sum(0)))  # type: ignore[index]
    parts: dict[int, list[Tensor]] = {}
    for k, outer in enumerate(kernel.program.backward.outers):
        whole = outers["outer", k].sum(0)
        for tile in outer.matrix.tiles:
            part = whole[tile.top : tile.top + tile.rows, tile.left : tile.left + tile.columns]
            parts.setdefault(tile.leaf[1], []).append(part.T if tile.transposed else part)  # type: ignore[index]
    gradients: list[Tensor | None] = []
    for i, tensor in enumerate(uniform):
        if ("uniform", i) not in kernel.wanted:
            gradients.append(None)
        elif tensor.dim() < 2 and [place for place, _ in rows.get(i, ())] == [0]:
            gradients.append(rows[i][0][1].to(tensor.dtype).view(tensor.shape))
        else:
            total = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
            flat = total.view(-1, total.shape[-1]) if total.dim() else total.view(1, 1)
            for place, row in rows.get(i, ()):
                flat[place] += row.to(total.dtype)
            for part in parts.get(i, ()):
                flat += part
            gradients.append(total)
    return gradients
