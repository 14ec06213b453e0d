"""Networks that rows name, made of the library's: `experiments.reproduce.networks:StateAndSample`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import neuralosc


class StateAndSample(nn.Module):
    """A gated recurrent unit, and beside its state what two maps make of the sample alone: [h_t, g_t, tanh(A x_t + a)].

        h_t   state of a GRU after the samples up to x_t, at their times
        g_t   state of a second GRU after x_t alone, one step from rest

    For samples that sum up what came before them (running means, counts): these reach the read-out as they are, while
    the state is left what they do not tell.

    Args:
        input_size: features of a sample.
        hidden_size: of each of the three parts.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.rnn = neuralosc.make("gru", input_size=input_size, hidden_size=hidden_size)
        self.alone = neuralosc.make("gru", input_size=input_size, hidden_size=hidden_size)
        self.map = nn.Linear(input_size, hidden_size)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        timespans: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs `(batch, time, 3 hidden)`, and the state of the first GRU; see `neuralosc.ContinuousRNN`."""
        h, after = self.rnn(x, state, timespans, lengths)
        g, _ = self.alone(x.flatten(0, 1).unsqueeze(1))
        return torch.cat((h, g.view_as(h), torch.tanh(self.map(x))), -1), after
