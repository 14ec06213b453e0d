"""The recurrent layer: fields, a solver and a gradient, used like `torch.nn.RNN`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import solvers
from neuralosc import arguments, explain, inputs, online, queries
from neuralosc.explain import Explanation
from neuralosc.field import VectorField
from neuralosc.inputs import Lengths
from neuralosc.online import Stream
from solvers.clock import Clock
from solvers.errors import InputError


@dataclass(frozen=True)
class Solution:
    """Everything a pass of a `ContinuousRNN` computed.

    Attributes:
        output: position component of the last layer after every sample, `(batch, time, hidden)`, dropout included.
        state: state after the last sample, `([layers,] batch, components, hidden)`.
        trajectories: what each layer did, step by step.
        inputs: what went into each layer, `(batch, time, features)`: x, missing values filled, and the outputs of the
            layers before the last.
        timespans: time elapsed since the previous sample, in units of dt, `(time,)` or `(batch, time)`, 0 in padding.
        start: state at the beginning, of each layer.
    """

    output: Tensor
    state: Tensor
    trajectories: list[solvers.Trajectory]
    inputs: list[Tensor]
    timespans: Tensor
    start: Sequence[Tensor]

    @property
    def layers(self) -> list[Tensor]:
        """States of each layer after every sample, `(batch, time, components, hidden)` each."""
        return [trajectory.states() for trajectory in self.trajectories]

    @property
    def states(self) -> Tensor:
        """States of the last layer, `(batch, time, components, hidden)`."""
        return self.trajectories[-1].states()

    @property
    def evaluations(self) -> int:
        """Right-hand-side evaluations per sequence, over all layers."""
        return sum(trajectory.evaluations for trajectory in self.trajectories)


class ContinuousRNN(nn.Module):
    """A recurrent layer: a vector field stepped by a solver from sample to sample.

    Between sample i-1 and sample i the state follows d state/dt = f(t, state, u(t)) for timespans_i * dt, driven by
    the input current u; the output is the position component after every sample.

    Args:
        field: the vector field, or a sequence of them for a stack of layers; each layer is driven by the output of
            the one before.
        solver: a name of `solvers.available()` or a Solver value.
        dt: time between two samples whose timespan is 1; one number, or one per layer.
        substeps: equal steps per interval.
        gradient: a name of `solvers.GRADIENTS` or a value.
        control: u between the samples, a name of `solvers.CONTROLS` or a value.
        dropout: probability of dropping a channel after each layer, the last included; one mask per sequence, shared
            over time.
        missing: what to do with NaN in x: "error" refuses it, "hold" takes the last value of that feature that was
            seen, and zero before there was one.
        max_dt: the longest step, in the units of dt. An interval that is longer for a sample is split into equal steps
            of that sample.

    Raises:
        PairingError: the solver cannot work with the field.
    """

    def __init__(
        self,
        field: VectorField | Sequence[VectorField],
        solver: str | dict[str, Any] | solvers.Solver = "rk4",
        dt: float | Sequence[float] = 1.0,
        substeps: int = 1,
        gradient: str | solvers.Gradient = "backprop",
        control: str | solvers.Control = "hold",
        dropout: float = 0.0,
        missing: str = "error",
        max_dt: float | None = None,
    ) -> None:
        super().__init__()
        self.fields = nn.ModuleList(arguments.layers(field))
        #: What `neuralosc.make` needs to build this network again; None for a field of one's own.
        self.config: dict[str, Any] | None = None
        self.dropout = arguments.probability("dropout", dropout)
        self.missing = arguments.missing_values(missing)
        self._choose(solver, dt, substeps, gradient, control, max_dt)

    def _choose(self, solver: Any, dt: Any, substeps: Any, gradient: Any, control: Any, max_dt: Any) -> None:
        """Set the independent choices, checked."""
        self.solver = solvers.get(solver)
        self.gradient = solvers.get_gradient(gradient)
        self.control = solvers.get_control(control)
        self.dts = arguments.steps(dt, self.num_layers)
        self.substeps = arguments.count("substeps", substeps)
        self.max_dt = None if max_dt in (None, math.inf) else arguments.positive("max_dt", max_dt)
        for field in self.fields:
            solvers.check(field, self.solver, self.gradient)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.fields)

    @property
    def field(self) -> VectorField:
        """The vector field of a network with one layer."""
        if self.num_layers > 1:
            raise InputError(f"this network has {self.num_layers} layers: take one of rnn.fields")
        return self.layer(0)

    def layer(self, index: int) -> VectorField:
        """The vector field of one layer."""
        field = self.fields[index]
        assert isinstance(field, VectorField)
        return field

    @property
    def dt(self) -> float | tuple[float, ...]:
        """Time between two samples whose timespan is 1; one per layer where they differ."""
        return self.dts[0] if len(set(self.dts)) == 1 else self.dts

    @property
    def input_size(self) -> int:
        """Features of a sample."""
        return self.layer(0).input_size

    @property
    def hidden_size(self) -> int:
        """Features of the output."""
        return self.layer(-1).hidden_size

    @property
    def components(self) -> int:
        """Components of the state."""
        return self.layer(-1).components

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return (
            f"solver={self.solver.name!r}, dt={self.dt}, substeps={self.substeps}, gradient={self.gradient.name!r}, "
            f"control={self.control.name!r}, dropout={self.dropout:g}, missing={self.missing!r}, max_dt={self.max_dt}"
        )

    def with_solver(
        self,
        solver: str | dict[str, Any] | solvers.Solver,
        *,
        dt: float | Sequence[float] | None = None,
        substeps: int | None = None,
        gradient: str | solvers.Gradient | None = None,
        control: str | solvers.Control | None = None,
        max_dt: float | None = None,
    ) -> ContinuousRNN:
        """The same weights (shared, not copied) under another solver; what is not given stays (max_dt: inf for none).

        Raises:
            PairingError: the solver cannot work with the field.
        """
        swapped = copy.copy(self)
        swapped._modules = dict(self._modules)
        swapped._choose(
            solver,
            self.dts if dt is None else dt,
            self.substeps if substeps is None else substeps,
            self.gradient if gradient is None else gradient,
            self.control if control is None else control,
            self.max_dt if max_dt is None else max_dt,
        )
        if self.config is not None:
            swapped.config = {**self.config, **swapped.choices()}
        return swapped

    def choices(self) -> dict[str, Any]:
        """The independent choices, as configurations store them."""
        return {
            "dt": list(self.dts) if isinstance(self.dt, tuple) else self.dt,
            "solver": solvers.spec(self.solver),
            "substeps": self.substeps,
            "gradient": solvers.gradient_spec(self.gradient),
            "control": self.control.name,
            "max_dt": self.max_dt,
        }

    @overload
    def forward(
        self, x: Tensor, state: Tensor | None = None, timespans: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, x: PackedSequence, state: Tensor | None = None, timespans: Tensor | None = None, lengths: None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: Tensor | None = None,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run over a batch of sequences.

        Args:
            x: `(batch, time, input)`, or a PackedSequence, which also comes back.
            state: initial state, `(batch, components, hidden)`, with a leading axis for the layers of a stack; zeros
                when left out.
            timespans: time elapsed since the previous sample, in units of dt: `(batch, time)` or `(time,)`; ones when
                left out.
            lengths: number of valid samples of each sequence, `(batch,)`. No time passes in padded samples: the state
                stays, and so does the output.

        Returns:
            output `(batch, time, hidden)`, position after every sample, and the state after the last valid sample.

        Raises:
            InputError: shapes, dtypes, devices or values that do not fit.
            NumericalError: the state became non-finite, or an adaptive solver gave up.
        """
        if isinstance(x, PackedSequence):
            if lengths is not None:
                raise InputError("lengths was given with a PackedSequence, which carries its own: leave it out")
            padded, lengths = pad_packed_sequence(x, batch_first=True)
            solution = self._pass(padded, state, timespans, lengths, positions_only=True)
            return inputs.pack_like(solution.output, lengths, x), solution.state
        solution = self._pass(x, state, timespans, lengths, positions_only=True)
        return solution.output, solution.state

    def solve(
        self,
        x: Tensor,
        state: Tensor | None = None,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
    ) -> Solution:
        """Like calling the layer, with the states of every layer at every sample and the cost."""
        return self._pass(x, state, timespans, lengths, positions_only=False)

    def _pass(
        self,
        x: Tensor,
        state: Tensor | None,
        timespans: Tensor | None,
        lengths: Lengths | None,
        positions_only: bool,
    ) -> Solution:
        """One pass; with `positions_only` the solution may know no states but the last."""
        inputs.check_sequence(x, self.input_size, self)
        valid = None if lengths is None else inputs.valid_steps(lengths, x)
        spans = None if timespans is None else inputs.check_timespans(timespans, x, valid)
        if valid is not None:
            # Padding may hold anything, NaN included; it must not reach the arithmetic.
            x = inputs.without_padding(x, valid)
            spans = valid.to(x.dtype) if spans is None else spans
        x = inputs.filled(x, self.missing)
        starts = self.initial(state, x)
        trajectories, given = [], []
        for layer in range(self.num_layers):
            given.append(x)
            trajectory = self.run_from(layer, x, starts[layer], spans, positions_only)
            x = self._drop(trajectory.positions())
            trajectories.append(trajectory)
        ends = [trajectory.end() for trajectory in trajectories]
        end = torch.stack(ends) if self.num_layers > 1 else ends[0]
        spans = x.new_ones(x.shape[1]) if spans is None else spans
        return Solution(x, end, trajectories, given, spans, starts)

    def trajectory(
        self,
        x: Tensor,
        timespans: Tensor | None = None,
        at: Tensor | Sequence[float] = (),
        state: Tensor | None = None,
        lengths: Lengths | None = None,
    ) -> Tensor:
        """States of the last layer at any times: between the samples, and after the last one, where there is no input.

        The run from sample to sample is the one of `forward`, whatever times are asked for; a time between two samples
        is reached by a step (or `substeps`, or as many as `max_dt` asks for) from the sample before it. After the last
        sample x is zero.

        Args:
            x, timespans, state, lengths: see `forward`.
            at: times since the start, in units of dt, `(times,)` or one row per sample `(batch, times)`, in any order.
                Sample i was taken at the sum of the timespans up to its own.

        Returns:
            `(batch, times, components, hidden)`, differentiable also in `at`.
        """
        return queries.states_at(self, self.solve(x, state, timespans, lengths), at)

    def step(
        self,
        x: Tensor,
        state: Tensor | Stream | None = None,
        timespan: Tensor | float | None = None,
        time: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor | Stream]:
        """One sample at a time: fed back its own state, it equals the call on the whole sequence.

        Args:
            x: the sample, `(batch, input)`.
            state: what the step before returned; None, or a state, at the beginning.
            timespan: time elapsed since the sample before, in units of dt: a number or `(batch,)`; 1 when left out.
            time: time of the sample before, in units of dt; only a field that depends on time sees it.

        Returns:
            output `(batch, hidden)`, and what the next step needs: the state, `([layers,] batch, components, hidden)`;
            a `Stream`, which holds it, where earlier samples matter too (a control other than "hold", or
            `missing="hold"`).
        """
        return online.step(self, x, state, timespan, time)

    def explain(
        self,
        x: Tensor,
        state: Tensor | None = None,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
        source: bool = False,
        show: bool = True,
    ) -> Explanation:
        """Say which path each layer takes and why, what it keeps for the backward pass, and how fast it is.

        Runs some training steps: forward and backward of the mean square of a layer's last output, parameters only;
        no gradient is left behind. The products are those of the compiled step, forward, backward and for the
        gradients of its matrices, timed alone; a layer without any has no floor.

        Args:
            x, state, timespans, lengths: see `forward`.
            source: show the generated code too.
            show: print it.
        """
        return explain.explain(self, x, state, timespans, lengths, source, show)

    def run_layer(
        self,
        layer: int,
        control: solvers.Control,
        clock: Clock,
        samples: Sequence[Tensor],
        state: Tensor,
        positions_only: bool = False,
    ) -> solvers.Trajectory:
        """Step one layer, with the choices of this network, from `state` over a clock; see `solvers.solve`."""
        return solvers.solve(
            self.layer(layer),
            self.solver.branch(layer),
            self.gradient,
            control,
            clock,
            samples,
            state,
            self.substeps,
            self.max_dt,
            positions_only,
        )

    def run_from(
        self, layer: int, x: Tensor, state: Tensor, spans: Tensor | None, positions_only: bool = False
    ) -> solvers.Trajectory:
        """Step one layer from `state` over what goes into it, `(batch, time, features)`; spans in units of dt."""
        dt = self.dts[layer]
        clock = Clock.uniform(x.shape[1], dt) if spans is None else Clock.of_spans(spans * dt)
        return self.run_layer(layer, self.control, clock, self.layer(layer).currents(x), state, positions_only)

    def initial(self, state: Tensor | None, x: Tensor) -> Sequence[Tensor]:
        """The state of each layer to start from: the one given, checked, or zeros."""
        shape: tuple[int, ...] = (x.shape[0], self.components, self.hidden_size)
        if state is None:
            return [x.new_zeros(shape)] * self.num_layers
        if self.num_layers == 1:
            return [inputs.check_state(state, shape, x)]
        return inputs.check_state(state, (self.num_layers, *shape), x).unbind(0)

    def _drop(self, output: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return output
        return output * functional.dropout(torch.ones_like(output[:, :1]), self.dropout)
