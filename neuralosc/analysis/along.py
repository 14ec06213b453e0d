"""The steps of a layer along its own run, each as a map of states, all of them in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import solvers
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import continuous, layer_of, network, shown, watched
from neuralosc.layers.recurrent import RecurrentLayer, stepped
from neuralosc.layers.rnn import ContinuousRNN
from solvers.base.clock import Clock
from solvers.base.control import mixed
from solvers.base.drive import driven, is_controlled
from solvers.base.values import working
from solvers.errors import InputError
from solvers.protocol import ControlPath

#: Bytes of Jacobians that are made at once.
JACOBIAN_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Walk:
    """A run of one layer, and its steps: from the state before each sample to the state after it.

    Attributes:
        rnn: the network, in float64.
        layer: which of its layers.
        states: before the first sample and after each, `(batch, time + 1, components, hidden)`.
        spans: length of each step, in units of time, `(batch, time)`; 0 in the padding.
        starts: time at the start of each step, `(batch, time)`.
        valid: which steps are none of the padding, `(batch, time)`.
        paths: what drives the layer on each interval.
    """

    rnn: ContinuousRNN
    layer: int
    states: Tensor
    spans: Tensor
    starts: Tensor
    valid: Tensor
    paths: tuple[ControlPath, ...]

    @property
    def size(self) -> int:
        """Numbers of a state."""
        return self.states[0, 0].numel()

    @property
    def lengths(self) -> Tensor:
        """Steps of each sequence, `(batch,)`."""
        return self.valid.sum(1)

    def step(self, rows: Tensor, places: Tensor, solver: str | None = None, substeps: int = 1) -> solvers.Transition:
        """Step `places[i]` of sequence `rows[i]` as a map of states `(len(rows), components, hidden)`.

        Args:
            rows, places: numbers `(steps,)`.
            solver, substeps: another way to take it than that of the network.
        """
        rnn = self.rnn if solver is None else self.rnn.with_solver(solver, substeps=substeps, gradient="backprop")
        starts = self.starts[rows, places].unsqueeze(-1)
        clock = Clock((starts,), (self.spans[rows, places].unsqueeze(-1),))
        path = mixed(self.paths, places, rows)
        name = f"a step of {rnn.solver.name}"
        return solvers.Transition(lambda state: rnn.run_paths(self.layer, [path], clock, state).end(), name)

    def current(self, rows: Tensor, places: Tensor) -> Tensor:
        """What drives the field at the start of such a step, `(steps, channels)`."""
        at = self.starts[rows, places].unsqueeze(-1).to(working(torch.float64))
        value: Tensor = mixed(self.paths, places, rows)(at)
        return value

    def slope(self, rows: Tensor, places: Tensor) -> solvers.Transition:
        """The slope of the field at the start of such a step, time scale included, as a map of states."""
        at = self.starts[rows, places].unsqueeze(-1)
        return solvers.slope(self.rnn.layer(self.layer), self.current(rows, places), at)

    def jacobians(
        self, solver: str | None = None, substeps: int = 1, progress: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """The derivative of every step, `(batch, time, n, n)`, n = components * hidden; the identity in the padding.

        Returns:
            the Jacobians, and of each step whether all of them are finite, `(batch, time)`.
        """
        n = self.size
        count, time = self.valid.shape
        made = torch.eye(n, dtype=self.states.dtype).expand(count, time, n, n).clone()
        rows, places = self.valid.nonzero(as_tuple=True)
        chunks = list(self._chunks(rows, places))
        for some, there in watched(chunks, "Jacobians of the steps", progress):
            made[some, there] = self.step(some, there, solver, substeps).jacobian(self.states[some, there])
        return made, made.isfinite().flatten(2).all(-1)

    def _chunks(self, rows: Tensor, places: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        size = max(1, JACOBIAN_BYTES // (8 * self.size**2))
        yield from zip(rows.split(size), places.split(size), strict=True)


@dataclass(frozen=True)
class StepWalk(Walk):
    """The same of a network without fields, whose step takes a sample and a state to a state.

    Attributes:
        net: the network.
        x: its samples, `(batch, time, input)`.
        given: the timespans of the samples, `(batch, time)`; None where there are none.
    """

    net: RecurrentLayer | None = None
    x: Tensor | None = None
    given: Tensor | None = None

    def step(self, rows: Tensor, places: Tensor, solver: str | None = None, substeps: int = 1) -> solvers.Transition:
        """Step `places[i]` of sequence `rows[i]` as a map of states; see `Walk.step`."""
        net, x, spans = self.net, self.x, self.given
        assert net is not None and x is not None
        if solver is not None:
            raise InputError(f"a {type(net).__name__} has no solver, so that there is no other way to take its steps")
        samples, passed = x[rows, places], None if spans is None else spans[rows, places]
        return solvers.Transition(lambda state: stepped(net, samples, state, passed)[1], f"a step of {net.name}")

    def slope(self, rows: Tensor, places: Tensor) -> solvers.Transition:
        """There is none."""
        raise InputError(f"a {type(self.net).__name__} has no solver and no slope, it goes from sample to sample")


def _stepped_walk(rnn: RecurrentLayer, samples: Samples) -> StepWalk:
    """Along the samples one by one, which is the run of a network that goes from one to the next."""
    if rnn.bidirectional or rnn.num_layers > 1:
        raise InputError(
            f"this {type(rnn).__name__} has {rnn.num_layers} layers in {1 + rnn.bidirectional} directions, which is no "
            "one map of states: expected one of each"
        )
    count, time = samples.x.shape[:2]
    given = None if samples.timespans is None else samples.timespans.expand(count, -1)
    state = samples.x.new_zeros(count, rnn.components, rnn.hidden_size)
    states = [state]
    with torch.no_grad():
        for i in range(time):
            state = stepped(rnn, samples.x[:, i], state, None if given is None else given[:, i])[1]
            states.append(state)
    spans = torch.ones(count, time, dtype=torch.float64) if given is None else given.double()
    spans = torch.where(samples.valid, spans, 0)
    run: Any = rnn
    return StepWalk(
        run, 0, torch.stack(states, 1), spans, spans.cumsum(1) - spans, samples.valid, (), rnn, samples.x, given
    )


def walk(model: nn.Module, samples: Samples, layer: int = -1) -> Walk:
    """Run a model on samples and keep the way.

    Args:
        model: in float64.
        samples: in float64, as measured.
        layer: which layer; the last when left out.

    Raises:
        InputError: a network with noise or that runs in both directions, or one without a solver of several layers.
    """
    samples, net = shown(model, samples), network(model)
    if not isinstance(net, ContinuousRNN):
        return _stepped_walk(net, samples)
    rnn = continuous(model)
    index = layer_of(rnn, layer)
    with torch.no_grad():
        solution = rnn.solve(**samples.inputs)  # type: ignore[arg-type]
        field, dt = rnn.layer(index), rnn.dts[index]
        spans = solution.spans(index).double().expand(len(samples), -1) * dt
        currents = field.drive(solution.inputs[index]).unbind(1)
        paths, _ = driven(field, rnn.control, currents, Clock.of_spans(spans))
    starts = spans.cumsum(1) - spans
    if is_controlled(field):
        # Before its first sample it rests.
        spans = torch.cat((torch.zeros_like(spans[:, :1]), spans[:, 1:]), 1)
    states = torch.cat((solution.start[index].unsqueeze(1), solution.trajectories[index].states()), 1)
    return Walk(rnn, index, states.detach(), spans, starts, samples.valid, tuple(paths))
