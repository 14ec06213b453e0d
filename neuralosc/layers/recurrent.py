"""What every recurrent layer shares: how it is called, and what is checked of a call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from neuralosc import arguments
from neuralosc.fields.decay import Decay
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.missing import Memory, filled
from solvers.base.values import finite
from solvers.errors import InputError, NonFiniteStateError


class RecurrentLayer(nn.Module):
    """A layer called like `torch.nn.RNN`, batch first: `output, state = layer(x, state, timespans, lengths)`.

    Attributes:
        input_size: features of a sample.
        hidden_size: channels of each component of the state.
        components: components of the state; the first is the output.
        num_layers: layers of the stack.
        directions: 2 in a bidirectional network, else 1.
        dropout: probability of dropping a channel.
        missing: what to do with NaN in x.
        config: what `neuralosc.make` needs to build this network again; None for one that it did not make.
    """

    config: dict[str, Any] | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        components: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        missing: str,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.components = input_size, hidden_size, components
        self.num_layers, self.directions = num_layers, 2 if bidirectional else 1
        self.dropout = arguments.probability("dropout", dropout)
        self.missing = arguments.choice("missing", missing, arguments.MISSING)
        self.decay = Decay(input_size) if missing == "decay" else None
        self.config = None

    @property
    def bidirectional(self) -> bool:
        """Whether every layer sees the samples in both orders."""
        return self.directions == 2

    @property
    def output_size(self) -> int:
        """Features of the output: `hidden_size` from each direction."""
        return self.directions * self.hidden_size

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `forward`; a keyword that it does not take is refused with the one that was meant."""
        if kwargs and not torch.compiler.is_compiling():
            names = _keywords(type(self).forward)
            if names is not None:
                arguments.known(f"a call of {type(self).__name__}", kwargs, names)
        return super().__call__(*args, **kwargs)

    @overload
    def forward(
        self, x: Tensor, state: Tensor | None = None, timespans: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, x: PackedSequence, state: Tensor | None = None, timespans: Tensor | None = None, lengths: None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    @overload
    def forward(
        self, x: Tensor, state: Any, timespans: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Any]: ...

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: Any = None,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Tensor | PackedSequence, Any]:
        """Run over a batch of sequences.

        Args:
            x: `(batch, time, input)`, or a PackedSequence, which also comes back.
            state: initial state, `(batch, components, hidden)`, with a leading axis for the layers of a stack and the
                directions of each (layer 0, layer 0 reversed, layer 1, ...); when left out zeros, or what a field makes
                of its first sample (`VectorField.initial_state`). A `ContinuousRNN` takes a `Stream`, too, and then
                gives one; see `ContinuousRNN.begin`.
            timespans: time elapsed since the previous sample, in units of dt: `(batch, time)` or `(time,)`; ones when
                left out. The first is the time for which the first sample acts on the initial state. Under control
                "hold" a sample acts during the timespan before it, so that one of 0 takes its effect away, of which a
                network warns once; a field that jumps at samples, or is a map from one to the next, feels it there, and
                under other controls warns. A field driven by the derivative of its input rests until the first sample.
            lengths: number of valid samples of each sequence, `(batch,)`, 0 for one without any. No time passes in
                padded samples: the state stays, and so does the output.

        Returns:
            output `(batch, time, hidden)`, position after every sample, and the state after the last valid sample. Of a
            bidirectional network the output is `(batch, time, 2 hidden)`, at each sample what the forward direction
            knows of it and the samples before, then what the reverse direction knows of it and those after; the state
            of the reverse direction is the one after the first sample, which is its last.

        Raises:
            InputError: shapes, dtypes, devices or values that do not fit.
            NumericalError: the state became non-finite, or an adaptive solver gave up.
        """
        if not isinstance(x, PackedSequence):
            return self._run(x, state, timespans, lengths)
        if lengths is not None:
            raise InputError("lengths was given with a PackedSequence, which carries its own: leave it out")
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        output, end = self._run(padded, state, timespans, lengths)
        return inputs.pack_like(output, lengths, x), end

    def _run(self, x: Tensor, state: Any, timespans: Tensor | None, lengths: Lengths | None) -> tuple[Tensor, Any]:
        """Output and state of padded sequences."""
        raise NotImplementedError

    def checked(
        self, x: Tensor, timespans: Tensor | None, lengths: Lengths | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the first layer is shown of x, the timespans if any are needed, and which samples are valid if given.

        Timespans are `(time,)` or `(batch, time)`; with lengths they are `(batch, time)`, 0 in the padding.
        """
        return self.checked_after(None, x, timespans, lengths)[:3]

    def checked_after(
        self, memory: Memory | None, x: Tensor, timespans: Tensor | None, lengths: Lengths | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Memory]:
        """The same after earlier samples, and what is known after these."""
        inputs.check_sequence(x, self.input_size, self)
        valid = None if lengths is None else inputs.valid_steps(lengths, x)
        spans = None if timespans is None else inputs.check_timespans(timespans, x, valid)
        if memory is not None and memory.last.shape != x[:, 0].shape:
            raise InputError(
                f"x has samples {tuple(x[:, 0].shape)}, the stream goes on from {tuple(memory.last.shape)}"
            )
        if valid is not None:
            spans = valid.to(x.dtype) if spans is None else spans
            if self.missing != "hold":
                # Padding may hold anything, NaN included; it must not reach the arithmetic. Where values are held it
                # is held over, too.
                x = inputs.without_padding(x, valid, 0.0 if memory is None else memory.last.unsqueeze(1))
        x, after = filled(x, self.missing, spans, memory, self.decay, valid)
        if valid is not None and self.missing not in arguments.HELD:
            # What "mask" tells of the time before a sample goes on in the padding, which a control may look ahead to.
            x = inputs.without_padding(x, valid, x[:, :1])
        return x, spans, valid, after

    def initial(self, state: Tensor | None, x: Tensor) -> Sequence[Tensor]:
        """The state of each layer and direction to start from: the one given, checked, or zeros."""
        shape: tuple[int, ...] = (x.shape[0], self.components, self.hidden_size)
        count = self.num_layers * self.directions
        kind = inputs.state_dtype(x, self)
        if state is None:
            return [x.new_zeros(shape, dtype=kind)] * count
        if count == 1:
            return [inputs.check_state(state, shape, x, kind)]
        return inputs.check_state(state, (count, *shape), x, kind).unbind(0)


def gathered(states: Sequence[Tensor]) -> Tensor:
    """The states of all layers and directions as one tensor, without a leading axis where there is only one."""
    return torch.stack(tuple(states)) if len(states) > 1 else states[0]


def single(x: Tensor, rnn: RecurrentLayer) -> Tensor:
    """One sample `(batch, input)`, checked, as a sequence of one; finite where the layer fills no missing values."""
    if not isinstance(x, Tensor) or x.is_nested or x.dim() != 2 or x.shape[1] != rnn.input_size:
        shape = "is a nested tensor" if isinstance(x, Tensor) and x.is_nested else None
        got = shape or (f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}")
        raise InputError(f"x {got}, expected one sample (batch, {rnn.input_size}): call the layer for whole sequences")
    series = x.unsqueeze(1)
    inputs.check_sequence(series, rnn.input_size, rnn)
    return series if rnn.missing != "error" else inputs.filled(series, rnn.missing)


def stepped(rnn: RecurrentLayer, x: Tensor, state: Any, timespan: Tensor | float | None) -> tuple[Tensor, Any]:
    """One sample `(batch, input)` at a time: what `step` of a layer does, also for one that has none.

    Raises:
        InputError: it cannot be fed so.
    """
    step = getattr(rnn, "step", None)
    if step is not None:
        output, after = step(x, state, timespan)
        return output, after
    if rnn.bidirectional:
        raise InputError(
            "a step does not know the samples to come, which a bidirectional network needs: call it on whole sequences"
        )
    if rnn.missing != "error":
        raise InputError(
            f"a step of a {type(rnn).__name__} remembers no earlier sample, which missing={rnn.missing!r} needs: make "
            "it with missing='error' and give samples without NaN"
        )
    span = torch.as_tensor(timespan).expand(x.shape[:1]).unsqueeze(1) if timespan is not None else None
    outputs, after = rnn(single(x, rnn), state, span)
    return outputs.squeeze(1), after


@functools.cache
def _keywords(forward: Callable[..., Any]) -> tuple[str, ...] | None:
    """The names of what such a function takes after the module, or None if it takes any."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return None if anything else tuple(parameter.name for parameter in parameters)


@contextmanager
def weights_blamed(module: nn.Module) -> Iterator[None]:
    """A state that leaves the numbers because of a weight that is none is no matter of the step size: say so."""
    try:
        yield
    except NonFiniteStateError as error:
        for name, parameter in module.named_parameters():
            if not finite(parameter):
                error.what, error.advice = f"the weight {name} is NaN or infinite", "load or draw finite weights"
                break
        raise


def recurrent(rnn: Any) -> RecurrentLayer:
    """Refuse what is no recurrent layer."""
    if isinstance(rnn, RecurrentLayer):
        return rnn
    raise InputError(
        f"rnn is a {type(rnn).__name__}, expected a recurrent layer of neuralosc: of a module that holds one, give the "
        "layer, which with a read-out makes a neuralosc.SequenceModel; keep any other by its state_dict"
    )
