"""Linear fields solved for all times at once.

A step of a solver on a linear field, f = L x + N(t, u), is x+ = M x + F: M belongs to the size of the step, F to its
input. Both are read off the solver's own step, for all steps in one call each: F is where the step leads from zero,
column j of M where it leads from the j-th unit state without an input. Then `solvers.parallel.scan` does the rest, by
chunks for any clock, or by FFT where all steps are equal.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solvers.base.counted import Counted, bare
from solvers.base.loop import Loop
from solvers.base.state import parts_of
from solvers.compiled.passes.checked import Checked
from solvers.compiled.step.columns import Columns, Item, kind_of
from solvers.compiled.step.fingerprint import fingerprint
from solvers.compiled.step.layout import Layout
from solvers.compiled.step.refused import Refused
from solvers.numerics.linear import DiagonalOperator, OscillatorOperator, linear_part
from solvers.parallel.scan import PIECE, convolved, powers, scanned
from solvers.protocol import ControlPath, Time, structure

#: How the states are computed.
WAYS = ("scan", "fft")

#: Steps below which "auto" does not solve in parallel: the loop is as fast.
WORTHWHILE = {"cpu": 256, "cuda": 64}

#: Numbers in a component of the state of a batch, on a CPU, above which a loop with a step of few calls is as fast:
#: what a call costs by itself, which is what a scan saves, is little then.
WIDEST = 2048

#: The convolution takes numbers of all sizes into sums with each other; powers larger than this would drown the small.
LARGEST = 1e3


_KINDS: weakref.WeakKeyDictionary[Any, dict[Hashable, Checked]] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


@dataclass
class Solve:
    """One parallel solve of a loop.

    Attributes:
        way: "scan" or "fft".
        kernel: what is known of the step.
        evaluations: of the right-hand side, for each step.
    """

    way: str
    kernel: Checked
    loop: Loop
    layout: Layout
    steps: Steps
    evaluations: int = field(default=0, init=False)

    def run(self, state: Tensor) -> tuple[Tensor, ...]:
        """The components after every interval, `(time, batch, hidden)`, and the last state."""
        blocks, kernel = self.steps.blocks(), None
        if self.way == "fft":
            kernel = powers(blocks[0, 0], len(self.loop) * self.loop.substeps)
            if not float(kernel.detach().abs().amax()) <= LARGEST:
                raise Refused(f"powers of its step grow beyond {LARGEST:g}, which drowns small states in an FFT")
        drive, self.evaluations = self.steps.drive()
        parts, end = scanned(blocks, drive, state) if kernel is None else convolved(kernel, blocks[0, 0], drive, state)
        if self.loop.substeps > 1:
            parts = tuple(part[self.loop.substeps - 1 :: self.loop.substeps] for part in parts)
        return *parts, end


@dataclass
class Steps:
    """All steps of a loop at once, for a state `(batch, components, hidden)` packed as the solver carries it."""

    loop: Loop
    layout: Layout
    state: Tensor

    def __post_init__(self) -> None:
        self.columns = Columns(self.loop, len(self.state))
        self.items = {item.key: item for item in self.columns.items}

    @property
    def uniform(self) -> bool:
        """All steps are of one size, a number."""
        span = self.items["span",]
        return span.uniform and span.number

    def blocks(self) -> Tensor:
        """M, `(steps or 1, batch or 1, n, n, hidden)`."""
        n, width = self.layout.total, self.state.shape[-1]
        h = self.span()
        shape = h.shape[:-1] if isinstance(h, Tensor) else ()
        one = torch.eye(n, dtype=self.state.dtype, device=self.state.device)
        unit = torch.cat((one, torch.zeros_like(one[:1]))).view(n + 1, *[1] * len(shape), n, 1)
        channels = max((i.shape[-1] for i in self.items.values() if i.key[0] == "path" and i.batch), default=1)
        silence = unit.new_zeros(()).expand(n + 1, *shape, channels)
        ends = self.step(0.0, h, unit.expand(n + 1, *shape, n, width), lambda t: silence, self.field)
        blocks = torch.stack([end[:-1] - end[-1] for end in ends], -2).movedim(0, -3)
        if not shape:
            return blocks.expand(1, 1, n, n, width)
        # Every interval has its equal steps; a clock is shared, or belongs to a sample.
        return blocks.expand(shape[0], self.loop.substeps, *shape[2:], n, n, width).flatten(0, 1)

    def drive(self) -> tuple[list[Tensor], int]:
        """The components of F, `(steps, batch, hidden)` each, and the evaluations of one step."""
        counted, pieces = self.loop.field, []
        before = evaluations = counted.evaluations if isinstance(counted, Counted) else 0
        for t, h, path, count in self.stretches():
            zero = self.state.new_zeros(()).expand(count, self.loop.substeps, *self.state.shape)
            ended = self.step(t, h, zero, path, counted)
            pieces.append([part.to(self.state.dtype).flatten(0, 1) for part in ended])
            if isinstance(counted, Counted):
                evaluations, counted.evaluations = counted.evaluations - before, before
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*pieces, strict=True)], evaluations

    def stretches(self) -> Iterator[tuple[Time, Time, ControlPath, int]]:
        """Start and size of the steps, the path of u, and the number of intervals; on a CPU by pieces for its cache.

        What they hold has two axes for the steps before that of the batch.
        """
        time, numbers = len(self.loop), self.loop.substeps * self.state[:, 0].numel()
        length = max(1, PIECE // numbers) if self.state.device.type == "cpu" else time
        whole = {key: self.whole(item) for key, item in self.items.items()}
        parts = {
            key: itertools.repeat(whole[key]) if item.uniform else whole[key].split(length)
            for key, item in self.items.items()
        }
        for i, values in enumerate(zip(*parts.values(), strict=False)):
            piece = dict(zip(parts, values, strict=True))
            h = self.span(piece["span",])
            paths = {str(key[1]): value for key, value in piece.items() if key[0] == "path"}
            start = piece["start",]
            steps = torch.arange(self.loop.substeps, device=start.device, dtype=start.dtype).view(-1, 1, 1)
            # Starts that are numbers stay in double precision.
            yield start + steps * h, h, kind_of(self.loop.paths)(**paths), min(length, time - i * length)

    @property
    def field(self) -> Any:
        """The field, bare."""
        return bare(self.loop.field)

    def step(self, t: Time, h: Time, state: Tensor, control: ControlPath, field: Any) -> list[Tensor]:
        """The solver's own step, on packed states with any leading axes: its components."""
        shape = (*state.shape[:-2], state.shape[-1])

        def current(t: Time) -> Tensor:
            # Starts in double precision would otherwise make everything double.
            u: Tensor = control(t)
            return u.to(state.dtype)

        ended = parts_of(self.loop.solver.step(field, t, h, self.layout.taken(state), current))
        components: list[Tensor] = []
        for part, count in zip(ended, self.layout.counts, strict=True):
            components += part.unbind(-2) if count else (part,)
        return [part.expand(shape) for part in components]

    def span(self, value: Tensor | None = None) -> Time:
        """The size of the steps: a number, or `(time, 1, batch or 1, 1)`, from their column or a piece of it."""
        if self.uniform:
            return self.loop.clock.spans[0] / self.loop.substeps
        value = self.whole(self.items["span",]) if value is None else value
        return value.to(self.state.dtype) / self.loop.substeps

    def whole(self, item: Item) -> Tensor:
        """A column with axes (time, substeps, batch, ..)."""
        value = self.columns.whole(item, self.state.dtype).to(self.state.device)
        if item.uniform:
            return value
        return value.unsqueeze(1) if item.batch else value.view(len(value), 1, 1, *(item.shape or (1,)))


