"""A recurrent layer fed one sample at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralosc.layers import inputs
from neuralosc.layers.recurrent import gathered
from neuralosc.layers.solution import joined
from solvers.base.clock import Clock
from solvers.base.sharing import refresh
from solvers.errors import InputError
from solvers.protocol import ControlPath, Time

if TYPE_CHECKING:
    from neuralosc.layers.stack import Stack


@dataclass(frozen=True)
class Stream:
    """What a step needs of the ones before, where the state alone is not enough.

    Attributes:
        state: `([layers,] batch, components, hidden)`.
        currents: the last input currents of each layer, `(batch, channels)` each: as many as the control looks back on.
        timespans: the spans before those samples, in units of dt.
        seen: the last value of each input, `(batch, input)`.
    """

    state: Tensor
    currents: tuple[tuple[Tensor, ...], ...]
    timespans: tuple[Time, ...]
    seen: Tensor

    def detach(self) -> Stream:
        """The same, cut off from the steps it came from: for truncated backpropagation through time."""
        currents = tuple(tuple(u.detach() for u in layer) for layer in self.currents)
        spans = tuple(span.detach() if isinstance(span, Tensor) else span for span in self.timespans)
        return Stream(self.state.detach(), currents, spans, self.seen.detach())


def step(
    rnn: Stack, x: Tensor, state: Tensor | Stream | None, timespan: Tensor | float | None, time: Tensor | float
) -> tuple[Tensor, Tensor | Stream]:
    """See `ContinuousRNN.step`."""
    if rnn.bidirectional:
        raise InputError(
            "step needs the samples to come where a network is bidirectional: call it on whole sequences, or make it "
            "with bidirectional=False"
        )
    if not rnn.control.causal:
        raise InputError(
            f"control {rnn.control.name!r} needs the sample after, which a step does not have: use a causal one, "
            "such as 'linear'"
        )
    if rnn.training and rnn.dropout:
        raise InputError("step with dropout would draw a new mask for each sample: call rnn.eval() first")
    refresh(rnn)
    before = state if isinstance(state, Stream) else None
    sample = _sample(rnn, x, before)
    span = inputs.check_per_sample("timespan", 1.0 if timespan is None else timespan, x)
    started = inputs.check_per_sample("time", time, x)
    starts = rnn.initial(state.state if isinstance(state, Stream) else state, sample)
    # Given a state alone, the stream begins here: the control looks back on nothing.
    spans = (*(before.timespans if before else ()), span)
    value, currents, ends = sample, [], []
    for layer, start in enumerate(starts):
        current = rnn.layer(layer).drive(value.unsqueeze(1)).squeeze(1)
        window = (*(before.currents[layer] if before else ()), current)
        trajectory = rnn.run_paths(layer, *_last_interval(rnn, layer, window, spans, started), start)
        value = joined(rnn, value.unsqueeze(1), [trajectory.positions()]).squeeze(1)
        ends.append(trajectory.end())
        currents.append(window)
    end = gathered(ends)
    memory = rnn.control.memory
    if not memory and rnn.missing == "error":
        return value, end
    kept = tuple(window[len(window) - memory :] if memory else () for window in currents)
    return value, Stream(end, kept, spans[-memory:] if memory else (), sample)


def _sample(rnn: Stack, x: Tensor, before: Stream | None) -> Tensor:
    """The sample, checked, its missing values taken from those before."""
    if not isinstance(x, Tensor) or x.dim() != 2:
        got = f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
        raise InputError(f"x {got}, expected one sample (batch, {rnn.input_size}): call the layer for whole sequences")
    series = x.unsqueeze(1)
    inputs.check_sequence(series, rnn.input_size, rnn)
    if before is None:
        return inputs.filled(series, rnn.missing).squeeze(1)
    if before.seen.shape != x.shape:
        raise InputError(f"x has shape {tuple(x.shape)}, the stream goes on from samples {tuple(before.seen.shape)}")
    return inputs.filled(torch.stack((before.seen, x), 1), rnn.missing)[:, 1]


def _last_interval(
    rnn: Stack, layer: int, window: tuple[Tensor, ...], spans: tuple[Time, ...], started: Time
) -> tuple[list[ControlPath], Clock]:
    """The input and the clock of the interval that ends at the last sample of a window."""
    dt = rnn.dts[layer]
    lengths = tuple(span * dt for span in spans)
    starts = [started * dt]
    for length in reversed(lengths[:-1]):
        starts.insert(0, starts[0] - length)
    path = rnn.control.paths(window, Clock(tuple(starts), lengths))[-1]
    return [path], Clock((starts[-1],), (lengths[-1],))
