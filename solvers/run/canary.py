"""Whether a fast path still follows its field: one interval of one sample, against the plain steps.

The step of a fast path is recorded once. What it can read is looked at before each solve (`solvers.compiled.step`).
Where that is something nobody can look at, such as a file, the comparison here finds a change, at each solve; where all
of it was looked at, it is there to find what the look may have missed, and not at each solve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.control import Paths, path_tensors, with_path_tensors
from solvers.base.counted import bare
from solvers.base.loop import Loop
from solvers.base.series import Series
from solvers.compiled.passes.precision import asked
from solvers.compiled.step.columns import kind_of
from solvers.compiled.step.fingerprint import overlooked
from solvers.compiled.step.layout import Layout
from solvers.errors import NumericalError
from solvers.run.check import Solve, beginning, tolerance

#: Steps in an interval beyond which a part of it is compared, in a short solve of its own.
STEPS = 3

#: Solves of which one is compared where all that a step can read was looked at.
EVERY = 16

#: What rounding may make of a state in one interval, in units of its precision.
ROUNDINGS = 64


def due(call: Solve, field: Any) -> bool:
    """Whether a solve, which is counted, is to be compared; `field` as the user gave it."""
    kernel, loop = call.kernel, call.loop
    kernel.solves += 1
    if kernel.overlooked is None:
        kernel.overlooked = overlooked(field, bare(loop.field), loop.solver, kind_of(loop.paths))
    return bool(kernel.overlooked) or kernel.solves % EVERY == 0


def drifted(
    call: Solve,
    layout: Layout,
    start: Tensor,
    outs: Sequence[Tensor],
    again: Callable[[Loop, Tensor], Sequence[Tensor]],
) -> float | None:
    """The relative error of what one interval added to the state of one sample; None where it is small.

    Args:
        call: the solve.
        layout, start: of its state, and the state at the start.
        outs: its components after every interval, or its position alone.
        again: the components after a short loop, by the same path.
    """
    loop, batch = call.loop, len(start)
    # Another sample each time, also where only some of the solves are compared.
    sample = call.kernel.compared % batch
    call.kernel.compared += 1
    allowed = call.kernel.slack * tolerance(start)
    rows = slice(sample, sample + 1)
    if loop.substeps > STEPS:
        short = of_sample(beginning(loop, min(2, len(loop)), 2), batch, 0, 2, sample)
        with torch.set_grad_enabled(call.kernel.backward is not None):
            after = [out[0] for out in again(short, start[rows])]
        with torch.no_grad():
            return _compared(short, layout, layout.taken(start[rows]), after, allowed)
    # From the second interval on a state is seldom zero, and no product of it is lost.
    i = 1 if len(outs) == layout.total and len(loop) > 1 else 0
    with torch.no_grad():
        before = layout.joined([out[i - 1, rows] for out in outs]) if i else layout.taken(start[rows])
        after = [out[i, rows] for out in outs]
        return _compared(of_sample(loop, batch, i, i + 1, sample), layout, before, after, allowed)


def of_sample(loop: Loop, batch: int, first: int, last: int, sample: int) -> Loop:
    """Intervals `first` to `last` - 1 of a loop, for one sample of its batch."""
    rows = slice(sample, sample + 1)

    def row(value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] == batch else value

    def column(values: Sequence[Any]) -> Sequence[Any]:
        if isinstance(values, Paths):
            # The columns of a path may be paths, as those of one with jumps are.
            return Paths(values.kind, **{name: column(part) for name, part in values.columns.items()})
        if isinstance(values, Series):
            return Series(values.whole[rows, first:last])
        # One tensor for all intervals stays one.
        chosen = values[first:last]
        known = {id(value): row(value) for value in chosen}
        return [known[id(value)] for value in chosen]

    paths: Sequence[Any] = loop.paths
    if isinstance(paths, Paths):
        paths = column(paths)
    else:
        own = paths[first:last]
        paths = [with_path_tensors(p, {name: row(t) for name, t in path_tensors(p).items()}) for p in own]
    field = bare(loop.field)
    if hasattr(field, "constants"):
        # Bound anew: what it remembers here must not be met by a solve that records gradients.
        field = field.bind(dict(field.constants))
    clock = Clock(column(loop.clock.starts), column(loop.clock.spans))
    return Loop(field, loop.solver, paths, clock, loop.substeps)


def _compared(loop: Loop, layout: Layout, before: Any, after: Sequence[Tensor], allowed: float) -> float | None:
    """The error of the first interval of a loop that led from `before` to `after`, its components or the position."""
    try:
        expected = layout.components(loop.interval(0, before))
    except NumericalError:
        return None
    starts = layout.components(before)
    if len(after) != len(expected):
        position = layout.position(loop.solver) or 0
        starts, expected = ([parts[position]] for parts in (starts, expected))
    # In one pass over one array: what is compared is so small that each call costs more than its arithmetic.
    values = torch.cat((*starts, *after, *expected)).double().cpu().numpy()
    old, new, right = values.reshape(3, -1)
    return _error(old, new, right, allowed, ROUNDINGS * torch.finfo(asked(after[0])).eps)


def _error(old: np.ndarray, new: np.ndarray, right: np.ndarray, allowed: float, rounding: float) -> float | None:
    """The relative error of what was added, where it is more than is allowed and more than rounding."""
    # Of what was added, and not of the state: in a short step a wrong slope is little beside the state.
    sizes = np.abs(np.concatenate((right - old, new - right, right, old))).reshape(4, -1).max(1)
    added, error, *states = sizes.tolist()
    size = max(states)
    if not math.isfinite(error + size):
        # Beyond the numbers there is nothing to compare; the end of the solve tells of it.
        return None
    return error / max(added, 1e-300) if error > allowed * added + rounding * size else None
