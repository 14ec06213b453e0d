"""The recurrent layer: fields, a solver and a gradient, used like `torch.nn.RNN`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import solvers
from neuralosc import inputs
from neuralosc.field import VectorField
from neuralosc.inputs import Lengths
from solvers.clock import Clock
from solvers.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Solution:
    """Everything a pass of a `ContinuousRNN` computed.

    Attributes:
        output: position component of the last layer after every sample, `(batch, time, hidden)`, dropout included.
        state: state after the last sample, `([layers,] batch, components, hidden)`.
        trajectories: what each layer did, step by step.
    """

    output: Tensor
    state: Tensor
    trajectories: list[solvers.Trajectory]

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
    ) -> None:
        super().__init__()
        self.fields = nn.ModuleList(_layers(field))
        #: What `neuralosc.make` needs to build this network again; None for a field of one's own.
        self.config: dict[str, Any] | None = None
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout!r}, expected at least 0 and below 1")
        self.dropout = float(dropout)
        self._choose(solver, dt, substeps, gradient, control)

    def _choose(self, solver: Any, dt: Any, substeps: Any, gradient: Any, control: Any) -> None:
        """Set the independent choices, checked."""
        self.solver = solvers.get(solver)
        self.gradient = solvers.get_gradient(gradient)
        self.control = solvers.get_control(control)
        self.dts = _steps(dt, self.num_layers)
        if isinstance(substeps, bool) or not isinstance(substeps, int) or substeps < 1:
            raise InputError(f"substeps is {substeps!r}, expected a positive integer")
        self.substeps = substeps
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
        return self._field(0)

    def _field(self, layer: int) -> VectorField:
        field = self.fields[layer]
        assert isinstance(field, VectorField)
        return field

    @property
    def dt(self) -> float | tuple[float, ...]:
        """Time between two samples whose timespan is 1; one per layer where they differ."""
        return self.dts[0] if len(set(self.dts)) == 1 else self.dts

    @property
    def input_size(self) -> int:
        """Features of a sample."""
        return self._field(0).input_size

    @property
    def hidden_size(self) -> int:
        """Features of the output."""
        return self._field(-1).hidden_size

    @property
    def components(self) -> int:
        """Components of the state."""
        return self._field(-1).components

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return (
            f"solver={self.solver.name!r}, dt={self.dt}, substeps={self.substeps}, gradient={self.gradient.name!r}, "
            f"control={self.control.name!r}, dropout={self.dropout:g}"
        )

    def with_solver(
        self,
        solver: str | dict[str, Any] | solvers.Solver,
        *,
        dt: float | Sequence[float] | None = None,
        substeps: int | None = None,
        gradient: str | solvers.Gradient | None = None,
        control: str | solvers.Control | None = None,
    ) -> ContinuousRNN:
        """The same weights (shared, not copied) under another solver; what is not given stays.

        Raises:
            PairingError: the solver cannot work with the field.
        """
        swapped = copy.copy(self)
        swapped._modules = dict(self._modules)
        swapped._choose(
            solver,
            _or(dt, self.dts),
            _or(substeps, self.substeps),
            _or(gradient, self.gradient),
            _or(control, self.control),
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
            solution = self.solve(padded, state, timespans, lengths)
            return _pack_like(solution.output, lengths, x), solution.state
        solution = self.solve(x, state, timespans, lengths)
        return solution.output, solution.state

    def solve(
        self,
        x: Tensor,
        state: Tensor | None = None,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
    ) -> Solution:
        """Like calling the layer, with the states of every layer at every sample and the cost."""
        inputs.check_sequence(x, self.input_size, self)
        valid = None if lengths is None else inputs.valid_steps(lengths, x)
        spans = None if timespans is None else inputs.check_timespans(timespans, x, valid)
        if valid is not None:
            # Padding may hold anything, NaN included; it must not reach the arithmetic.
            x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
            spans = valid.to(x.dtype) if spans is None else spans
        inputs.check_finite(x)
        starts = self._initial(state, x)
        trajectories = []
        for layer in range(self.num_layers):
            trajectory = self._run_layer(layer, x, starts[layer], spans)
            x = self._drop(trajectory.positions())
            trajectories.append(trajectory)
        ends = [trajectory.end() for trajectory in trajectories]
        return Solution(x, torch.stack(ends) if self.num_layers > 1 else ends[0], trajectories)

    def _run_layer(self, layer: int, x: Tensor, state: Tensor, spans: Tensor | None) -> solvers.Trajectory:
        field, dt = self._field(layer), self.dts[layer]
        clock = Clock.uniform(x.shape[1], dt) if spans is None else Clock.of_spans(spans * dt)
        # Unbinding once keeps the backward pass linear in time; indexing u[:, i] would make it quadratic.
        samples = field.drive(x).unbind(1)
        return solvers.solve(field, self.solver, self.gradient, self.control, clock, samples, state, self.substeps)

    def _initial(self, state: Tensor | None, x: Tensor) -> Sequence[Tensor]:
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


def _or(given: T | None, standard: T) -> T:
    return standard if given is None else given


def _layers(field: VectorField | Sequence[VectorField]) -> list[VectorField]:
    """The fields of a stack, which must fit each other."""
    single = isinstance(field, nn.Module) and not isinstance(field, nn.ModuleList)
    fields: list[Any] = [field] if single or not isinstance(field, Iterable) else list(field)
    if not fields:
        raise InputError("a ContinuousRNN was given no field: give one, or a sequence of them")
    for i, layer in enumerate(fields):
        if not isinstance(layer, VectorField):
            raise InputError(
                f"field {i} is a {type(layer).__name__}, expected a neuralosc.VectorField: "
                "subclass it and write forward(t, state, u)"
            )
        for size in ("input_size", "hidden_size"):
            if getattr(layer, size, None) is None:
                raise InputError(
                    f"{type(layer).__name__} has no {size}: "
                    "call super().__init__(input_size, hidden_size) in its __init__"
                )
        first = fields[0]
        if (layer.components, layer.hidden_size) != (first.components, first.hidden_size):
            raise InputError(
                f"layer {i} has {layer.components} components of {layer.hidden_size} channels, layer 0 has "
                f"{first.components} of {first.hidden_size}: layers of a stack must have states of one shape"
            )
        if i and layer.input_size != fields[i - 1].hidden_size:
            raise InputError(
                f"layer {i} takes {layer.input_size} inputs, the layer before gives {fields[i - 1].hidden_size}: "
                "make them equal"
            )
    return fields


def _steps(dt: float | Sequence[float], layers: int) -> tuple[float, ...]:
    """One dt per layer."""
    given = tuple(dt) if isinstance(dt, Sequence) and not isinstance(dt, str) else (dt,) * layers
    if len(given) != layers:
        raise InputError(f"dt has {len(given)} values for {layers} layers: give one number, or one per layer")
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(f"dt is {value!r}, expected a positive finite number")
    return tuple(float(value) for value in given)


def _pack_like(output: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """Pack a padded batch in exactly the order of another PackedSequence, ties included."""
    if like.sorted_indices is not None:
        output = output.index_select(0, like.sorted_indices)
        lengths = lengths.index_select(0, like.sorted_indices.cpu())
    packed = pack_padded_sequence(output, lengths, batch_first=True)
    return PackedSequence(packed.data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
