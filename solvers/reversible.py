"""Reversible integration: the states are rebuilt backwards from the last one instead of being stored."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from solvers.errors import InputError, NumericalError, PairingError, listed
from solvers.gradient import GRADIENTS, Gradient
from solvers.leaves import Leaves
from solvers.protocol import ControlPath, Time, describe, over_state, parts_of
from solvers.solver import SOLVERS, Solver, register

if TYPE_CHECKING:
    from solvers.loop import Loop

Key = tuple[Hashable, ...]
Parts = tuple[Tensor, ...]


class DriftError(NumericalError):
    """States rebuilt backwards that no longer agree with the stored ones."""

    advice = "use a smaller dt, more snapshots, float64, or gradient 'checkpoint'"


@dataclass(frozen=True)
class Reversible(Gradient):
    """The gradient of backprop with activation memory that does not depend on the number of steps.

    The backward pass rebuilds the states with the solver's `unstep`, a chunk of steps at a time, and differentiates
    each chunk. Rounding makes the rebuilt states drift; a fixed number of stored snapshots measures the drift and
    starts the rebuilding afresh. It can be differentiated once.

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
            doing = [name for name in SOLVERS if SOLVERS[name].undoes(field)]
            raise PairingError(
                f"gradient 'reversible' needs a solver whose step can be undone on {describe(field)}, and "
                f"{solver.name!r} is not one: use {listed(doing)}, or gradient 'checkpoint'"
            )

    def marks(self, starts: Sequence[int]) -> list[int]:
        """Those of the steps at which states can be stored at which they are; the first one always is."""
        wanted = self.snapshots + 1
        return sorted({starts[k * len(starts) // wanted] for k in range(wanted)})

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
        parts = parts_of(carried)
        leaves = Leaves(loop, 0, len(loop))
        spec = _Spec(self, loop, leaves, len(parts))
        flat = _Reversed.apply(spec, *parts, *leaves.tensors.values())  # type: ignore[no-untyped-call]
        if not isinstance(carried, tuple):
            return list(flat)
        return [tuple(flat[i : i + len(parts)]) for i in range(0, len(flat), len(parts))]


@dataclass(frozen=True)
class _Spec:
    """What the backward pass needs to know, besides tensors."""

    gradient: Reversible
    loop: Loop
    leaves: Leaves
    width: int

    @property
    def steps(self) -> int:
        """Steps of the whole loop, substeps counted."""
        return len(self.loop) * self.loop.substeps

    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of steps, none of which crosses the end of one interval in its middle unless it must."""
        size = self.gradient.chunk
        return [(m, min(m + size, self.steps)) for m in range(0, self.steps, size)]

    def form(self, parts: Parts) -> Any:
        """Parts as the solver carries them."""
        return parts if self.carries_tuple else parts[0]

    @property
    def carries_tuple(self) -> bool:
        """Whether the solver carries a tuple."""
        return self.width > 1 or self.loop.solver.split


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
    """Forward: the plain loop, unrecorded. Backward: rebuild a chunk, differentiate it, go on to the one before."""

    @staticmethod
    def forward(ctx: Any, spec: _Spec, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The parts of the carried state after every interval."""
        loop, stored = spec.loop, {}
        wanted = spec.gradient.marks([first for first, _ in spec.chunks()])

        def interval(i: int, carried: Any) -> Any:
            base = i * loop.substeps
            marks = sorted(m - base for m in wanted if base <= m < base + loop.substeps)
            at = 0
            for mark in (*marks, loop.substeps):
                carried = loop.steps(i, carried, at, mark)
                at = mark
                if mark < loop.substeps:
                    stored[base + mark] = parts_of(carried)
            return carried

        states = loop.advance(spec.form(tensors[: spec.width]), 0, len(loop), interval)
        flat = tuple(part for carried in states for part in parts_of(carried))
        last = flat[-spec.width :]
        ctx.spec, ctx.snapshot_keys = spec, list(stored)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*last, *(part for parts in stored.values() for part in parts))
        # A state may come back unchanged (an empty span); autograd wants outputs to be tensors of their own.
        return tuple(part.clone() if any(part is t for t in tensors) else part for part in flat)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the start state and every tensor of the loop."""
        spec: _Spec = ctx.spec
        loop = spec.loop
        saved, width = ctx.saved_tensors, spec.width
        snapshots = {key: saved[width * (n + 1) : width * (n + 2)] for n, key in enumerate(ctx.snapshot_keys)}
        parts: Parts = saved[:width]
        carry: list[Tensor | None] = [None] * width
        totals: dict[Key, Tensor] = {}
        with spec.leaves.in_place():
            for first, last in reversed(spec.chunks()):
                rebuilt = _rebuild(spec, parts, first, last)
                if first in snapshots:
                    spec.gradient.measure(loop, rebuilt, snapshots[first], first)
                    rebuilt = snapshots[first]
                carry = _differentiate(spec, rebuilt, first, last, carry, grads, totals)
                parts = rebuilt
        return None, *carry, *(totals.get(key) for key in spec.leaves.tensors)


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
    leaves = Leaves(loop, begin, end)
    values = leaves.cut()
    wanted = {key: value for key, value in values.items() if value.requires_grad}
    with torch.enable_grad():
        inputs = tuple(part.detach().requires_grad_(True) for part in start)
        reached = _walk(leaves.rebuilt(values), spec.form(inputs), first, last, begin)
    outputs: list[Tensor] = []
    given: list[Tensor] = []
    for step, carried in reached:
        whole = step % loop.substeps == 0
        place = (step // loop.substeps - 1) * width
        for k, part in enumerate(parts_of(carried)):
            for grad in (grads[place + k] if whole else None, carry[k] if step == last else None):
                if grad is not None and part.requires_grad:
                    outputs.append(part)
                    given.append(grad)
    if not outputs:
        return [None] * width
    found = torch.autograd.grad(outputs, (*inputs, *wanted.values()), given, allow_unused=True)
    for key, grad in zip(wanted, found[width:], strict=True):
        if grad is not None:
            totals[key] = totals[key] + grad if key in totals else grad
    return list(found[:width])


@dataclass(frozen=True)
class ReversiblePair(Solver):
    """Any explicit method made reversible, by stepping a pair of states (y, z) with its increments Psi.

        y+ = c y + (1 - c) z + Psi(t, dt, z)
        z+ = z - Psi(t + dt, -dt, y+)

    Both start from the state, y is the state. Solving the two lines backwards undoes the step up to rounding, which
    grows like c^-n over n steps.

    The difference y - z is a solution too, and grows where the field decays: by about c exp(a dt) a step for a decay
    rate a. A damped field (a coRNN, say) therefore needs a dt below -log(c) / a, that is a small dt or a smaller
    coupling, and long sequences of it are better served by gradient 'checkpoint'.

    Attributes:
        base: name of the explicit method.
        coupling: c, in (0, 1].

    Source: McCallum & Foster, Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv:2410.11648.
    """

    base: str = field(default="midpoint", metadata={"option": True})
    coupling: float = field(default=0.999, metadata={"option": True})

    family: ClassVar[str] = "reversible"

    def __post_init__(self) -> None:
        method = SOLVERS[self.base]
        if method.family != "explicit":
            raise InputError(
                f"base of solver {self.name!r} is {self.base!r}, expected an explicit method such as 'rk4'"
            )
        if not 0 < self.coupling <= 1:
            raise InputError(f"coupling of solver {self.name!r} is {self.coupling!r}, expected above 0 and at most 1")
        object.__setattr__(self, "order", method.order)
        object.__setattr__(self, "stages", 2 * method.stages)

    def open(self, state: Tensor) -> Any:
        """The pair (state, state)."""
        return state, state

    def close(self, carried: Any) -> Tensor:
        """The first of the pair."""
        state: Tensor = carried[0] if isinstance(carried, tuple) else carried
        return state

    def position(self, carried: Any) -> Tensor:
        """Its first component."""
        return self.close(carried)[..., 0, :]

    def _increment(self, field: Any, t: Time, dt: Time, x: Tensor, control: ControlPath) -> Tensor:
        return SOLVERS[self.base].step(field, t, dt, x, control) - x

    def _mix(self, dt: Time) -> Time:
        """The coupling, or 1 in samples whose span is zero: where no time passes the pair must not mix either."""
        if isinstance(dt, Tensor):
            return over_state(torch.where(dt == 0, torch.ones_like(dt), torch.full_like(dt, self.coupling)))
        return self.coupling if dt else 1.0

    def step(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """One step of the pair, or of a state alone; see `Solver.step`."""
        y, z = state if isinstance(state, tuple) else (state, state)
        c = self._mix(dt)
        y = c * y + (1 - c) * z + self._increment(field, t, dt, z, control)
        z = z - self._increment(field, t + dt, -dt, y, control)
        return (y, z) if isinstance(state, tuple) else y

    def unstep(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """The step of the pair taken back; see `Solver.unstep`."""
        if not isinstance(state, tuple):
            raise InputError(
                f"solver {self.name!r} can only undo a step of its pair of states: pass what open returned"
            )
        y, z = state
        c = self._mix(dt)
        z = z + self._increment(field, t + dt, -dt, y, control)
        return (y - (1 - c) * z - self._increment(field, t, dt, z, control)) / c, z


@dataclass(frozen=True)
class Undoing(Solver):
    """The steps of another solver taken back: `step` is its `unstep`.

    Attributes:
        other: the solver.
    """

    other: Solver = field(kw_only=True)

    @classmethod
    def of(cls, solver: Solver) -> Undoing:
        """What undoes the steps of a solver."""
        return cls(solver.name, solver.order, solver.stages, other=solver)

    def open(self, state: Tensor) -> Any:
        """As the other solver."""
        return self.other.open(state)

    def close(self, carried: Any) -> Tensor:
        """As the other solver."""
        return self.other.close(carried)

    def step(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """The state at t from the one at t + dt."""
        return self.other.unstep(field, t, dt, state, control)


register(ReversiblePair("reversible", 2, 4, reversible=True))
GRADIENTS.add("reversible", Reversible("reversible"))
