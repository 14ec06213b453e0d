"""The published network around LinOSS layers: batch normalization, the block, and a stack of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

import solvers
from neuralosc import arguments
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.linoss import LinOSS, replaced
from neuralosc.layers.recurrent import RecurrentLayer, gathered, single, weights_blamed
from neuralosc.layers.stream import Stream
from solvers.base.values import finite
from solvers.errors import InputError, NonFiniteStateError


def normalized(norm: nn.Module, x: Tensor, valid: Tensor | None = None) -> Tensor:
    """x `(batch, time, features)` by batch normalization; of `valid` samples `(batch, time)` alone, where given.

    `norm` takes samples `(samples, features)`: `nn.BatchNorm1d`, or what torch puts in its place.
    """

    def called(rows: Tensor) -> Tensor:
        if norm.training and len(rows) < 2:
            raise InputError("batch normalization was given one sample to train on, expected two: call eval() first")
        result: Tensor = norm(rows)
        return result

    if not norm.training or valid is None:
        return called(x.flatten(0, 1)).view_as(x)
    return inputs.without_padding(x.masked_scatter(valid.unsqueeze(-1), called(x[valid]).to(x.dtype)), valid)


class LinOSSBlock(RecurrentLayer):
    """The block of the published model: x + drop(glu(drop(gelu(layer(norm(x)))))).

    Called like every `RecurrentLayer`. The norm is batch normalization without affine map, over valid samples alone;
    glu(x) = (W x + b) sigmoid(V x + c).

    Args:
        features: of input and output.
        dropout: probability of dropping an entry, in both places.
        settings: of the layer; see `LinOSS`.
    """

    def __init__(self, features: int, *, dropout: float = 0.05, **settings: Any) -> None:
        super().__init__(features, features, 2, 1, False, dropout, "error")
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.layer = LinOSS(features, **settings)
        self.glu = nn.Linear(features, 2 * features)
        self.drop = nn.Dropout(self.dropout)

    @property
    def solver(self) -> solvers.Solver:
        """The solver of the recurrence."""
        return self.layer.solver

    def with_solver(self, solver: str | dict[str, Any] | solvers.Solver, **choices: Any) -> LinOSSBlock:
        """The same weights (shared, not copied) under another solver; see `ContinuousRNN.with_solver`."""
        return replaced(self, layer=self.layer.with_solver(solver, **choices))

    def _run(self, x: Tensor, state: Any, timespans: Tensor | None, lengths: Lengths | None) -> tuple[Tensor, Any]:
        x, _, valid = self.checked(x, timespans, lengths)
        y, end = self.layer(normalized(self.norm, x, valid), state, timespans, lengths)
        return self.merged(x, y), end

    def merged(self, x: Tensor, y: Tensor) -> Tensor:
        """The output, from the input of the block and the output of its layer."""
        # The published code approximates GELU by tanh.
        mixed = self.glu(self.drop(functional.gelu(y, approximate="tanh")))
        merged: Tensor = x + self.drop(functional.glu(mixed, -1))
        return merged

    def step(
        self, x: Tensor, state: Tensor | Stream | None = None, timespan: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor | Stream]:
        """One sample at a time; see `ContinuousRNN.step`."""
        if self.training:
            raise InputError("step would normalize each sample by itself in training: call eval() first")
        y, after = self.layer.step(normalized(self.norm, x.unsqueeze(1)).squeeze(1), state, timespan)
        return self.merged(x, y), after


class LinOSSNetwork(RecurrentLayer):
    """A stack of LinOSS blocks behind a linear encoder.

    Called like every `RecurrentLayer`; the state is that of the recurrences, `([blocks,] batch, 2, 2 state_size)`.

    Args:
        input_size: features of a sample.
        hidden_size: features inside, and of the output.
        num_layers: blocks.
        dropout: of the blocks.
        dt: one number, or one per block.
        missing: what to do with NaN in x; see `ContinuousRNN`.
        settings: of the layers; see `LinOSS`.

    Source: see `LinOSS`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 2,
        *,
        dropout: float = 0.05,
        dt: float | Sequence[float] = 1.0,
        missing: str = "error",
        **settings: Any,
    ) -> None:
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            arguments.count(name, size)
        arguments.choice("missing", missing, arguments.HELD)
        super().__init__(input_size, hidden_size, 2, num_layers, False, dropout, missing)
        steps = arguments.steps(dt, num_layers)
        self.encoder = nn.Linear(input_size, hidden_size)
        self.blocks = nn.ModuleList(LinOSSBlock(hidden_size, dropout=dropout, dt=h, **settings) for h in steps)

    @property
    def layers(self) -> list[LinOSS]:
        """The layer of each block."""
        return [block.layer for block in self.blocks if isinstance(block, LinOSSBlock)]

    @property
    def solver(self) -> solvers.Solver:
        """The solver of the layers."""
        return self.layers[0].solver

    def choices(self) -> dict[str, Any]:
        """The independent choices, as configurations store them; see `ContinuousRNN.choices`."""
        dts = [layer.rnn.dts[0] for layer in self.layers]
        return {**self.layers[0].rnn.choices(), "dt": dts[0] if len(set(dts)) == 1 else dts}

    def with_solver(
        self, solver: str | dict[str, Any] | solvers.Solver, *, dt: Any = None, **choices: Any
    ) -> LinOSSNetwork:
        """The same weights (shared, not copied) under another solver; see `ContinuousRNN.with_solver`."""
        steps: Sequence[Any] = [None] * self.num_layers if dt is None else arguments.steps(dt, self.num_layers)
        blocks = [block.with_solver(solver, dt=h, **choices) for block, h in zip(self.blocks, steps, strict=True)]  # type: ignore[operator]
        swapped = replaced(self, blocks=nn.ModuleList(blocks))
        if self.config is not None:
            swapped.config = {**self.config, **swapped.choices()}
        return swapped

    def _run(self, x: Tensor, state: Any, timespans: Tensor | None, lengths: Lengths | None) -> tuple[Tensor, Any]:
        x, _, _ = self.checked(x, timespans, lengths)
        x, ends = self._sound(self.encoder(x)), []
        for block, start in zip(self.blocks, self._states(state), strict=True):
            x, end = block(x, start, timespans, lengths)
            x = self._sound(x)
            ends.append(end)
        return x, _after(ends)

    def begin(self, batch: int, state: Tensor | None = None, time: Tensor | float = 0.0) -> tuple[Stream, ...]:
        """The beginning of a stream, one of each block; see `ContinuousRNN.begin`."""
        starts = zip(self.layers, self._states(state), strict=True)
        return tuple(layer.begin(batch, start, time) for layer, start in starts)

    def step(
        self, x: Tensor, state: Any = None, timespan: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor | tuple[Tensor | Stream, ...]]:
        """One sample at a time, `(batch, input)`; what it returns besides the output goes into the next step."""
        if self.missing != "error":
            raise InputError("step does not fill missing values: give samples without NaN, and missing='error'")
        x, ends = self._sound(self.encoder(single(x, self).squeeze(1))), []
        for block, start in zip(self.blocks, self._states(state), strict=True):
            assert isinstance(block, LinOSSBlock)
            x, end = block.step(x, start, timespan)
            x = self._sound(x)
            ends.append(end)
        return x, _after(ends)

    def _sound(self, x: Tensor) -> Tensor:
        """What goes from module to module, refused where weights have made no numbers of it."""
        if not finite(x):
            with weights_blamed(self):
                raise NonFiniteStateError("what goes into a block became non-finite")
        return x

    def _states(self, state: Any) -> Sequence[Any]:
        """The state of each block."""
        if state is None:
            return [None] * self.num_layers
        if isinstance(state, tuple):
            return state
        size = self.layers[0].field.hidden_size
        if not isinstance(state, Tensor) or state.dim() < 3 or (self.num_layers > 1 and len(state) != self.num_layers):
            actual = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise InputError(f"state is {actual}, expected ([{self.num_layers},] batch, 2, {size})")
        return state.unbind(0) if self.num_layers > 1 else [state]


def _after(ends: list[Any]) -> Any:
    """What the blocks give on: one state, or a stream of each."""
    return tuple(ends) if any(isinstance(end, Stream) for end in ends) else gathered(ends)
