"""Reversible integration: the states are rebuilt backwards from the last one instead of being stored."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.base.gradient import GRADIENTS, Gradient
from solvers.base.hidden import Watch
from solvers.base.kept import Kept, Versions
from solvers.base.leaves import Key, Leaves, linked_gradients
from solvers.base.loop import Loop
from solvers.base.pairing import compatible
from solvers.base.segments import Cut
from solvers.base.solver import SOLVERS, Solver
from solvers.base.state import parts_of
from solvers.base.values import transformed
from solvers.errors import InputError, NumericalError, PairingError, listed
from solvers.protocol import describe

Parts = tuple[Tensor, ...]


#: Steps of a segment of a fast loop between snapshots, at most: beyond this length none was measured to be faster.
LONGEST = 256


class DriftError(NumericalError):
    """States rebuilt backwards that no longer agree with the stored ones."""

    advice = "use a smaller dt, more snapshots, float64, or gradient 'checkpoint'"


@dataclass(frozen=True)
class Reversible(Gradient):
    """The gradient of backprop with activation memory that does not depend on the number of steps.

    The backward pass rebuilds the states with the solver's `unstep`, a chunk of steps at a time, and differentiates
    each chunk. Rounding makes the rebuilt states drift; a fixed number of stored snapshots measures the drift and
    starts the rebuilding afresh. Where a gradient of the gradient is asked for (`create_graph=True`), and inside
    function transforms, it is backprop, in the memory of that.

    Attributes:
        snapshots: states stored on the way, evenly spaced.
        chunk: steps differentiated at a time; memory grows with it, time falls a little. A fast path takes more at a
            time where that is faster: a number that does not depend on how many there are.
        limit: relative drift at which a DriftError is raised; the square root of the dtype's precision when None.
        drifts: a list that collects the relative drift at every snapshot, or None.

    Source: the idea of Gomez et al., NeurIPS 2017, for the steps of a solver, as in UnICORNN's published kernel.
    """

    snapshots: int = 8
    chunk: int = 16
    limit: float | None = None
    drifts: list[float] | None = field(default=None, compare=False, repr=False)

    jumps: ClassVar[bool] = False
    compilable: ClassVar[bool] = True
    undoes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("snapshots", 0), ("chunk", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"{name} of gradient 'reversible' is {value!r}, expected an integer of at least {least}"
                )

    def check(self, field: Any, solver: Solver) -> None:
        """Refuse solvers without an inverse step on this field."""
        if not solver.undoes(field):
            doing = [name for name in compatible(field) if SOLVERS[name].undoes(field)]
            raise PairingError(
                f"gradient 'reversible' needs a solver whose step can be undone on {describe(field)}, and "
                f"{solver.name!r} is not one: use {f'{listed(doing)}, or ' if doing else ''}gradient 'checkpoint'"
            )

    def marks(self, starts: Sequence[int]) -> list[int]:
        """Those of the steps at which states can be stored at which they are; the first one always is."""
        wanted = self.snapshots + 1
        return sorted({starts[k * len(starts) // wanted] for k in range(wanted)})

    def cut(self, loop: Loop, carried: Any, fitting: int) -> Cut | None:
        """The state is kept at the snapshots alone; a segment has at least `chunk` steps, and more where they fit."""
        substeps, total = loop.substeps, len(loop) * loop.substeps
        longest = max(self.chunk, min(LONGEST, fitting))
        unit = substeps if substeps <= longest else 1
        least = -(-self.chunk // unit) * unit
        if unit == substeps:
            starts = list(range(0, total, least))
        else:
            starts = [i * substeps + j for i in range(len(loop)) for j in range(0, substeps, least)]
        marks = self.marks(starts)
        bounds = sorted({*marks, total, *(range(0, total, substeps) if unit < substeps else ())})
        edges = [0]
        for first, last in itertools.pairwise(bounds):
            edges += [*range(first + longest // unit * unit, last, longest // unit * unit), last]
        return Cut(edges, marks)

    def measure(self, loop: Loop, rebuilt: Parts, stored: Parts, step: int) -> None:
        """Record the drift at a snapshot.

        Raises:
            DriftError: it is beyond the limit.
        """
        scale = max(float(part.abs().max()) for part in stored) if stored[0].numel() else 0.0
        if scale == 0.0:
            scale = 1.0
        errors = [(a - b).abs().nan_to_num(math.inf, math.inf) for a, b in zip(rebuilt, stored, strict=True)]
        drift = max(float(e.max()) for e in errors) / scale if stored[0].numel() else 0.0
        if self.drifts is not None:
            self.drifts.append(drift)
        precision = torch.finfo(stored[0].dtype).eps
        limit = math.sqrt(precision) if self.limit is None else self.limit
        if drift > limit:
            worst = max(errors, key=lambda e: float(e.max()))
            raise DriftError(
                f"states rebuilt backwards under solver {loop.solver.name!r} drifted by {drift:.2g} of their size, "
                f"more than {limit:.2g}: backwards, {describe(loop.field)} is too stiff or too strongly damped",
                sample=int(worst.reshape(worst.shape[0], -1).amax(1).argmax()) if worst.dim() > 1 else None,
                step=step // loop.substeps,
                time=loop.clock.time_at(step // loop.substeps),
            )

    def run(self, loop: Loop, state: Tensor) -> list[Any]:
        """The loop, unrecorded, with its backward pass."""
        carried = loop.solver.open(state)
        if not len(loop) or not torch.is_grad_enabled() or transformed():
            return loop.advance(carried, 0, len(loop))
        kept, parts = Kept(loop), parts_of(carried)
        start = tuple(part.detach() for part in parts)
        with torch.no_grad():
            states, stored = self._stepped(loop, kept, start if isinstance(carried, tuple) else start[0])
        leaves = kept.leaves(0, len(loop))
        spec = _Spec(self, kept, leaves, Versions.of(leaves), len(parts), tuple(stored))
        flat = _Reversed.apply(spec, states, stored, *parts, *leaves.tensors.values())  # type: ignore[no-untyped-call]
        if not isinstance(carried, tuple):
            return list(flat)
        return [tuple(flat[i : i + len(parts)]) for i in range(0, len(flat), len(parts))]

    def _stepped(self, loop: Loop, kept: Kept, start: Any) -> tuple[list[Any], dict[int, Parts]]:
        """The states after every interval, and those at the snapshots by their step."""
        stored: dict[int, Parts] = {}
        wanted = self.marks([first for first, _ in self.chunks(loop)])

        def interval(i: int, carried: Any) -> Any:
            base = i * loop.substeps
            marks = sorted(m - base for m in wanted if base <= m < base + loop.substeps)
            at = 0
            for mark in (*marks, loop.substeps):
                carried = kept.steps(loop, i, carried, at, mark)
                at = mark
                if mark < loop.substeps:
                    stored[base + mark] = parts_of(carried)
            return carried

        return loop.advance(start, 0, len(loop), interval), stored

    def chunks(self, loop: Loop) -> list[tuple[int, int]]:
        """Ranges of steps that are differentiated at a time."""
        total = len(loop) * loop.substeps
        return [(first, min(first + self.chunk, total)) for first in range(0, total, self.chunk)]


@dataclass(frozen=True)
class _Spec:
    """What the backward pass needs to know, besides tensors; `marks` are the steps of the snapshots."""

    gradient: Reversible
    kept: Kept
    leaves: Leaves
    versions: Versions
    width: int
    marks: tuple[int, ...]

    @property
    def loop(self) -> Loop:
        """The loop with the field as it was."""
        return self.kept.loop

    def form(self, parts: Parts) -> Any:
        """Parts as the solver carries them."""
        return parts if self.width > 1 or self.loop.solver.split else parts[0]


def _walk(loop: Loop, carried: Any, first: int, last: int, offset: int = 0) -> list[tuple[int, Any]]:
    """Steps `first` to `last` - 1 from `carried`: (number of the step reached, state), at interval ends and `last`.

    The loop may be a stretch whose first interval is number `offset` of the whole.
    """
    reached = []
    while first < last:
        i, j = divmod(first, loop.substeps)
        stop = min(last - first + j, loop.substeps)
        carried = loop.steps(i - offset, carried, j, stop)
        first += stop - j
        if stop == loop.substeps or first == last:
            reached.append((first, carried))
    return reached


class _Reversed(torch.autograd.Function):
    """Forward: what the plain loop has led to. Backward: rebuild a chunk, differentiate it, go on to the one before."""

    @staticmethod
    def forward(
        ctx: Any, spec: _Spec, states: list[Any], stored: dict[int, Parts], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """The parts of the carried state after every interval."""
        # A state may come back unchanged (an empty span); autograd wants outputs to be tensors of their own.
        flat = tuple(part.detach() for carried in states for part in parts_of(carried))
        ctx.spec = spec
        ctx.set_materialize_grads(False)
        snapshots = (part for parts in stored.values() for part in parts)
        ctx.save_for_backward(*tensors[: spec.width], *flat[-spec.width :], *snapshots)
        return flat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the start state and every tensor of the loop."""
        spec: _Spec = ctx.spec
        saved, width = ctx.saved_tensors, spec.width
        start, last, *snapshots = (saved[k : k + width] for k in range(0, len(saved), width))
        spec.kept.check(spec.versions)
        with spec.kept.snapshot.counting():
            if torch.is_grad_enabled():
                return None, None, None, *_recorded(spec, start, grads)
            return None, None, None, *_backwards(spec, last, dict(zip(spec.marks, snapshots, strict=True)), grads)


