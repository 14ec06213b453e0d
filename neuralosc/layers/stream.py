"""A recurrent layer fed bit by bit: one sample at a time, or chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralosc import arguments
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.missing import Memory, filled
from neuralosc.layers.recurrent import gathered, single
from neuralosc.layers.solution import joined
from solvers.base.clock import Clock
from solvers.base.drive import driven
from solvers.base.gathered import gathered as gathered_rows
from solvers.base.sharing import refresh
from solvers.base.values import concrete
from solvers.errors import InputError
from solvers.protocol import Time

if TYPE_CHECKING:
    from neuralosc.layers.stack import Stack


@dataclass(frozen=True)
class Stream:
    """What a step, or a chunk, needs of the ones before, where the state alone is not enough.

    Attributes:
        state: `([layers,] batch, components, hidden)`.
        currents: the last input currents of each layer, `(batch, channels)` each: as many as the control looks back on.
        timespans: the spans before those samples, in units of dt.
        memory: of the samples: the last value of each feature, and the time since.
        time: time of the last sample, in units of dt, a number or `(batch, 1)`.
        few: which samples of the batch have seen fewer than there are currents, `(batch,)`; None where none has.
        fresh: there was no sample yet, and no state was given: fields make theirs of the first sample.
    """

    state: Tensor
    currents: tuple[tuple[Tensor, ...], ...]
    timespans: tuple[Time, ...]
    memory: Memory
    time: Time = 0.0
    few: Tensor | None = None
    fresh: bool = False

    @property
    def seen(self) -> Tensor:
        """The last value of each feature, `(batch, input)`."""
        return self.memory.last

    def detach(self) -> Stream:
        """The same, cut off from the steps it came from: for truncated backpropagation through time."""
        currents = tuple(tuple(u.detach() for u in layer) for layer in self.currents)
        spans = tuple(span.detach() if isinstance(span, Tensor) else span for span in self.timespans)
        time = self.time.detach() if isinstance(self.time, Tensor) else self.time
        return Stream(self.state.detach(), currents, spans, self.memory.detach(), time, self.few, self.fresh)

    def check_known(self, going_on: Tensor | None) -> None:
        """Refuse a sequence that goes on (all do for None) from fewer samples than a control looks back on.

        Raises:
            InputError: such a sequence.
        """
        if self.few is None:
            return
        wrong = self.few if going_on is None else self.few & going_on
        if bool(wrong.any()):
            raise InputError(
                f"sequence {int(wrong.nonzero()[0])} goes on after chunks with fewer samples of it than the control "
                "looks back on, where others have as many: give sequences their first samples in one chunk, or use "
                "control 'hold'"
            )


def begin(rnn: Stack, batch: int, state: Tensor | None, time: Tensor | float) -> Stream:
    """See `ContinuousRNN.begin`."""
    like = next(rnn.parameters(), torch.empty(0) if state is None else state)
    seen = like.detach().new_zeros(arguments.count("batch", batch), rnn.input_size)
    start = gathered(rnn.initial(state, seen))
    first = inputs.check_per_sample("time", time, seen)
    return Stream(start, ((),) * rnn.num_layers, (), Memory.none(seen), first, fresh=state is None)


def _allowed(rnn: Stack, what: str) -> None:
    """Refuse networks that cannot be fed bit by bit."""
    if rnn.bidirectional:
        raise InputError(
            f"{what} needs the samples to come where a network is bidirectional: call it on whole sequences, or make "
            "it with bidirectional=False"
        )
    if not rnn.control.causal:
        raise InputError(
            f"control {rnn.control.name!r} needs the sample after, which {what} does not have: use a causal one, "
            "such as 'linear'"
        )
    if rnn.training and rnn.dropout:
        raise InputError(f"{what} with dropout would draw a mask of its own: call rnn.eval() first")


def run_chunk(
    rnn: Stack, x: Tensor, before: Stream, timespans: Tensor | None, lengths: Lengths | None
) -> tuple[Tensor, Stream, Tensor]:
    """A pass over the next samples of a stream: outputs, the stream after them, and x with missing values filled."""
    _allowed(rnn, "a chunk")
    refresh(rnn)
    x, spans, valid, memory_after = rnn.checked_after(before.memory, x, timespans, lengths, first=not before.timespans)
    before.check_known(None if valid is None else valid[:, 0])
    chunk: Sequence[Time] = _per_sample(spans, x)
    window_spans = (*before.timespans, *chunk)
    kept = Kept.of(rnn.control.memory, len(before.timespans), len(chunk), valid)
    value, currents, ends = x, [], []
    for layer, start in enumerate(rnn.initial(before.state, x)):
        start = _started(rnn, layer, start, value, valid) if before.fresh else start
        window = (*before.currents[layer], *rnn.layer(layer).currents(value))
        clock = _clock(rnn, layer, window_spans, len(before.timespans), before.time)
        first = len(window) - len(chunk)
        paths, clock = driven(rnn.layer(layer), rnn.control, window, clock)
        own = Clock(clock.starts[first:], clock.spans[first:])
        trajectory = rnn.run_paths(layer, paths[first:], own, start)
        value = joined(rnn, value, [trajectory.positions()])
        ends.append(trajectory.end())
        currents.append(kept.last(window))
    passed = sum(chunk[1:], chunk[0])
    few = before.few if kept.few is None else kept.few if before.few is None else kept.few | before.few
    spans_kept = kept.last(window_spans)
    return value, Stream(gathered(ends), tuple(currents), spans_kept, memory_after, before.time + passed, few), x


@dataclass(frozen=True)
class Kept:
    """What is kept of a window of samples, those of a chunk and the ones before, for the chunk that follows.

    Attributes:
        count: how many of the last ones.
        places: which of the window they are in each sequence, `(batch, count)`; None for the last.
        few: which sequences have fewer, `(batch,)`; None where none has.
    """

    count: int
    places: Tensor | None = None
    few: Tensor | None = None

    @classmethod
    def of(cls, memory: int, earlier: int, chunk: int, valid: Tensor | None) -> Kept:
        """Of so many `earlier` samples and a chunk of which some are `valid`, `(batch, chunk)`, as many as `memory`."""
        count = min(memory, earlier + chunk)
        if valid is None or not count or bool(valid.all()):
            return cls(count)
        places = earlier + valid.sum(1, keepdim=True) - count + torch.arange(count, device=valid.device)
        few = places[:, 0] < 0
        return cls(count, places.clamp_min(0), few if bool(few.any()) else None)

    def last(self, window: Sequence[Time]) -> tuple[Any, ...]:
        """The last entries of a window, numbers or `(batch, ...)` each."""
        if self.places is None or not self.count:
            return tuple(window[len(window) - self.count :])
        like = next(entry for entry in window if isinstance(entry, Tensor))
        whole = [torch.as_tensor(entry).to(like).expand(len(self.places), -1) for entry in window]
        return gathered_rows(torch.stack(whole, 1), self.places).unbind(1)


def _started(rnn: Stack, layer: int, rest: Tensor, x: Tensor, valid: Tensor | None) -> Tensor:
    """The initial state of a layer, where a stream begins with these samples."""
    start = rnn.start(layer, rest, x)
    if start is not rest and valid is not None and not bool(valid.any(1).all()):
        raise InputError(
            "lengths are 0 for some samples of the first chunk of a stream, whose states are made of their first "
            "samples: begin it with a chunk that has some of all"
        )
    return start


def _per_sample(spans: Tensor | None, x: Tensor) -> Sequence[Time]:
    """The span before each sample: numbers, or `(batch, 1)` each."""
    if spans is None:
        return (1.0,) * x.shape[1]
    if spans.dim() == 1 and not spans.requires_grad and concrete(spans):
        return tuple(spans.tolist())
    return tuple(span.reshape(-1, 1) for span in spans.unbind(-1))


def _clock(rnn: Stack, layer: int, spans: Sequence[Time], earlier: int, started: Time) -> Clock:
    """The clock of a window whose first samples are `earlier` ones; what comes after them begins at `started`."""
    dt = rnn.dts[layer]
    lengths = tuple(span * dt for span in spans)
    starts = [started * dt]
    for length in reversed(lengths[:earlier]):
        starts.insert(0, starts[0] - length)
    for length in lengths[earlier:-1]:
        starts.append(starts[-1] + length)
    return Clock(tuple(starts), lengths)


def step(
    rnn: Stack, x: Tensor, state: Tensor | Stream | None, timespan: Tensor | float | None, time: Tensor | float | None
) -> tuple[Tensor, Tensor | Stream]:
    """See `ContinuousRNN.step`."""
    _allowed(rnn, "step")
    refresh(rnn)
    before = state if isinstance(state, Stream) else None
    if before is not None:
        before.check_known(None)
    fresh = before.fresh if before else state is None
    series = single(x, rnn)
    span = inputs.check_per_sample("timespan", 1.0 if timespan is None else timespan, x)
    if isinstance(span, Tensor) or not span:
        first = before is None or not before.timespans
        span = rnn.felt(torch.as_tensor(span).to(x).expand(x.shape[0], 1), None, 1, first)
    if before is not None and before.seen.shape != x.shape:
        raise InputError(f"x has shape {tuple(x.shape)}, the stream goes on from samples {tuple(before.seen.shape)}")
    shown, seen = filled(series, rnn.missing, span, before.memory if before else None, rnn.decay)
    sample = shown.squeeze(1)
    known = 0.0 if before is None else before.time
    started = known if time is None else inputs.check_per_sample("time", time, x)
    starts = rnn.initial(state.state if isinstance(state, Stream) else state, sample)
    # Given a state alone, the stream begins here: the control looks back on nothing.
    spans = (*(before.timespans if before else ()), span)
    value, currents, ends = sample, [], []
    for layer, start in enumerate(starts):
        current = rnn.layer(layer).drive(value.unsqueeze(1)).squeeze(1)
        window = (*(before.currents[layer] if before else ()), current)
        start = rnn.start(layer, start, value.unsqueeze(1)) if fresh else start
        paths, clock = driven(rnn.layer(layer), rnn.control, window, _clock(rnn, layer, spans, len(spans) - 1, started))
        last = Clock((clock.starts[-1],), (clock.spans[-1],))
        trajectory = rnn.run_paths(layer, [paths[-1]], last, start)
        value = joined(rnn, value.unsqueeze(1), [trajectory.positions()]).squeeze(1)
        ends.append(trajectory.end())
        currents.append(window)
    end = gathered(ends)
    memory = rnn.control.memory
    if not memory and rnn.missing == "error" and before is None and (time is not None or not rnn.timed):
        return value, end
    kept = tuple(window[len(window) - memory :] if memory else () for window in currents)
    return value, Stream(end, kept, spans[-memory:] if memory else (), seen, started + span)
