"""Linear oscillatory state-space models: the layer. The published network around it is in `neuralosc.layers.blocks`."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import solvers
from neuralosc import arguments
from neuralosc.fields import LinearOscillator, discretizations
from neuralosc.fields.linear_oscillator import grouped
from neuralosc.fields.parameters import uniform_
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.solution import Solution
from neuralosc.layers.stack import CHOICES
from neuralosc.layers.stream import Stream, run_chunk
from solvers.base.sharing import refresh, twin

#: What a layer takes besides its sizes, what its recurrence takes and the options of its solver.
SETTINGS = ("state_size", "discretization", "damped", "projection", "initialization", "heads", "projection_margin")


class LinOSS(RecurrentLayer):
    """A LinOSS layer: linear oscillators, driven by and read out to the same number of features.

    Called like every `RecurrentLayer`; the output is y, the state that of the recurrence, `(batch, 2, 2 state_size)`.

        x' = z,  z' = -A x - G z + B u,    y = Re(C x) + D u

    x and z are complex, `(batch, state_size)`; each channel has a step h = sigmoid(steps) of its own. `rnn` is the
    recurrence, a `ContinuousRNN` over a `LinearOscillator` whose channels are all real parts and then all imaginary
    ones; C is laid out as its B, the columns of the real parts before those of the imaginary parts.

    With several heads, each is a layer of its own over its part of the features and its part of the oscillators.

    Args:
        features: of input and output.
        state_size: complex oscillators, of all heads together.
        discretization: "IM", "IMEX", with damping also "IMEX2", "IMEX3" and "EX"; decides the solver if none is given.
        damped, heads, projection, initialization, projection_margin: see `LinearOscillator`.
        solver: any that works with the field; the one of the discretization when None.
        dt: time between two samples whose timespan is 1.
        choices: `substeps`, `gradient`, `control`, `missing` and `max_dt` of the `ContinuousRNN`.

    Initialised as published: the field's own, C ~ U(-1/sqrt(n), 1/sqrt(n)) with n oscillators of a head, D ~ N(0, 1).

    Source: Rusch & Rus, Oscillatory State-Space Models, ICLR 2025; with damping: Boyer, Rusch & Rus, Learning to
    Dissipate Energy in Oscillatory State-Space Models, 2025.
    """

    def __init__(
        self,
        features: int,
        state_size: int = 64,
        discretization: str = "IMEX",
        damped: bool = False,
        projection: str = "relu",
        initialization: str = "uniform",
        heads: int = 1,
        solver: str | dict[str, Any] | solvers.Solver | None = None,
        dt: float = 1.0,
        projection_margin: float = 0.0,
        **choices: Any,
    ) -> None:
        missing = arguments.choice("missing", choices.get("missing", "error"), arguments.HELD)
        super().__init__(features, features, 2, 1, False, 0.0, missing)
        size, steps = (
            arguments.count("state_size", state_size),
            discretizations.solver(discretization, arguments.flag("damped", damped)),
        )
        field = LinearOscillator(
            features, 2 * size, damped, True, heads, projection, discretization, initialization, projection_margin
        )
        chosen = steps if solver is None else solver
        others = {key: value for key, value in choices.items() if key not in CHOICES}
        arguments.solver(type(self).__name__, chosen, others, [*SETTINGS, *CHOICES])
        self.rnn = ContinuousRNN(field, chosen, dt, **choices)
        self.C = nn.Parameter(torch.empty(features, 2 * size // heads))
        self.D = nn.Parameter(torch.empty(features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, those of the field too."""
        self.field.reset_parameters()
        uniform_([self.C], self.C.shape[1] // 2)
        nn.init.normal_(self.D)

    @property
    def field(self) -> LinearOscillator:
        """The oscillators."""
        field = self.rnn.field
        assert isinstance(field, LinearOscillator)
        return field

    @property
    def solver(self) -> solvers.Solver:
        """The solver of the recurrence."""
        return self.rnn.solver

    def with_solver(self, solver: str | dict[str, Any] | solvers.Solver, **choices: Any) -> LinOSS:
        """The same weights (shared, not copied) under another solver; see `ContinuousRNN.with_solver`."""
        return replaced(self, rnn=self.rnn.with_solver(solver, **choices))

    def begin(self, batch: int, state: Tensor | None = None, time: Tensor | float = 0.0) -> Stream:
        """The beginning of a stream; see `ContinuousRNN.begin`."""
        return self.rnn.begin(batch, state, time)

    def _run(self, x: Tensor, state: Any, timespans: Tensor | None, lengths: Lengths | None) -> tuple[Tensor, Any]:
        if isinstance(state, Stream):
            q, after, u = run_chunk(self.rnn, x, state, timespans, lengths)
            return self.readout(q, u), after
        solution = self.solve(x, state, timespans, lengths)
        return self.readout(solution.output, solution.inputs[0]), solution.state

    def solve(
        self,
        x: Tensor,
        state: Tensor | None = None,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
    ) -> Solution:
        """The run of the recurrence alone, before the read-out; see `ContinuousRNN.solve`."""
        return self.rnn.solve(x, state, timespans, lengths)

    def readout(self, q: Tensor, u: Tensor) -> Tensor:
        """Re(C x) + D u: positions `(*batch, 2 state_size)` and inputs `(*batch, features)` to outputs."""
        real, imaginary = self.C.chunk(2, 1)
        weight = torch.cat((real, -imaginary), 1)
        heads = self.field.heads
        if heads > 1:
            # From parts over heads to heads over parts: the channels of one head side by side.
            q = q.unflatten(-1, (2, heads, -1)).transpose(-3, -2).flatten(-3)
        return torch.addcmul(grouped(q, weight, heads), self.D, u)

    def step(
        self, x: Tensor, state: Tensor | Stream | None = None, timespan: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor | Stream]:
        """One sample at a time, `(batch, features)`; see `ContinuousRNN.step`."""
        refresh(self)
        q, after = self.rnn.step(x, state, timespan)
        return self.readout(q, after.seen if isinstance(after, Stream) else x), after

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        field = self.field
        return (
            f"features={self.input_size}, state_size={field.hidden_size // 2}, heads={field.heads}, "
            f"discretization={field.discretization!r}, damped={field.G is not None}, projection={field.projection!r}"
        )


M = TypeVar("M", bound=nn.Module)


def replaced(module: M, **children: nn.Module) -> M:
    """A network of its own over the same tensors, but for these children."""
    copied = twin(module)
    copied._modules.update(children)
    return copied