def _backwards(
    spec: _Spec, parts: Parts, snapshots: dict[int, Parts], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients, a chunk at a time from the last state."""
    carry: list[Tensor | None] = [None] * spec.width
    totals: dict[Key, Tensor] = {}
    watch: Watch | None = Watch() if spec.kept.snapshot.hidden else None
    for first, last in reversed(spec.gradient.chunks(spec.loop)):
        with watch or contextlib.nullcontext():
            rebuilt = _rebuild(spec, parts, first, last)
        if watch is not None:
            # What a function now closes over instead would be taken for drift.
            spec.kept.snapshot.compare(watch, [*spec.leaves.tensors.values(), *parts])
            watch = None
        if first in snapshots:
            spec.gradient.measure(spec.loop, rebuilt, snapshots[first], first)
            rebuilt = snapshots[first]
        carry = _differentiate(spec, rebuilt, first, last, carry, grads, totals)
        parts = rebuilt
    return *carry, *(totals.get(key) for key in spec.leaves.tensors)


def _recorded(spec: _Spec, start: Parts, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The gradients by backpropagation through the plain loop, for a gradient of them."""
    values, inputs = spec.leaves.linked(), tuple(part.view_as(part) for part in start)
    loop = spec.leaves.rebuilt(values)
    with spec.leaves.reading(values):
        states = loop.advance(spec.form(inputs), 0, len(loop))
    flat = (part for carried in states for part in parts_of(carried))
    pairs = [(part, grad) for part, grad in zip(flat, grads, strict=True) if grad is not None and part.requires_grad]
    return linked_gradients([part for part, _ in pairs], [*inputs, *values.values()], [grad for _, grad in pairs])


def _rebuild(spec: _Spec, parts: Parts, first: int, last: int) -> Parts:
    """The state before step `first` from the one after step `last` - 1."""
    loop, carried = spec.loop, spec.form(parts)
    for m in range(last - 1, first - 1, -1):
        i, j = divmod(m, loop.substeps)
        t, h = loop.substep(i)
        carried = loop.solver.unstep(loop.field, t + j * h if j else t, h, carried, loop.path(i, j))
    return parts_of(carried)


def _differentiate(
    spec: _Spec,
    start: Parts,
    first: int,
    last: int,
    carry: list[Tensor | None],
    grads: tuple[Tensor | None, ...],
    totals: dict[Key, Tensor],
) -> list[Tensor | None]:
    """Backprop through one chunk: adds to `totals`, returns the gradient of its start state."""
    loop, width = spec.loop, spec.width
    begin, end = first // loop.substeps, (last - 1) // loop.substeps + 1
    leaves = spec.kept.leaves(begin, end)
    values = leaves.cut()
    wanted = {key: value for key, value in values.items() if value.requires_grad}
    inputs = tuple(part.detach().requires_grad_(True) for part in start)

    def walked() -> list[tuple[int, Any]]:
        with torch.enable_grad(), leaves.reading(values):
            return _walk(leaves.rebuilt(values), spec.form(inputs), first, last, begin)

    reached = walked()
    outputs: list[Tensor] = []
    output_grads: list[Tensor] = []
    for step, carried in reached:
        whole = step % loop.substeps == 0
        place = (step // loop.substeps - 1) * width
        for k, part in enumerate(parts_of(carried)):
            for grad in (grads[place + k] if whole else None, carry[k] if step == last else None):
                if grad is not None and part.requires_grad:
                    outputs.append(part)
                    output_grads.append(grad)
    if not outputs:
        return [None] * width
    leaves.check(values, inputs, outputs, lambda: [part for _, carried in walked() for part in parts_of(carried)])
    gradients = torch.autograd.grad(outputs, (*inputs, *wanted.values()), output_grads, allow_unused=True)
    for key, grad in zip(wanted, gradients[width:], strict=True):
        if grad is not None:
            totals[key] = totals[key] + grad if key in totals else grad
    return list(gradients[:width])


GRADIENTS.add("reversible", Reversible("reversible"))
