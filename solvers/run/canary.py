"""Whether a fast path still follows its field: at each solve one interval of one sample, against the plain steps.

The step of a fast path is recorded once. What it can read is looked at before each solve (`solvers.compiled.step`);
where that is something nobody can look at, such as a file, the comparison here finds a change.
"""

from __future__ import annotations

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
from solvers.compiled.step.layout import Layout
from solvers.errors import NumericalError
from solvers.run.check import Solve, beginning, tolerance

#: Steps in an interval beyond which a part of it is compared, in a short solve of its own.
STEPS = 3

#: What rounding may make of a state in one interval, in units of its precision.
ROUNDINGS = 64


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
    sample = call.kernel.solves % batch
    call.kernel.solves += 1
    allowed = call.kernel.slack * tolerance(start)
    if loop.substeps > STEPS:
        short = of_sample(beginning(loop, min(2, len(loop)), 2), batch, 0, 2, sample)
        before = start[sample : sample + 1]
        with torch.set_grad_enabled(call.kernel.backward is not None):
            after = torch.stack([out[0] for out in again(short, before)], 1)
        return _compared(short, layout, before.detach(), after.detach(), allowed)
    # From the second interval on a state is seldom zero, and no product of it is lost.
    i = 1 if len(outs) == layout.total and len(loop) > 1 else 0
    with torch.no_grad():
        before = torch.stack([out[i - 1, sample] for out in outs])[None] if i else start[sample : sample + 1]
        after = torch.stack([out[i, sample] for out in outs])[None]
        return _compared(of_sample(loop, batch, i, i + 1, sample), layout, before, after, allowed)


def of_sample(loop: Loop, batch: int, first: int, last: int, sample: int) -> Loop:
    """Intervals `first` to `last` - 1 of a loop, for one sample of its batch."""
    rows = slice(sample, sample + 1)

    def row(value: Any) -> Any:
        return value[rows] if isinstance(value, Tensor) and value.dim() >= 2 and len(value) == batch else value

    def column(values: Sequence[Any]) -> Sequence[Any]:
        if isinstance(values, Series):
            return Series(values.whole[rows, first:last])
        # One tensor for all intervals stays one.
        known = {id(value): row(value) for value in values[first:last]}
        return [known[id(value)] for value in values[first:last]]

    paths: Sequence[Any] = loop.paths
    if isinstance(paths, Paths):
        paths = Paths(paths.kind, **{name: column(values) for name, values in paths.columns.items()})
    else:
        own = paths[first:last]
        paths = [with_path_tensors(p, {name: row(t) for name, t in path_tensors(p).items()}) for p in own]
    field = bare(loop.field)
    if hasattr(field, "constants"):
        # Bound anew: what it remembers here must not be met by a solve that records gradients.
        field = field.bind(dict(field.constants))
    clock = Clock(column(loop.clock.starts), column(loop.clock.spans))
    return Loop(field, loop.solver, paths, clock, loop.substeps)


def _compared(loop: Loop, layout: Layout, before: Tensor, after: Tensor, allowed: float) -> float | None:
    """The error of the first interval of a loop that led from `before` to `after`, which may be the position alone."""
    with torch.no_grad():
        try:
            expected = layout.packed(loop.interval(0, layout.taken(before)))
        except NumericalError:
            return None
        if after.shape != before.shape:
            position = layout.position(loop.solver) or 0
            before, expected = (packed[:, position : position + 1] for packed in (before, expected))
        return _error(before, after, expected, allowed)


def _error(before: Tensor, after: Tensor, expected: Tensor, allowed: float) -> float | None:
    """The relative error of what was added, where it is more than is allowed and more than rounding."""
    rounding = ROUNDINGS * torch.finfo(asked(before)).eps
    # Of what was added, and not of the state: in a short step a wrong slope is little beside the state.
    old, new, right = torch.cat((before, after, expected)).double().cpu().numpy()
    added, error = np.abs(right - old).max(), np.abs(new - right).max()
    size = max(np.abs(right).max(), np.abs(old).max())
    if not np.isfinite(error + size):
        # Beyond the numbers there is nothing to compare; the end of the solve tells of it.
        return None
    return float(error / max(added, 1e-300)) if error > allowed * added + rounding * size else None
