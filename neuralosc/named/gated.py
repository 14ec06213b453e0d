"""The vanilla RNN and the GRU: Euler steps of length 1 that are `torch.nn.RNN` and `torch.nn.GRU`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

import solvers
from neuralosc import arguments
from neuralosc.fields import GatedRelaxation, Relaxation
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, configuration, equal_fields, named
from neuralosc.named.published import fill
from solvers.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class _TorchEqual(ContinuousRNN):
    """A network whose fields have the weights of a module of torch."""

    torch_kind: ClassVar[type[nn.RNN | nn.GRU]]

    @classmethod
    def from_torch(cls, module: nn.RNN | nn.GRU, **choices: Any) -> Self:
        """The network of a module of torch of the same name, with a copy of its weights: equal outputs, to rounding.

        Args:
            module: batch first or not; the network is batch first in any case, and so is its state. Its dropout is
                taken over, where it has any effect, so that both are equal in evaluation mode only.
            choices: further arguments of the network, such as `solver`.

        Raises:
            InputError: a module of another kind, or a choice that it decides.
        """
        arguments.torch_module(module, cls.torch_kind)
        keys = ["input_size", "hidden_size", "bias", "num_layers", "bidirectional"]
        keys += ["nonlinearity"] if isinstance(module, nn.RNN) else []
        decided = sorted(choices.keys() & set(keys))
        if decided:
            raise InputError(f"{', '.join(decided)} was given with a module that decides it: leave it out")
        dropout = module.dropout if module.num_layers > 1 else 0.0
        make: Any = cls
        with torch.random.fork_rng(devices=[]):
            rnn: Self = make(**{"dropout": dropout, **{key: getattr(module, key) for key in keys}, **choices})
        rnn.to(next(module.parameters()))
        for index, field in enumerate(rnn.fields):
            fill(field, _weights(module, index // rnn.directions, index % rnn.directions), type(module).__name__)
        return rnn.train(module.training)


def _weights(module: nn.RNNBase, layer: int, reverse: int) -> dict[str, Tensor]:
    """The weights of one layer in one direction, by the names that they have in a field."""
    kinds = ("weight", "bias") if module.bias else ("weight",)
    suffix = f"l{layer}{'_reverse' * reverse}"
    return {
        f"{field_name}.{kind}": getattr(module, f"{kind}_{name}_{suffix}").detach()
        for field_name, name in (("V", "ih"), ("W", "hh"))
        for kind in kinds
    }


@named(
    "rnn",
    "Elman RNN (torch.nn.RNN)",
    "Elman, Cognitive Science 1990",
    "dh = -h + phi(W h + b + u)",
    Relaxation,
)
class RNN(_TorchEqual):
    """The vanilla RNN under its Euler step of length 1, which is `torch.nn.RNN`. See `Relaxation`.

    Batch first. Dropout differs from torch's: after each layer, the last included, one mask for all times.
    """

    torch_kind = nn.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dt: float | Sequence[float] = 1.0,
        nonlinearity: str = "tanh",
        bias: bool = True,
        solver: str | dict[str, Any] | solvers.Solver = "euler",
        **choices: Unpack[Choices],
    ) -> None:
        hyperparameters = {"nonlinearity": nonlinearity, "bias": bias}
        fields, settings = equal_fields("rnn", Relaxation, input_size, hidden_size, solver, hyperparameters, choices)
        super().__init__(fields, solver, dt, **settings)
        self.config = configuration("rnn", self, hyperparameters)


@named(
    "gru",
    "GRU (torch.nn.GRU)",
    "Cho et al., EMNLP 2014",
    "dh = (1 - z) (n - h), n = tanh(u + r (W_n h + b)), r and z = sigmoid(W h + b + u)",
    GatedRelaxation,
)
class GRU(_TorchEqual):
    """The GRU under its Euler step of length 1, which is `torch.nn.GRU`. See `GatedRelaxation`.

    Batch first. Dropout differs from torch's: after each layer, the last included, one mask for all times.
    """

    torch_kind = nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dt: float | Sequence[float] = 1.0,
        bias: bool = True,
        solver: str | dict[str, Any] | solvers.Solver = "euler",
        **choices: Unpack[Choices],
    ) -> None:
        fields, settings = equal_fields(
            "gru", GatedRelaxation, input_size, hidden_size, solver, {"bias": bias}, choices
        )
        super().__init__(fields, solver, dt, **settings)
        self.config = configuration("gru", self, {"bias": bias})
