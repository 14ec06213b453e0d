"""Fields, solver, gradient and control of a recurrent layer: what is stepped, and how."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import solvers
from neuralosc import arguments
from neuralosc.field import VectorField
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.missing import Memory
from neuralosc.layers.recurrent import RecurrentLayer, weights_blamed
from solvers.base.clock import Clock
from solvers.base.drive import clock_for, is_controlled
from solvers.base.pairing import check_steps
from solvers.base.series import Series
from solvers.base.values import concrete
from solvers.errors import InputError
from solvers.protocol import ControlPath, instantaneous
from solvers.run.solve import solve_paths

#: What a recurrent layer takes besides its fields and the options of its solver.
CHOICES = (
    "solver", "dt", "substeps", "gradient", "control", "dropout", "missing", "max_dt", "bidirectional", "residual",
)  # fmt: skip

#: Networks that have warned of samples without effect.
_WARNED: weakref.WeakSet[RecurrentLayer] = weakref.WeakSet()

#: Steps in one interval, beyond which a unit of time is wrong rather than a gap long.
MOST_STEPS = 10_000


class Stack(RecurrentLayer):
    """The fields of a recurrent layer with the choices they share; `ContinuousRNN` describes the arguments."""

    def __init__(
        self,
        field: VectorField | Sequence[VectorField],
        solver: str | dict[str, Any] | solvers.Solver = "rk4",
        dt: float | Sequence[float] = 1.0,
        substeps: int = 1,
        gradient: str | solvers.Gradient = "backprop",
        control: str | solvers.Control | None = None,
        dropout: float = 0.0,
        missing: str = "error",
        max_dt: float | str | None = "auto",
        bidirectional: bool = False,
        residual: bool = False,
        **options: Any,
    ) -> None:
        directions = 2 if arguments.flag("bidirectional", bidirectional) else 1
        fields = arguments.layers(field, directions)
        first, layers = fields[0], len(fields) // directions
        arguments.choice("missing", missing, arguments.MISSING)
        features = arguments.features_of(missing, first.input_size)
        super().__init__(features, first.hidden_size, first.components, layers, bidirectional, dropout, missing)
        self.fields = nn.ModuleList(fields)
        self.residual = arguments.flag("residual", residual)
        self.skip = skip_map(first, first.input_size, self.output_size) if residual else None
        if control is None:
            control = "cubic" if any(map(is_controlled, fields)) else "hold"
        self._choose(solver, dt, substeps, gradient, control, max_dt, options)

    def _choose(
        self, solver: Any, dt: Any, substeps: Any, gradient: Any, control: Any, max_dt: Any, options: dict[str, Any]
    ) -> None:
        """Set the independent choices, checked; `options` are those of the solver."""
        self.solver = arguments.solver(type(self).__name__, solver, options, CHOICES)
        self.gradient = solvers.get_gradient(gradient)
        self.control = solvers.get_control(control)
        self.dts = arguments.steps(dt, self.num_layers)
        self.substeps = arguments.count("substeps", substeps)
        self.max_dt = arguments.longest_step(max_dt)
        for field in self.fields:
            solvers.check(field, self.solver, self.gradient, self.control)
            check_steps(field, self.substeps, None if isinstance(self.max_dt, str) else self.max_dt)

    @property
    def field(self) -> VectorField:
        """The vector field of a network with one layer and one direction."""
        if len(self.fields) > 1:
            ways = " in two directions" if self.bidirectional else ""
            raise InputError(f"this network has {self.num_layers} layers{ways}: take one of rnn.fields")
        return self.layer(0)

    def layer(self, index: int) -> VectorField:
        """The vector field at a place in `fields`: that of a layer, or of a direction of it."""
        field = self.fields[index]
        assert isinstance(field, VectorField)
        return field

    @property
    def dt(self) -> float | tuple[float, ...]:
        """Time between two samples whose timespan is 1; one per layer where they differ."""
        return self.dts[0] if len(set(self.dts)) == 1 else self.dts

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

    def _method(self, index: int) -> solvers.Solver:
        """The solver of a field: with noise and a step of its own."""
        return self.solver.branch(index).paced(self.dts[index // self.directions] / self.substeps)

    def _longest(self, index: int, clock: Clock | None) -> float | None:
        """The longest step of a field, in units of time; None where no interval of a clock is longer than that.

        Without a clock none is longer than the dt of the layer.

        Raises:
            InputError: timespans whose values are not known, or that take very many steps.
        """
        bound = self.max_dt
        if bound == "auto":
            bound = None if self.solver.adaptive or self.solver.exact(self.layer(index)) else 1.0
        if bound is None or (clock is not None and not len(clock)):
            return None
        dt = self.dts[index // self.directions]
        longest, span = float(bound) * dt, dt if clock is None else _longest_span(clock)
        count = span / longest
        if count > MOST_STEPS:
            raise InputError(
                f"timespans go up to {span / dt:.3g}, which are {count:.3g} steps in "
                f"one interval under max_dt={self.max_dt!r}, expected at most {MOST_STEPS}: give them in a longer "
                "unit, such as the usual gap, or max_dt=None for one step whatever the gap"
            )
        # What is rounding of a timespan asks for no second step.
        return longest if count > 1 + 1e-6 else None

    def start(self, index: int, rest: Tensor, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The initial state of a field, where none is given.

        Args:
            index: its place in `fields`.
            rest: zeros of the shape and type of the state, which it is of sequences without samples.
            x: what goes into it, `(batch, time, features)`, in the order in which it is seen.
            valid: which samples are valid, `(batch, time)`; None for all.
        """
        field = self.layer(index)
        made = field.initial_state(x[:, 0])
        if made is None:
            return rest
        if made.shape != rest.shape:
            raise InputError(
                f"{type(field).__name__} starts from a state of shape {tuple(made.shape)}, expected "
                f"{tuple(rest.shape)}: initial_state must return (batch, components, hidden)"
            )
        made = made.to(rest.dtype)
        return made if valid is None else torch.where(valid.any(1).view(-1, 1, 1), made, rest)

    @property
    def jumps(self) -> bool:
        """Whether a sample acts on a field in no time."""
        return any(instantaneous(field) for field in self.fields)

    @property
    def timed(self) -> bool:
        """Whether a field looks at the time, so that a state alone does not say how it goes on."""
        return any(self.layer(index).timed for index in range(len(self.fields)))

    def checked_after(
        self,
        memory: Memory | None,
        x: Tensor,
        timespans: Tensor | None,
        lengths: Lengths | None,
        first: bool | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Memory]:
        """See `RecurrentLayer`; at a timespan of 0 a field still jumps; a warning is due where none does.

        `first` says whether no sample was before these, which it is told by the memory when left out.
        """
        x, spans, valid, after = super().checked_after(memory, x, timespans, lengths)
        if timespans is not None and spans is not None:
            spans = self.felt(spans, valid, x.shape[0], memory is None if first is None else first)
        return x, spans, valid, after

    def felt(self, spans: Tensor, valid: Tensor | None, batch: int, first: bool) -> Tensor:
        """Timespans `(time,)` or `(batch, time)` under which samples are felt, or a warning that some are not."""
        held = self.control.name == "hold"
        if self.jumps and held:
            # Other controls divide by the spans between samples.
            return inputs.instant(spans, valid)
        controlled = any(is_controlled(field) for field in self.fields)
        if not (held or self.jumps or controlled) or torch.compiler.is_compiling() or self in _WARNED:
            return spans
        # The state of a controlled field is not moved before the first sample, however long.
        asked = slice(1, None) if controlled and first else slice(None)
        count = inputs.without_effect(spans[..., asked], valid if valid is None else valid[:, asked])
        count *= batch if spans.dim() == 1 else 1
        if count:
            _WARNED.add(self)
            reason = (
                "a sample acts during the timespan before it: give the first sample a timespan (1, say), merge samples "
                "of one time, or use control 'linear'"
            )
            if self.jumps:
                reason = (
                    f"no jump is made in no time under control {self.control.name!r}: merge samples of one time, or "
                    "use control 'hold'"
                )
            elif controlled:
                reason = "the derivative of an input moves no state in no time: merge samples of one time"
            warnings.warn(f"{count} samples have timespan 0 and no effect, since {reason}", stacklevel=2)
        return spans

    def run_layer(
        self,
        index: int,
        control: solvers.Control,
        clock: Clock,
        samples: Sequence[Tensor],
        state: Tensor,
        positions_only: bool = False,
        jumps: bool = True,
        gaps: bool = True,
    ) -> solvers.Trajectory:
        """Step one of `fields`, with the choices of this network, from `state` over a clock; see `solvers.solve`.

        Without `gaps` no interval is longer than the dt of the layer.
        """
        clock = clock_for(self.layer(index), clock)
        with weights_blamed(self):
            return solvers.solve(
                self.layer(index),
                self._method(index),
                self.gradient,
                control,
                clock,
                samples,
                state,
                self.substeps,
                self._longest(index, clock if gaps else None),
                positions_only,
                jumps,
            )

    def run_paths(
        self, index: int, paths: Sequence[ControlPath], clock: Clock, state: Tensor, jumps: bool = True
    ) -> solvers.Trajectory:
        """Like `run_layer`, where the path of what the field is given is there already, on each interval."""
        field, solver, longest = self.layer(index), self._method(index), self._longest(index, clock)
        with weights_blamed(self):
            return solve_paths(field, solver, self.gradient, paths, clock, state, self.substeps, longest, jumps=jumps)

    def run_from(
        self,
        index: int,
        x: Tensor,
        state: Tensor,
        spans: Tensor | None,
        positions_only: bool = False,
        gaps: bool = True,
    ) -> solvers.Trajectory:
        """Step one of `fields` from `state` over what goes into it, `(batch, time, features)`; spans in units of dt.

        Without `gaps` none of them exceeds 1.
        """
        dt = self.dts[index // self.directions]
        clock = Clock.uniform(x.shape[1], dt) if spans is None else Clock.of_spans(spans * dt)
        currents, gaps = self.layer(index).currents(x), gaps and spans is not None
        return self.run_layer(index, self.control, clock, currents, state, positions_only, gaps=gaps)


def _longest_span(clock: Clock) -> float:
    """The longest interval of a clock.

    Raises:
        InputError: its values are not known.
    """
    spans = clock.spans
    if not isinstance(spans, Series) and not any(isinstance(span, Tensor) for span in spans):
        return max(spans)  # type: ignore[return-value]
    whole = spans.whole if isinstance(spans, Series) else torch.stack([torch.as_tensor(span) for span in spans])
    if not concrete(whole):
        raise InputError(
            "max_dt bounds the steps by the timespans, whose values are not known in an exported, compiled or "
            "transformed function: make the network with max_dt=None, whose steps are as long as the timespans"
        )
    return float(whole.detach().max()) if whole.numel() else 0.0


def skip_map(field: nn.Module, input_size: int, output_size: int) -> nn.Linear | None:
    """The map of the skip connection around the first layer, like the weights of `field`; None for the identity."""
    if input_size == output_size:
        return None
    like = next(field.parameters(), None)
    kind = {} if like is None else {"dtype": like.dtype, "device": like.device}
    return nn.Linear(input_size, output_size, bias=False, **kind)
