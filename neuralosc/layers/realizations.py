"""Paths of a noisy layer through any times: what may happen, many times over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralosc import arguments
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.queries import FUTURES
from neuralosc.layers.solution import joined
from solvers.base.clock import Clock
from solvers.base.drive import driven, held_for
from solvers.base.gathered import NotGathered, gathered, gathered_paths
from solvers.base.sharing import refresh
from solvers.base.values import working
from solvers.errors import InputError
from solvers.protocol import instantaneous

if TYPE_CHECKING:
    from neuralosc.layers.stack import Stack


def sample_paths(
    rnn: Stack,
    x: Tensor,
    timespans: Tensor | None,
    at: Tensor | Sequence[float],
    state: Tensor | None,
    lengths: Lengths | None,
    count: int,
    future: str,
) -> Tensor:
    """See `ContinuousRNN.sample_paths`."""
    _allowed(rnn)
    arguments.choice("future", future, FUTURES)
    paths = arguments.count("count", count)
    refresh(rnn)
    x, spans, valid = rnn.checked(x, timespans, lengths)
    batch = x.shape[0]
    wanted = inputs.check_times(at, x).repeat(paths, 1)
    starts = [start.repeat(paths, 1, 1) for start in rnn.initial(state, x)]
    x = x.repeat(paths, 1, 1)
    spans = spans if spans is None or spans.dim() == 1 else spans.repeat(paths, 1)
    valid = None if valid is None else valid.repeat(paths, 1)
    last = rnn.num_layers - 1
    for layer in range(last):
        start = rnn.start(layer, starts[layer], x, valid) if state is None else starts[layer]
        trajectory = rnn.run_from(layer, x, start, spans, gaps=timespans is not None)
        x = joined(rnn, x, [trajectory.positions()])
    start = rnn.start(last, starts[last], x, valid) if state is None else starts[last]
    gaps = (x.new_ones(x.shape[1]) if spans is None else spans).expand(len(x), -1)
    states = _through(rnn, last, x, gaps, wanted, start, future)
    return states.reshape(paths, batch, *states.shape[1:])


def _allowed(rnn: Stack) -> None:
    """Refuse networks whose paths through other times than those of samples are not known."""
    if not rnn.solver.stochastic:
        raise InputError(
            f"solver {rnn.solver.name!r} draws no noise, so that there is one path: use rnn.trajectory, or a solver "
            "with noise, such as 'euler_maruyama'"
        )
    if rnn.bidirectional:
        raise InputError(
            "sample_paths goes on in time, which a reverse direction does not: make it with bidirectional=False"
        )
    if any(instantaneous(field) for field in rnn.fields):
        raise InputError("sample_paths needs a field without jumps at the samples")
    if any(getattr(field, "training_only", False) and not field.training for field in rnn.fields):
        raise InputError(
            "the network is in evaluation mode, in which its fields have no noise (training_only): use rnn.train(), or "
            "make them without that"
        )
    if rnn.training and rnn.dropout:
        raise InputError("sample_paths with dropout would draw a mask besides the noise: call rnn.eval() first")


def _through(rnn: Stack, index: int, x: Tensor, spans: Tensor, wanted: Tensor, start: Tensor, future: str) -> Tensor:
    """States of one field at times `(batch, times)`, in steps that end at them as well as at the samples."""
    field, dt = rnn.layer(index), rnn.dts[index]
    ends = spans.to(wanted).cumsum(-1)
    begin, total = ends.new_zeros(len(x), 1), ends[:, -1:]
    # Until the last sample; what is asked for later lies at it here.
    merged, order = torch.cat((ends, wanted.minimum(total)), -1).sort(dim=-1, stable=True)
    lengths = merged.diff(dim=-1, prepend=begin)
    owner = torch.searchsorted(ends.contiguous(), merged.contiguous()).clamp_max(ends.shape[1] - 1)
    of_samples, clock = driven(field, rnn.control, field.currents(x), Clock.of_spans(spans * dt))
    # Where no time passes before the first sample none does in a part of it.
    still = torch.stack([torch.as_tensor(span).to(x).expand(len(x), 1) for span in clock.spans], 1).squeeze(-1) == 0
    lengths = torch.where(still.gather(1, owner), 0.0, lengths)
    try:
        paths = gathered_paths(of_samples, owner)
    except NotGathered:
        raise InputError(
            f"control {rnn.control.name!r} has paths that know no single samples: use one of solvers.CONTROLS"
        ) from None
    states = rnn.run_paths(index, paths, _clock(merged - lengths, lengths, dt, x), start, jumps=False).states()
    place = order.argsort(dim=-1)[:, ends.shape[1] :]
    before = gathered(states, place)
    # After it, from the state there, whatever the order in which the times were asked for.
    late, sorting = (wanted - total).clamp_min(0).sort(dim=-1, stable=True)
    further = late.diff(dim=-1, prepend=begin)
    value = x[:, -1] if future == "hold" else torch.zeros_like(x[:, -1])
    held = [held_for(field, field.drive(value.unsqueeze(1)).squeeze(1))] * late.shape[1]
    after_end = rnn.run_paths(index, held, _clock(total + late - further, further, dt, x), states[:, -1], jumps=False)
    after = gathered(after_end.states(), sorting.argsort(dim=-1))
    return torch.where((wanted > total)[..., None, None], after, before)


def _clock(starts: Tensor, spans: Tensor, dt: float, like: Tensor) -> Clock:
    """A clock of times in units of dt, `(batch, intervals)`."""
    exact, lengths = (starts * dt).to(working(like.dtype)), (spans * dt).to(like.dtype)
    return Clock(exact.unsqueeze(-1).unbind(1), lengths.unsqueeze(-1).unbind(1))
