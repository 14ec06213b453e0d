"""The fast loop a segment at a time: the states between segments are kept or rebuilt, the rest is computed again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.base.segments import Cut, Window
from solvers.compiled.passes import memory
from solvers.compiled.passes.arguments import Arguments, alias
from solvers.compiled.passes.autograd import Pullback
from solvers.compiled.passes.call import Call
from solvers.errors import PairingError


@dataclass(frozen=True)
class Undo:
    """What rebuilds the start of a segment from its end, where the cut does not store it.

    Attributes:
        call: of the kernel of the solver's `unstep`.
        measure: compares a state that was rebuilt with the one stored at the same step, both packed.
    """

    call: Call
    measure: Callable[[Tensor, Tensor, int], None]


def run_segmented(
    call: Call, state: Tensor, cut: Cut, kept: Sequence[int], undo: Undo | None = None
) -> tuple[Tensor, ...]:
    """The components in `kept` after every interval, and the last state, with memory for one segment at a time."""
    others = [] if undo is None else undo.call.tensors
    start = state.to(call.kernel.dtype)
    results: tuple[Tensor, ...] = Segmented.apply(call, cut, kept, undo, start, *call.tensors, *others)  # type: ignore[no-untyped-call]
    return tuple(t.to(state.dtype) for t in results)


class Segmented(torch.autograd.Function):
    """As `autograd.Run`, with the memory of one segment at a time above what is returned."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, cut: Cut, kept: Sequence[int], undo: Undo | None, state: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """The components in `kept` after every interval, and the last state; `tensors` of the call, and of the undo."""
        # The kernel runs over one segment at a time, in the same room: its states and saved values are thrown away, and
        # computed again when the backward pass comes to the segment.
        own, sub = tensors[: len(call.tensors)], call.substeps
        prologue = call.prologue(own)
        segment = _Segment(call.arguments(state, own, prologue), cut, _room(cut, state))
        stored = memory.empty((len(cut.stored) + 1, *state.shape), state.dtype, state.device)
        shape = (len(kept), len(call.loop), state.shape[0], state.shape[2])
        outs = memory.empty(shape, state.dtype, state.device)
        carried, places = state, {step: stored[k] for k, step in enumerate(cut.stored)}
        for first, last in itertools.pairwise(cut.edges):
            if first in places:
                places[first].copy_(carried)
            _, reached = segment.advanced(first, last, carried)
            # The ends of the intervals that end here; one that goes on has none.
            ends = slice(first // sub, last // sub)
            for out, component in zip(outs, kept, strict=True):
                out[ends] = reached[sub - first % sub :: sub, :, component]
            carried = reached[-1]
        stored[-1] = carried
        ctx.save_for_backward(state, *tensors, stored)
        ctx.call, ctx.prologue, ctx.cut, ctx.kept, ctx.undo = call, prologue, cut, kept, undo
        ctx.set_materialize_grads(False)
        return (*(alias(out) for out in outs), carried.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of state, items, scalars and uniform tensors."""
        if not torch.is_grad_enabled():
            return _gradients(ctx, grads) if ctx.cut.windows is None else _windowed(ctx, grads)
        if ctx.cut.windows is not None:
            raise PairingError(
                "a gradient that goes back through a part of the steps cannot be differentiated again, since it is no "
                "derivative of the states: use gradient 'backprop' where create_graph=True is given"
            )
        # A gradient of the gradient is wanted: the plain path gives both.
        state, *tensors, _ = ctx.saved_tensors
        own, others = tensors[: len(ctx.call.tensors)], tensors[len(ctx.call.tensors) :]
        found = ctx.call.plainly(state, own, _given(ctx, state, grads))
        return (None, None, None, None, *found, *(None for _ in others))