def solve_for(way: str, original: Any, loop: Loop, layout: Layout, state: Tensor) -> Solve:
    """A parallel solve; `state` is the packed one of the layout.

    Raises:
        Refused: the field is not linear in blocks, or the step is not of a kind that can be taken at once.
    """
    bound = bare(loop.field)
    if "linear" not in structure(bound):
        raise Refused("the field does not declare that it is linear")
    operator = linear_part(bound)
    if not isinstance(operator, OscillatorOperator | DiagonalOperator):
        raise Refused(f"a {type(operator).__name__} couples channels, whose blocks would be whole matrices")
    if state.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(state.device.type):
        raise Refused("a scan is taken in single and double precision alone")
    if loop.solver.stochastic:
        raise Refused(f"solver {loop.solver.name!r} draws noise step by step")
    with torch.no_grad():
        steps = Steps(loop, layout, state)
    if way == "fft" and not steps.uniform:
        raise Refused("steps of different sizes are no convolution: use 'scan'")
    items = tuple((i.key, i.uniform, i.number, i.shape, i.batch) for i in steps.columns.items)
    trained = torch.is_grad_enabled()
    like = (state.shape[1:], state.dtype, state.device, trained)
    with _LOCK:
        key = (way, loop.solver, items, loop.substeps > 1, like, fingerprint(original, bound, loop.solver))
        known = _KINDS.setdefault(original, {})
        if key not in known and len(known) > 64:
            known.clear()
        kind = known.setdefault(key, Checked(backward=trained or None))
    if kind.refused:
        raise Refused(kind.refused)
    return Solve(way, kind, loop, layout, steps)


def forget(original: Any) -> None:
    """Compare the solves of a field anew when they are needed next."""
    with _LOCK:
        _KINDS.pop(original, None)


def pays(field: Any, loop: Loop, state: Tensor, fused: bool) -> tuple[str, ...]:
    """The ways in which "auto" tries to solve a loop, the first one first; `fused`: instead of a loop in pure torch."""
    if "linear" not in structure(field) or len(loop) * loop.substeps < WORTHWHILE.get(state.device.type, 64):
        return ()
    if state.device.type == "cuda":
        return ("fft", "scan")
    return () if fused and state[:, 0].numel() > WIDEST else ("scan",)
