"""One pass through a stack: each layer runs over what the one before gives, in one direction or in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

import solvers
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.recurrent import gathered
from solvers.base.sharing import refresh

if TYPE_CHECKING:
    from neuralosc.layers.stack import Stack


@dataclass(frozen=True)
class Direction:
    """An order in which a layer sees the samples: as they are, or the valid ones from the last to the first.

    Attributes:
        reverse: from the last to the first.
        spans: time elapsed since the sample that was seen before, in units of dt, `(time,)` or `(batch, time)`; None
            for ones.
        index: which sample is seen at each place, `(batch, time)`, where sequences have lengths of their own.
    """

    reverse: bool
    spans: Tensor | None
    index: Tensor | None = None

    def turned(self, values: Tensor) -> Tensor:
        """Values `(batch, time, ...)` in the order in which they are seen; done again, in their own order.

        In the padding the value at the end of the valid ones stays.
        """
        if not self.reverse:
            return values
        if self.index is None:
            return values.flip(1)
        index = self.index.reshape(*self.index.shape, *[1] * (values.dim() - 2))
        return torch.take_along_dim(values, index, 1)


def directions(spans: Tensor | None, valid: Tensor | None, count: int) -> tuple[Direction, ...]:
    """The forward direction, and the reverse one if `count` is 2.

    Reversed sample j > 0 is seen when the time between it and the one before it has passed, the timespan of the sample
    that was seen before; reversed sample 0, before which there is none, has the timespan of the first sample.

    Args:
        spans: the timespans, None for ones; given where `valid` is.
        valid: which samples are valid, `(batch, time)`; None for all.
        count: 1 or 2.
    """
    forward = Direction(False, spans)
    if count == 1:
        return (forward,)
    if spans is None:
        return forward, Direction(True, None)
    if valid is None:
        return forward, Direction(True, torch.cat((spans[..., :1], spans[..., 1:].flip(-1)), -1))
    steps, lengths = torch.arange(valid.shape[1], device=valid.device), valid.sum(1, keepdim=True)
    before = torch.where(valid, spans.gather(1, (lengths - steps) % lengths.clamp_min(1)), 0)
    return forward, Direction(True, before, (lengths - 1 - steps).clamp_min(0))


@dataclass(frozen=True)
class Solution:
    """Everything a pass of a `ContinuousRNN` computed.

    What is said to be of each field has one entry per layer, and in a bidirectional network two: forward, reverse.

    Attributes:
        output: of the last layer after every sample, `(batch, time, hidden)`, dropout and skip connection included; of
            both directions beside each other in a bidirectional network.
        state: state after the last sample, `([layers * directions,] batch, components, hidden)`.
        trajectories: what each field did, step by step.
        inputs: what went into each field, `(batch, time, features)`, in the order in which it was seen: x, missing
            values filled, and the outputs of the layers before the last.
        start: state at the beginning, of each field.
        directions: the orders in which the fields of a layer see the samples.
        given: the states at the beginning were given, not made by the fields of their first samples.
    """

    output: Tensor
    state: Tensor
    trajectories: list[solvers.Trajectory]
    inputs: list[Tensor]
    start: Sequence[Tensor]
    directions: tuple[Direction, ...]
    given: bool = True

    @property
    def timespans(self) -> Tensor:
        """Time elapsed since the previous sample, in units of dt, `(time,)` or `(batch, time)`, 0 in padding."""
        return self.spans(0)

    def spans(self, field: int) -> Tensor:
        """Time elapsed since the sample that a field saw before, like `timespans`."""
        spans = self.direction(field).spans
        return self.inputs[0].new_ones(self.inputs[0].shape[1]) if spans is None else spans

    def direction(self, field: int) -> Direction:
        """The order in which a field sees the samples."""
        return self.directions[field % len(self.directions)]

    @property
    def layers(self) -> list[Tensor]:
        """States of each layer after every sample, `(batch, time, components, directions * hidden)` each."""
        return [self._states(layer) for layer in range(len(self.trajectories) // len(self.directions))]

    @property
    def states(self) -> Tensor:
        """States of the last layer, `(batch, time, components, directions * hidden)`."""
        return self._states(-1)

    def _states(self, layer: int) -> Tensor:
        fields = range(len(self.trajectories))[layer * len(self.directions) :][: len(self.directions)]
        return beside([self.direction(i).turned(self.trajectories[i].states()) for i in fields])

    @property
    def evaluations(self) -> int:
        """Right-hand-side evaluations per sequence, over all layers."""
        return sum(trajectory.evaluations for trajectory in self.trajectories)


def run(
    rnn: Stack,
    x: Tensor,
    state: Tensor | None,
    timespans: Tensor | None,
    lengths: Lengths | None,
    positions_only: bool,
) -> Solution:
    """One pass; with `positions_only` the solution may know no states but the last."""
    refresh(rnn)
    x, spans, valid = rnn.checked(x, timespans, lengths)
    ways = directions(spans, valid, rnn.directions)
    starts = list(rnn.initial(state, x))
    trajectories: list[solvers.Trajectory] = []
    inputs: list[Tensor] = []
    for _ in range(rnn.num_layers):
        outputs = []
        for way in ways:
            index, seen = len(inputs), way.turned(x)
            gaps = timespans is not None
            if state is None:
                starts[index] = rnn.start(index, starts[index], seen, valid)
            trajectory = rnn.run_from(index, seen, starts[index], way.spans, positions_only, gaps)
            inputs.append(seen)
            trajectories.append(trajectory)
            outputs.append(way.turned(trajectory.positions()))
        x = joined(rnn, x, outputs)
    end = gathered([trajectory.end() for trajectory in trajectories])
    return Solution(x, end, trajectories, inputs, starts, ways, state is not None)


def joined(rnn: Stack, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """What a layer gives, `(batch, time, features)`, from what went into it and the positions of its directions."""
    output = beside(outputs)
    if rnn.training and rnn.dropout:
        output = output * functional.dropout(torch.ones_like(output[:, :1]), rnn.dropout)
    if not rnn.residual:
        return output
    # Layers after the first have inputs and outputs of one size.
    return output + (x if rnn.skip is None or x.shape[-1] == output.shape[-1] else rnn.skip(x))


def beside(parts: Sequence[Tensor]) -> Tensor:
    """The channels of the directions beside each other."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=-1)
