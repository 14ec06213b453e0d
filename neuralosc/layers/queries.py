"""States of a recurrent layer at any times, from a run that knows them at the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralosc import arguments
from neuralosc.layers import inputs
from neuralosc.layers.missing import filled
from neuralosc.layers.recurrent import gathered, single
from neuralosc.layers.solution import beside
from solvers.base.clock import Clock
from solvers.base.control import mixed
from solvers.base.drive import driven, held_for, is_controlled
from solvers.base.sharing import refresh
from solvers.base.values import working
from solvers.errors import InputError
from solvers.protocol import ControlPath, instantaneous

if TYPE_CHECKING:
    from neuralosc.layers.solution import Solution
    from neuralosc.layers.stack import Stack


#: What a network is driven by where there is no sample.
FUTURES = {"zero": "an input of zero", "hold": "the last sample, held"}


def states_at(
    rnn: Stack, solution: Solution, at: Tensor | Sequence[float], causal: bool = False, future: str = "zero"
) -> Tensor:
    """States of the last layer at times `at`, `(times,)` or `(batch, times)`: `(batch, times, components, channels)`.

    Those of the reverse direction, whose clock starts at the timespan of the first sample after the last one and runs
    backwards, follow those of the forward one.
    """
    arguments.choice("future", future, FUTURES)
    if arguments.flag("causal", causal) and rnn.bidirectional:
        raise InputError(
            "causal is True, and the reverse direction of a bidirectional network has seen all that follows: leave it "
            "out, or make the network with bidirectional=False"
        )
    if rnn.solver.stochastic:
        raise InputError(
            f"solver {rnn.solver.name!r} draws noise anew on every path, and has no one state between samples: use "
            "rnn.sample_paths, or a solver without noise"
        )
    wanted = inputs.check_times(at, solution.inputs[-1])
    fields = range(len(solution.inputs))[-rnn.directions :]
    states = []
    for index in fields:
        times = wanted
        if solution.direction(index).reverse:
            spans = _exact(solution.timespans)
            times = (spans[..., :1] + spans.sum(-1, keepdim=True) - wanted).clamp_min(0)
        states.append(_states(rnn, solution, index, times, causal, future))
    return beside(states)


def advance(
    rnn: Stack, state: Tensor, timespan: Tensor | float, x: Tensor | None, time: Tensor | float | None
) -> Tensor:
    """See `ContinuousRNN.advance`."""
    if rnn.bidirectional:
        raise InputError(
            "advance goes on in time, which a reverse direction does not: make it with bidirectional=False"
        )
    if rnn.solver.stochastic:
        raise InputError(f"solver {rnn.solver.name!r} draws noise from sample to sample: use a solver without noise")
    batch = _batch_of(rnn, state)
    refresh(rnn)
    silence = state.new_zeros(batch, rnn.layer(0).input_size)
    span = inputs.check_per_sample("timespan", timespan, silence)
    sample = silence if x is None else filled(single(x, rnn), rnn.missing, span, None, rnn.decay)[0].squeeze(1)
    started = inputs.check_per_sample("time", 0.0 if time is None else time, sample)
    value, ends = sample, []
    for layer, start in enumerate(rnn.initial(state, sample)):
        dt = rnn.dts[layer]
        current = rnn.layer(layer).drive(value.unsqueeze(1)).squeeze(1)
        clock = Clock((started * dt,), (span * dt,))
        held = held_for(rnn.layer(layer), current)
        ends.append(rnn.run_paths(layer, [held], clock, start, jumps=False).end())
        # What a layer gives is no sample of the next one.
        value = sample.new_zeros(batch, rnn.hidden_size)
    return gathered(ends)


def transition(
    rnn: Stack,
    state: Tensor,
    x: Tensor,
    timespan: Tensor | float | None,
    layer: int | None,
    time: Tensor | float | None,
) -> Tensor:
    """See `ContinuousRNN.transition`."""
    if rnn.bidirectional:
        raise InputError("transition is a step forward in time, which a reverse direction is not: bidirectional=False")
    if rnn.solver.stochastic:
        raise InputError(f"solver {rnn.solver.name!r} draws noise from step to step: use a solver without noise")
    if rnn.control.memory or not rnn.control.causal:
        raise InputError(f"under control {rnn.control.name!r} a step depends on other samples too: use control 'hold'")
    if layer is None and rnn.num_layers > 1:
        raise InputError(
            f"this network has {rnn.num_layers} layers: give the layer whose step is meant, 0 for the first"
        )
    index = 0 if layer is None else layer
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < rnn.num_layers:
        raise InputError(f"layer is {layer!r}, expected one of 0 to {rnn.num_layers - 1}")
    field = rnn.layer(index)
    shapes = {"state": (state, (None, field.components, field.hidden_size)), "x": (x, (len(state), field.input_size))}
    for name, (value, shape) in shapes.items():
        if value.dim() != len(shape) or any(b is not None and a != b for a, b in zip(value.shape, shape, strict=True)):
            expected = "(batch, " + ", ".join(map(str, shape[1:])) + ")"
            raise InputError(f"{name} has shape {tuple(value.shape)}, expected {expected} of layer {index}")
    refresh(rnn)
    span = inputs.check_per_sample("timespan", 1.0 if timespan is None else timespan, x)
    started = inputs.check_per_sample("time", 0.0 if time is None else time, x)
    if timespan is not None:
        span = rnn.felt(torch.as_tensor(span, dtype=x.dtype).expand(len(x), 1), None, len(x), first=False)
    clock = Clock((started * rnn.dts[index],), (span * rnn.dts[index],))
    currents = field.currents(x.unsqueeze(1))
    return rnn.run_layer(index, rnn.control, clock, currents, state, gaps=timespan is not None).end()


def sample_times(rnn: Stack, solution: Solution) -> Tensor:
    """The time of each sample on the clock that `states_at` goes by, `(batch, time)`; the last one in the padding."""
    spans = solution.spans(len(solution.inputs) - rnn.directions)
    return _exact(spans.expand(len(solution.inputs[-1]), -1)).cumsum(-1)


def states_after(rnn: Stack, state: Tensor | None, at: Tensor | Sequence[float], given: dict[str, Any]) -> Tensor:
    """States of the last layer at times after a state, `(batch, times, components, channels)`, without any sample."""
    useless = [name for name, value in given.items() if value is not None]
    if state is None or useless:
        reason = f"{', '.join(useless)} was given" if useless else "no state was given, either"
        raise InputError(f"x is None and {reason}: give x, or a state and times alone to go on from it")
    batch = _batch_of(rnn, state)
    times = inputs.check_times(at, state.new_zeros(batch, 1))
    # Each time is reached from the state itself.
    ends = advance(rnn, state.repeat_interleave(times.shape[1], -3), times.reshape(-1), None, None)
    last = ends[-1] if rnn.num_layers > 1 else ends
    return last.reshape(batch, times.shape[1], *last.shape[1:])


def _batch_of(rnn: Stack, state: Tensor) -> int:
    """Samples in the batch of a state.

    Raises:
        InputError: it is no state of this network.
    """
    if not isinstance(state, Tensor):
        raise InputError(f"state is a {type(state).__name__}, expected a tensor: give the state of a stream")
    if state.dim() != 3 + (rnn.num_layers > 1):
        raise InputError(f"state has shape {tuple(state.shape)}, expected ([layers,] batch, components, hidden)")
    return state.shape[-3]


def _exact(spans: Tensor) -> Tensor:
    """Timespans in the precision of clocks."""
    return spans.double() if spans.device.type != "mps" else spans


def _states(rnn: Stack, solution: Solution, index: int, wanted: Tensor, causal: bool, future: str) -> Tensor:
    """States of one field at times `(batch, times)` of its own clock.

    Every query is a row of its own: it starts at the sample before its time, and all rows take one interval together.
    Where samples act in no time, the state at the time of a sample is the one after it.
    """
    x, dt = solution.inputs[index], rnn.dts[-1]
    batch = x.shape[0]
    spans = solution.spans(index).expand(batch, -1)
    exact = _exact(spans)
    times = torch.nn.functional.pad(exact.cumsum(-1), (1, 0))
    field = rnn.layer(index)
    samples, asked = times[:, 1:].detach().contiguous(), wanted.detach().to(times).contiguous()
    # The sample at a time itself is known then.
    place = torch.searchsorted(samples, asked, right=causal or instantaneous(field))
    rows = torch.arange(batch, device=x.device).unsqueeze(1).expand_as(place).reshape(-1)
    interval, count = place.reshape(-1), exact.shape[1]
    run_through = solution.trajectories[index].states()
    begun = solution.start[index]
    if causal and not solution.given:
        # Of the first sample nothing is known before it.
        begun = torch.zeros_like(begun)
    states = torch.cat((begun.unsqueeze(1), run_through), 1)[rows, interval]
    starts = times[rows, interval]
    lengths = (wanted.reshape(-1) - starts).clamp_min(0) * dt
    if is_controlled(field):
        # Before its first sample it rests.
        lengths = torch.where(interval == 0, 0.0, lengths)
    starts = (starts * dt).to(working(x.dtype)).unsqueeze(-1)
    lengths = lengths.to(x.dtype).unsqueeze(-1)

    def run(path: ControlPath, chosen: Tensor) -> Tensor:
        clock = Clock((starts[chosen],), (lengths[chosen],))
        return rnn.run_paths(index, [path], clock, states[chosen], jumps=False).end()

    ends = states.new_empty(0, *states.shape[1:])
    on_its_own = torch.full_like(interval, True, dtype=torch.bool) if causal else interval == count
    between, after = (~on_its_own).nonzero().squeeze(-1), on_its_own.nonzero().squeeze(-1)
    if len(between):
        paths, _ = driven(field, rnn.control, field.drive(x).unbind(1), Clock.of_spans(spans * dt))
        ends = run(mixed(paths, interval[between], rows[between]), between)
    if len(after):
        # Of each sequence what drives it after none, one, .. of its samples.
        last = torch.nn.functional.pad(x, (0, 0, 1, 0)) if future == "hold" else torch.zeros_like(x[:, :1])
        seen = interval[after] if future == "hold" else torch.zeros_like(after)
        ends = torch.cat((ends, run(held_for(field, field.drive(last)[rows[after], seen]), after)))
    order = torch.cat((between, after)).argsort()
    return ends[order].reshape(batch, -1, *states.shape[1:])
