"""The recurrent networks of torch.nn as they are, under the interface of the layer: what others are compared with."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from neuralosc import arguments
from neuralosc.arguments import shown as seen_as
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.recurrent import RecurrentLayer, gathered
from neuralosc.named.cards import named
from solvers.errors import InputError

#: What to do with the timespans of a call.
TIMESPANS = {"refuse": "a call that has them", "feature": "append them to the samples"}


class Baseline(RecurrentLayer):
    """A network of torch.nn, computed by torch, called like a `ContinuousRNN`.

    It maps one sample to the next and is no differential equation: there is no dt and no solver to choose. State and
    output are those of torch, batch first: the state has a component for each tensor of torch's, h and for an LSTM c,
    and the output stays in the padding, where torch puts zeros.

    Args:
        input_size: features of a sample.
        hidden_size: channels.
        bias: with both biases, or neither.
        num_layers: layers of the stack.
        bidirectional: run every layer in both directions.
        dropout: probability of dropping a channel between two layers, at each time anew, as torch does.
        missing: what to do with NaN in x, see `ContinuousRNN`.
        timespans: what to do with the timespans of a call: "refuse" them, or append them to the samples as one more
            "feature", ones where a call has none.

    Attributes:
        core: the module of torch.
    """

    name: ClassVar[str]
    kind: ClassVar[type[nn.LSTM | nn.GRU]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        missing: str = "error",
        timespans: str = "refuse",
        **others: Any,
    ) -> None:
        taken = ("bias", "num_layers", "bidirectional", "dropout", "missing", "timespans")
        arguments.known(self.name, others, taken)
        super().__init__(
            arguments.count("input_size", input_size),
            arguments.count("hidden_size", hidden_size),
            2 if issubclass(self.kind, nn.LSTM) else 1,
            arguments.count("num_layers", num_layers),
            arguments.flag("bidirectional", bidirectional),
            dropout,
            missing,
        )
        self.timespans = arguments.choice("timespans", timespans, TIMESPANS)
        self.core = self.kind(
            seen_as(missing, input_size) + (timespans == "feature"),
            hidden_size,
            num_layers,
            bias=arguments.flag("bias", bias),
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=bidirectional,
        )
        self.config = {
            "model": self.name,
            "input_size": input_size,
            "hidden_size": hidden_size,
            "bias": bias,
            "num_layers": num_layers,
            "bidirectional": bidirectional,
            "dropout": self.dropout,
            "missing": missing,
            "timespans": timespans,
        }

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return f"missing={self.missing!r}, timespans={self.timespans!r}"

    def _run(
        self, x: Tensor, state: Tensor | None, timespans: Tensor | None, lengths: Lengths | None
    ) -> tuple[Tensor, Tensor]:
        if timespans is not None and self.timespans == "refuse":
            raise InputError(
                f"timespans was given to {self.name!r}, which knows no time between its samples: leave it out, or make "
                'the network with timespans="feature"'
            )
        x, spans, valid = self.checked(x, timespans, lengths)
        start = None if state is None else self._parts(torch.stack(tuple(self.initial(state, x))))
        if self.timespans == "feature":
            # Without timespans those of `checked` say only which samples are valid.
            shown = x.new_ones(x.shape[:2]) if spans is None or timespans is None else spans.expand(x.shape[:2])
            x = torch.cat((x, shown.unsqueeze(-1)), dim=-1)
        if valid is None or not len(x):
            output, end = self.core(x, start)
            return output, self._whole(end)
        # What is packed has a sample; of sequences without any it is left out again.
        packed = pack_padded_sequence(x, valid.sum(1).clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
        output, end = self.core(packed, start)
        padded, _ = pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])
        begun = gathered(self.initial(state, x))
        shown = begun if begun.dim() == 3 else torch.cat(tuple(begun[-self.directions :]), -1)
        whole = torch.where(valid.any(1).view(-1, 1, 1), self._whole(end), begun)
        return inputs.without_padding(padded, valid, shown[:, :1]), whole

    def _parts(self, state: Tensor) -> Any:
        """The state `(layers * directions, batch, components, hidden)` as torch takes it."""
        parts = tuple(part.contiguous() for part in state.unbind(-2))
        return parts if self.components > 1 else parts[0]

    def _whole(self, parts: Any) -> Tensor:
        """The inverse, without a leading axis where there is one layer in one direction."""
        state = torch.stack(parts if self.components > 1 else (parts,), dim=-2)
        return state if len(state) > 1 else state[0]


@named(
    "lstm",
    "LSTM (torch.nn.LSTM, a baseline)",
    "Hochreiter & Schmidhuber, Neural Computation 1997",
    "c+ = f c + i g, h+ = o tanh(c+), g = tanh(W h + u), f, i and o = sigmoid(W h + u)",
    None,
)
class LSTM(Baseline):
    """`torch.nn.LSTM`, state (h, c). See `Baseline`."""

    name = "lstm"
    kind = nn.LSTM


@named(
    "torch_gru",
    "GRU (torch.nn.GRU, a baseline)",
    "Cho et al., EMNLP 2014",
    "h+ = (1 - z) n + z h; `gru` is the same as a differential equation",
    None,
)
class TorchGRU(Baseline):
    """`torch.nn.GRU`, run by torch; `GRU` is the same network as a vector field. See `Baseline`."""

    name = "torch_gru"
    kind = nn.GRU
