"""Neurons with conductance-based synapses: liquid time constants as neural circuits have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralosc.field import Relaxing
from neuralosc.fields.parameters import number
from solvers.protocol import Time


class LiquidSynapses(Relaxing):
    """The field of liquid time-constant networks with a synapse between each pair of neurons.

        C dv_j = g_j (E_j - v_j) + sum_i w_ij s_ij(v_i) (e_ij - v_j) + sum_k w'_kj s'_kj(x_k) (e'_kj - v_j) - eps v_j
        s_ij(v) = sigmoid(sigma_ij (v - mu_ij)),    x = input_w x + input_b, entry by entry

    C, g, w and w' are kept positive by softplus. The conductances of a neuron add up to its rate, so that the field
    relaxes: the fused step of the paper is `imex_euler`, six times a sample. eps is what the published step adds to
    its denominator.

    The current u, `2 hidden` channels, is what the sensory synapses (w', sigma', mu', e') give: conductance and
    current of each neuron. It is computed once a sample, and is what a control draws between the samples.

    Memory: every evaluation makes a number for each synapse and sample, `(batch, hidden, hidden)`, and training keeps
    it; the sensory synapses take `(batch, time, input, hidden)` once.

    Args:
        input_size: features of the input, sensory neurons.
        hidden_size: neurons.
        epsilon: eps, at least 0.

    Attributes:
        synapses, sensory: the synapses and the sensory ones, see `Synapses`.
        gleak, vleak, cm: g, E and C, g and C before softplus.
        input_w, input_b: the map of the input.

    Initialised as published: w and g from U(0.001, 1) and C from U(0.4, 0.6) before softplus, sigma from U(3, 8), mu
    from U(0.3, 0.8), E from U(-0.2, 0.2), the input map to 1 and 0, reversal potentials e to 1 or -1, two in three
    to 1.

    Source: Lechner, Hasani, Amini, Henzinger, Rus, Grosu, Neural circuit policies enabling auditable autonomy, Nature
    Machine Intelligence 2 (2020), eq. 1 to 3; the step of Hasani, Lechner, Amini, Rus, Grosu, Liquid Time-constant
    Networks, AAAI 2021, algorithm 1.
    """

    dynamics = ("gleak", "vleak", "cm")

    def __init__(self, input_size: int, hidden_size: int, epsilon: float = 1e-8) -> None:
        super().__init__(input_size, hidden_size)
        self.epsilon = number("epsilon", epsilon, 0)
        self.synapses, self.sensory = Synapses(hidden_size, hidden_size), Synapses(input_size, hidden_size)
        self.gleak, self.vleak, self.cm = (nn.Parameter(torch.empty(hidden_size)) for _ in range(3))
        self.input_w, self.input_b = nn.Parameter(torch.empty(input_size)), nn.Parameter(torch.empty(input_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the masks stay."""
        self.synapses.reset_parameters()
        self.sensory.reset_parameters()
        nn.init.uniform_(self.gleak, 0.001, 1.0)
        nn.init.uniform_(self.vleak, -0.2, 0.2)
        nn.init.uniform_(self.cm, 0.4, 0.6)
        nn.init.ones_(self.input_w)
        nn.init.zeros_(self.input_b)

    def prepare(self) -> dict[str, Any]:
        """Conductances of the synapses and of the leak, its current, and capacitances."""
        leak = functional.softplus(self.gleak)
        return {
            "w": self.synapses.conductances(),
            "leak": leak + self.epsilon,
            "leak_current": leak * self.vleak,
            "cm": functional.softplus(self.cm),
        }

    def drive(self, x: Tensor) -> Tensor:
        """Conductance and current of the sensory synapses, `(*batch, time, 2 hidden)`."""
        seen = x * self.input_w + self.input_b
        return torch.cat(self.sensory(seen, self.sensory.conductances()), dim=-1)

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The right-hand side."""
        (v,) = state.unbind(-2)
        conductance, current = self._total(v, u)
        slope: Tensor = (current - conductance * v) / self.constants["cm"]
        return slope.unsqueeze(-2)

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Tensor) -> tuple[Time, Tensor]:
        """The sum of the conductances over C, and the potential at which their currents balance."""
        conductance, current = self._total(components[0], u)
        return conductance / self.constants["cm"], current / conductance

    def _total(self, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Conductance of each neuron, and its current at v = 0."""
        sensory, sensory_current = u.chunk(2, dim=-1)
        conductance, current = self.synapses(v, self.constants["w"])
        conductance = conductance + sensory + self.constants["leak"]
        return conductance, current + sensory_current + self.constants["leak_current"]


class Synapses(nn.Module):
    """Synapses from each of some sources to each of some neurons.

    Attributes:
        w, sigma, mu, erev: `(source, target)`: conductance before softplus, steepness, threshold, reversal potential.
        mask: a buffer of 1 and 0: which synapses there are, at first all.
    """

    mask: Tensor
    dynamics = ("sigma", "mu", "erev")

    def __init__(self, sources: int, targets: int) -> None:
        super().__init__()
        self.w, self.sigma, self.mu, self.erev = (nn.Parameter(torch.empty(sources, targets)) for _ in range(4))
        self.register_buffer("mask", torch.ones(sources, targets))

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.uniform_(self.w, 0.001, 1.0)
        nn.init.uniform_(self.sigma, 3.0, 8.0)
        nn.init.uniform_(self.mu, 0.3, 0.8)
        with torch.no_grad():
            self.erev.copy_(1.0 - 2 * (torch.randint(3, self.erev.shape) == 0))

    def conductances(self) -> Tensor:
        """Those of the open synapses."""
        return functional.softplus(self.w) * self.mask

    def forward(self, source: Tensor, conductances: Tensor) -> tuple[Tensor, Tensor]:
        """Conductance and current that potentials `(*batch, source)` cause in each neuron, `(*batch, target)` each."""
        active = conductances * torch.sigmoid(self.sigma * (source.unsqueeze(-1) - self.mu))
        return active.sum(-2), (active * self.erev).sum(-2)
