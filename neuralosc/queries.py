"""States of a recurrent layer at any times, from a run that knows them at the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import solvers
from neuralosc import inputs
from solvers.clock import Clock
from solvers.control import Held, mixed
from solvers.errors import InputError
from solvers.protocol import ControlPath

if TYPE_CHECKING:
    from neuralosc.rnn import ContinuousRNN, Solution


def states_at(rnn: ContinuousRNN, solution: Solution, at: Tensor | Sequence[float]) -> Tensor:
    """States of the last layer at times `at`, `(times,)` or `(batch, times)`: `(batch, times, components, hidden)`.

    Every query is a row of its own: it starts at the sample before its time, and all rows take one interval together.
    """
    if rnn.solver.family == "stochastic":
        raise InputError(
            f"solver {rnn.solver.name!r} draws noise from sample to sample, not to times between them: use a solver "
            "without noise, or give the layer samples at those times"
        )
    x = solution.inputs[-1]
    batch, dt = x.shape[0], rnn.dts[-1]
    wanted = inputs.check_times(at, x)
    spans = solution.timespans.expand(batch, -1)
    exact = spans.double() if spans.device.type != "mps" else spans
    times = torch.nn.functional.pad(exact.cumsum(-1), (1, 0))
    index = torch.searchsorted(times[:, 1:].detach().contiguous(), wanted.detach().to(times).contiguous())
    rows = torch.arange(batch, device=x.device).unsqueeze(1).expand_as(index).reshape(-1)
    interval, count = index.reshape(-1), spans.shape[1]
    states = torch.cat((solution.start[-1].unsqueeze(1), solution.states), 1)[rows, interval]
    starts = times[rows, interval]
    lengths = (wanted.reshape(-1) - starts).clamp_min(0) * dt
    starts, lengths = ((t * factor).to(x.dtype).unsqueeze(-1) for t, factor in ((starts, dt), (lengths, 1)))

    def run(path: ControlPath, chosen: Tensor) -> Tensor:
        clock = Clock((starts[chosen],), (lengths[chosen],))
        given = solvers.Control("given", lambda samples, clock: [path])
        return rnn.run_layer(rnn.num_layers - 1, given, clock, (), states[chosen]).end()

    found = states.new_empty(0, *states.shape[1:])
    between, after = (interval < count).nonzero().squeeze(-1), (interval == count).nonzero().squeeze(-1)
    field = rnn.layer(-1)
    if len(between):
        paths = rnn.control.paths(field.drive(x).unbind(1), Clock.of_spans(spans * dt))
        found = run(mixed(paths, interval[between], rows[between]), between)
    if len(after):
        silence = field.drive(torch.zeros_like(x[:, :1])).squeeze(1)
        found = torch.cat((found, run(Held(silence[rows[after]]), after)))
    order = torch.cat((between, after)).argsort()
    return found[order].reshape(batch, -1, *states.shape[1:])
