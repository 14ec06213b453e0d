"""Checkpointing in the fast loop: the states between segments are kept, the rest is computed again."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.compiled import memory
from solvers.compiled.run import Arguments, Pullback, alias


class Segmented(torch.autograd.Function):
    """As `run.Run`, with the memory of one segment at a time above what is returned."""

    @staticmethod
    def forward(
        ctx: Any, call: Any, edges: Sequence[int], kept: Sequence[int], state: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """The components in `kept` after every interval, and the last state; segments end at the `edges`."""
        prologue, sub = call.prologue(tensors), call.substeps
        args = call.arguments(state, tensors, prologue)
        states = _Segment(args, edges, state)
        starts = memory.empty((len(edges) - 1, *state.shape), state.dtype, state.device)
        shape = (len(kept), len(call.loop), state.shape[0], state.shape[2])
        outs = memory.empty(shape, state.dtype, state.device)
        carried = state
        for k, (first, last) in enumerate(itertools.pairwise(edges)):
            starts[k] = carried
            _, reached = states.advanced(first, last, carried)
            for out, component in zip(outs, kept, strict=True):
                out[first:last] = reached[sub::sub, :, component]
            carried = reached[-1]
        ctx.save_for_backward(state, *tensors, starts)
        ctx.call, ctx.prologue, ctx.edges, ctx.kept = call, prologue, edges, kept
        ctx.set_materialize_grads(False)
        return (*(alias(out) for out in outs), carried.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of state, items, scalars and uniform tensors."""
        call, edges = ctx.call, ctx.edges
        state, *tensors, starts = ctx.saved_tensors
        by_component = dict(zip(ctx.kept, grads, strict=False))
        given = [*(by_component.get(i) for i in range(state.shape[1])), grads[-1]]
        if torch.is_grad_enabled():
            # A gradient of the gradient is wanted: the plain path gives both.
            return (None, None, None, *call.plainly(state, tensors, given))
        args = call.arguments(state, tensors, ctx.prologue)
        pullback = Pullback(ctx.prologue, args, state, tensors, given, {})
        states = _Segment(args, edges, state)
        for k, (first, last) in reversed(list(enumerate(itertools.pairwise(edges)))):
            stretch, _ = states.advanced(first, last, starts[k])
            pullback.run(stretch, first, last)
        return (None, None, None, *pullback.gradients())


class _Segment:
    """Room for the states and the saved values of the longest segment, used by all of them in turn."""

    def __init__(self, args: Arguments, edges: Sequence[int], state: Tensor) -> None:
        longest = max(last - first for first, last in itertools.pairwise(edges)) * args.substeps
        self.args = args
        self.states = memory.empty((longest + 1, *state.shape), state.dtype, state.device)
        self.saved: dict[Hashable, Tensor] = {}
        for i, width in enumerate(args.kernel.program.saved):
            saved = memory.empty((longest, args.batch, width), state.dtype, state.device)
            self.saved["saved", i] = saved
            args.strides["saved", i, "time"], args.strides["saved", i, "sample"] = saved.stride(0), saved.stride(1)

    def advanced(self, first: int, last: int, carried: Tensor) -> tuple[Arguments, Tensor]:
        """The arguments of intervals `first` to `last` - 1 and the states of all their steps, the start included."""
        args = self.args.stretch(first, last)
        states = self.states[: args.steps + 1]
        states[0] = carried
        args.tensors["states"] = states
        args.tensors.update({name: saved[: args.steps] for name, saved in self.saved.items()})
        args.call(args.kernel.forward, args.kernel.source.forward, lambda part: {})
        return args, states
