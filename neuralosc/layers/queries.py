"""States of a recurrent layer at any times, from a run that knows them at the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralosc.layers import inputs
from neuralosc.layers.solution import beside
from solvers.base.clock import Clock
from solvers.base.control import Held, mixed
from solvers.base.values import working
from solvers.errors import InputError
from solvers.protocol import ControlPath

if TYPE_CHECKING:
    from neuralosc.layers.solution import Solution
    from neuralosc.layers.stack import Stack


def states_at(rnn: Stack, solution: Solution, at: Tensor | Sequence[float]) -> Tensor:
    """States of the last layer at times `at`, `(times,)` or `(batch, times)`: `(batch, times, components, channels)`.

    Those of the reverse direction, whose clock starts at the timespan of the first sample after the last one and runs
    backwards, follow those of the forward one.
    """
    if rnn.solver.stochastic:
        raise InputError(
            f"solver {rnn.solver.name!r} draws noise from sample to sample, not to times between them: use a solver "
            "without noise, or give the layer samples at those times"
        )
    wanted = inputs.check_times(at, solution.inputs[-1])
    fields = range(len(solution.inputs))[-rnn.directions :]
    states = []
    for index in fields:
        times = wanted
        if solution.direction(index).reverse:
            spans = _exact(solution.timespans)
            times = (spans[..., :1] + spans.sum(-1, keepdim=True) - wanted).clamp_min(0)
        states.append(_states(rnn, solution, index, times))
    return beside(states)


def _exact(spans: Tensor) -> Tensor:
    """Timespans in the precision of clocks."""
    return spans.double() if spans.device.type != "mps" else spans


def _states(rnn: Stack, solution: Solution, index: int, wanted: Tensor) -> Tensor:
    """States of one field at times `(batch, times)` of its own clock.

    Every query is a row of its own: it starts at the sample before its time, and all rows take one interval together.
    Where the state jumps at the samples, the one at the time of a sample is the one after it.
    """
    x, dt = solution.inputs[index], rnn.dts[-1]
    batch = x.shape[0]
    spans = solution.spans(index).expand(batch, -1)
    exact = _exact(spans)
    times = torch.nn.functional.pad(exact.cumsum(-1), (1, 0))
    field = rnn.layer(index)
    samples, asked = times[:, 1:].detach().contiguous(), wanted.detach().to(times).contiguous()
    place = torch.searchsorted(samples, asked, right="impulsive" in field.structure)
    rows = torch.arange(batch, device=x.device).unsqueeze(1).expand_as(place).reshape(-1)
    interval, count = place.reshape(-1), exact.shape[1]
    run_through = solution.trajectories[index].states()
    states = torch.cat((solution.start[index].unsqueeze(1), run_through), 1)[rows, interval]
    starts = times[rows, interval]
    lengths = (wanted.reshape(-1) - starts).clamp_min(0) * dt
    starts = (starts * dt).to(working(x.dtype)).unsqueeze(-1)
    lengths = lengths.to(x.dtype).unsqueeze(-1)

    def run(path: ControlPath, chosen: Tensor) -> Tensor:
        clock = Clock((starts[chosen],), (lengths[chosen],))
        return rnn.run_paths(index, [path], clock, states[chosen], jumps=False).end()

    ends = states.new_empty(0, *states.shape[1:])
    between, after = (interval < count).nonzero().squeeze(-1), (interval == count).nonzero().squeeze(-1)
    if len(between):
        paths = rnn.control.paths(field.drive(x).unbind(1), Clock.of_spans(spans * dt))
        ends = run(mixed(paths, interval[between], rows[between]), between)
    if len(after):
        silence = field.drive(torch.zeros_like(x[:, :1])).squeeze(1)
        ends = torch.cat((ends, run(Held(silence[rows[after]]), after)))
    order = torch.cat((between, after)).argsort()
    return ends[order].reshape(batch, -1, *states.shape[1:])