def _given(ctx: Any, state: Tensor, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of all components, whether they are kept or not, and of the last state."""
    by_component = dict(zip(ctx.kept, grads, strict=False))
    return [*(by_component.get(i) for i in range(state.shape[1])), grads[-1]]


def _gradients(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    call, cut, undo = ctx.call, ctx.cut, ctx.undo
    state, *tensors, stored = ctx.saved_tensors
    own, others = tensors[: len(call.tensors)], tensors[len(call.tensors) :]
    args = call.arguments(state, own, ctx.prologue)
    pullback = Pullback(ctx.prologue, args, state, own, _given(ctx, state, grads), {})
    # Rebuilding takes the same room: what it leaves is read before the steps are taken again.
    room = _room(cut, state)
    segment, back = _Segment(args, cut, room), None
    if undo is not None:
        back = _Segment(undo.call.arguments(state, others, undo.call.prologue(others)), cut, room)
    places, start = {step: stored[k] for k, step in enumerate(cut.stored)}, stored[-1]
    for first, last in reversed(list(itertools.pairwise(cut.edges))):
        if back is not None:
            # From the end: what the forward pass kept serves to measure how far the rebuilt state has drifted.
            start = back.rebuilt(first, last, start)
            if first in places:
                undo.measure(start, places[first], first)
        stretch, states = segment.advanced(first, last, places.get(first, start))
        pullback.run(stretch, first, last)
        start = states[0]
    return (None, None, None, None, *pullback.gradients(), *(None for _ in others))


def _windowed(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The same, where errors go back through windows: each is stepped again, and gone back through, by itself."""
    call, cut = ctx.call, ctx.cut
    state, *own, stored = ctx.saved_tensors
    args, given = call.arguments(state, own, ctx.prologue), _given(ctx, state, grads)
    pullback = Pullback(ctx.prologue, args, state, own, given, {})
    for room in pullback.steps.values():
        # Windows add to it, and some intervals may lie in none.
        room.zero_()
    segment, places = _Segment(args, cut, _room(cut, state)), {step: stored[k] for k, step in enumerate(cut.stored)}
    at_start, sub, total = torch.zeros_like(pullback.carry[0]), call.substeps, len(call.loop) * call.substeps
    for window in reversed(cut.windows):
        errors = [each[window.own // sub : window.last // sub] for each in given[:-1] if each is not None]
        if window.last == total:
            errors += [each for each in given[-1:] if each is not None]
        else:
            pullback.carry[0].zero_()
        if not any(map(torch.any, errors)):
            continue
        segment.advanced(window.first, window.last, places[window.first])
        for first, last in ((window.own, window.last), (window.first, window.own)):
            if first < last:
                pullback.run(segment.part(window, first, last), first, last, again=True)
        if window.first == 0:
            at_start += pullback.carry[0]
    pullback.carry[0] = at_start
    return (None, None, None, None, *pullback.gradients())


def _room(cut: Cut, state: Tensor) -> Tensor:
    """For the states of the longest segment, used by all of them in turn."""
    return memory.empty((cut.longest + 1, *state.shape), state.dtype, state.device)


class _Segment:
    """Runs segments in the same room, with room of its own for what is saved."""

    def __init__(self, args: Arguments, cut: Cut, room: Tensor) -> None:
        self.args, self.room = args, room
        self.saved: dict[Hashable, Tensor] = {}
        for i, width in enumerate(args.kernel.program.saved):
            saved = memory.empty((cut.longest, args.batch, width), room.dtype, room.device)
            self.saved["saved", i] = saved
            args.strides["saved", i, "time"], args.strides["saved", i, "sample"] = saved.stride(0), saved.stride(1)

    def advanced(self, first: int, last: int, carried: Tensor) -> tuple[Arguments, Tensor]:
        """The arguments of steps `first` to `last` - 1, and their states, the start included."""
        args = self.args.stretch(first, last)
        return args, self.run(args, carried)

    def rebuilt(self, first: int, last: int, carried: Tensor) -> Tensor:
        """The state before step `first`, where these steps undo those of a segment that ended in `carried`."""
        return self.run(self.args.stretch(first, last).backwards(), carried)[-1]

    def part(self, window: Window, first: int, last: int) -> Arguments:
        """The arguments of some steps of a window that has just been stepped; errors before its own are none of it."""
        args, begin = self.args.stretch(first, last), window.first
        args.tensors["states"] = self.room[first - begin : last - begin + 1]
        args.tensors.update({name: saved[first - begin : last - begin] for name, saved in self.saved.items()})
        if last <= window.own:
            kept = {name: t for name, t in args.tensors.items() if not (isinstance(name, tuple) and name[0] == "gout")}
            args.tensors = kept
        return args

    def run(self, args: Arguments, carried: Tensor) -> Tensor:
        """The states of these steps."""
        states = self.room[: args.steps + 1]
        states[0] = carried
        args.tensors["states"] = states
        args.tensors.update({name: saved[: args.steps] for name, saved in self.saved.items()})
        args.call(args.kernel.forward, args.kernel.source.forward, lambda part: {})
        return states
