"""Hamiltonian fields: from any scalar energy, the dense energies of the Hamiltonian RNN, and a learned energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.arguments import count, flag
from neuralosc.field import LinearDrive, Partitioned
from neuralosc.fields.energies import log_cosh
from neuralosc.fields.parameters import Coefficient, Paced, Value, choice, uniform_
from solvers.base.state import affine
from solvers.base.unhooked import unhooked
from solvers.errors import InputError
from solvers.protocol import Time

#: What a learned energy is a function of, and what its network starts from.
FORMS, STARTS = ("separable", "dense"), ("learned", "sample")


class Hamiltonian(Partitioned):
    """The field of a scalar energy H(state, u): dq = dH/dp, dp = -dH/dq, by automatic differentiation.

    Write `energy` in a subclass, or pass it:

        Hamiltonian(1, 8, energy=lambda state, u: 0.5 * state.square().sum((-2, -1)) - (u * state[..., 0, :]).sum(-1))

    Args:
        input_size: features of the input.
        hidden_size: channels of position and of velocity.
        energy: H(state, u) with one value per sample, `(*batch,)`.
        separable: declare that H = T(p) + V(q, u), which symplectic methods need to be exactly symplectic.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        energy: Callable[[Tensor, Tensor], Tensor] | None = None,
        separable: bool | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self._energy = energy
        if separable is not None:
            self.separable = flag("separable", separable)

    @property
    def structure(self) -> frozenset[str]:
        """Adds hamiltonian."""
        return super().structure | {"hamiltonian"}

    def energy(self, state: Tensor, u: Tensor) -> Tensor:
        """H(state, u), `(*batch,)`."""
        if self._energy is None:
            raise InputError(
                f"{type(self).__name__} defines no energy(state, u): write it in the subclass or pass energy=..."
            )
        return self._energy(state, u)

    def _total(self, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        energy = self.energy(torch.stack((q, p), dim=-2), u)
        if energy.shape != q.shape[:-1]:
            raise InputError(
                f"the energy of {type(self).__name__} has shape {tuple(energy.shape)}, expected one value per sample, "
                f"{tuple(q.shape[:-1])}: sum over components and channels, (-2, -1)"
            )
        return energy.sum()

    def velocity(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """dH/dp."""
        with unhooked():
            slope: Tensor = torch.func.grad(self._total, argnums=1)(q, p, u)
        return slope

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """-dH/dq."""
        with unhooked():
            slope: Tensor = torch.func.grad(self._total, argnums=0)(q, p, u)
        return -slope

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """(dH/dp, -dH/dq) in one differentiation."""
        q, p = state.unbind(-2)
        with unhooked():
            dq, dp = torch.func.grad(self._total, argnums=(0, 1))(q, p, u)
        return torch.stack((dp, -dq), dim=-2)


class DenseHamiltonian(LinearDrive, Paced, Partitioned):
    """The separable dense energies of the Hamiltonian RNN.

        one layer:   H = sum log cosh(W q + u) + alpha |q|^2 / 2 + |p|^2 / 2
        two layers:  the same with sum log cosh(R p + r) added

        dq = p  [+ R^T tanh(R p + r)],    dp = -W^T tanh(W q + u) - alpha q,    u = V x + b

    Args:
        input_size: features of the input.
        hidden_size: channels of position and of velocity.
        alpha: stiffness, at least 0, a number or one per channel.
        energy_layers: 1 or 2.
        learned: train alpha, kept positive.
        time_scale: a positive factor on dq and dp, a number or one per channel; it leaves the energy conserved.
            `velocity` and `force` are without it.
        learned_time_scale: train it, per channel.

    Initialised like `nn.Linear`.
    """

    separable = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha: Value = 1.0,
        energy_layers: int = 1,
        learned: bool = False,
        time_scale: Value | None = None,
        learned_time_scale: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.set_pace(time_scale, learned_time_scale)
        if energy_layers not in (1, 2):
            raise InputError(f"energy_layers is {energy_layers!r}, expected 1 or 2")
        self.alpha, self.energy_layers = Coefficient("alpha", alpha, hidden_size, learned), energy_layers
        self.V = nn.Linear(input_size, hidden_size)
        self.W = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.R = nn.Linear(hidden_size, hidden_size) if energy_layers == 2 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.V.reset_parameters()
        uniform_([self.W], self.hidden_size)
        if self.R is not None:
            self.R.reset_parameters()

    @property
    def structure(self) -> frozenset[str]:
        """Adds hamiltonian."""
        return super().structure | {"hamiltonian"}

    def prepare(self) -> dict[str, Any]:
        """alpha, and the time scale."""
        return {"alpha": self.alpha(), **self.pace()}

    def velocity(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """dH/dp."""
        return p if self.R is None else p + torch.tanh(self.R(p)) @ self.R.weight

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """-dH/dq."""
        return -affine(self.constants["alpha"] * q, torch.tanh(affine(u, q, self.W.T)), self.W)

    def energy(self, state: Tensor, u: Tensor) -> Tensor:
        """H, `(*batch,)`."""
        q, p = state.unbind(-2)
        energy = log_cosh(affine(u, q, self.W.T)) + self.constants["alpha"] * q.square() / 2 + p.square() / 2
        total: Tensor = (energy if self.R is None else energy + log_cosh(self.R(p))).sum(-1)
        return total


class NeuralHamiltonian(Partitioned):
    """The field of an energy that is a network of one hidden layer, which nothing drives: what a closed system does.

        separable:  H(q, p) = a . log cosh(W q + b) + c . log cosh(R p + r)
        dense:      H(q, p) = a . log cosh(W (q, p) + b)

        dq = dH/dp,    dp = -dH/dq

    so that a force is a network of tanh. The weights a and c have either sign. Of the samples only the first is looked
    at, for the state to start from; see `start_from`.

    Args:
        input_size: features of the input.
        hidden_size: degrees of freedom, channels of position and of momentum.
        energy_size: units of each hidden layer.
        energy_form: "separable", T(p) + V(q), which explicit symplectic methods and compositions of them need to be
            symplectic; or "dense", of position and momentum together.
        start_from: "sample", the first sample is the state (q, p) itself, of `input_size` 2 `hidden_size`; "learned",
            A x + b of it.

    Initialised like `nn.Linear`.

    Source: Greydanus, Dzamba, Yosinski, Hamiltonian Neural Networks, NeurIPS 2019 (dense); Chen, Zhang, Arjovsky,
    Bottou, Symplectic Recurrent Neural Networks, ICLR 2020 (separable, trained on trajectories). Their networks have
    other activations.

    Raises:
        InputError: an unknown form or start, or sizes that "sample" cannot be used with.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        energy_size: int = 64,
        energy_form: str = "separable",
        start_from: str = "learned",
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.energy_size = count("energy_size", energy_size)
        self.energy_form = choice("energy_form", energy_form, FORMS)
        self.separable = self.energy_form == "separable"
        if choice("start_from", start_from, STARTS) == "sample" and input_size != 2 * hidden_size:
            raise InputError(
                f"start_from is 'sample', and input_size {input_size} with hidden_size {hidden_size}: the first sample "
                f"must be position and momentum, {2 * hidden_size} features for {hidden_size} degrees of freedom"
            )
        self.start = nn.Linear(input_size, 2 * hidden_size) if start_from == "learned" else None
        self.W = nn.Linear(hidden_size if self.separable else 2 * hidden_size, energy_size)
        self.a = nn.Parameter(torch.empty(energy_size))
        self.R = nn.Linear(hidden_size, energy_size) if self.separable else None
        self.c = nn.Parameter(torch.empty(energy_size)) if self.separable else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for layer in (self.start, self.W, self.R):
            if layer is not None:
                layer.reset_parameters()
        uniform_([self.a] if self.c is None else [self.a, self.c], self.energy_size)

    @property
    def structure(self) -> frozenset[str]:
        """Adds hamiltonian."""
        return super().structure | {"hamiltonian"}

    def initial_state(self, x: Tensor) -> Tensor:
        """The first sample as (q, p), or what is learned of it."""
        state: Tensor = (x if self.start is None else self.start(x)).unflatten(-1, (2, self.hidden_size))
        return state

    def velocity(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """dH/dp."""
        if self.R is None or self.c is None:
            return self._slopes(q, p)[1]
        return (self.c * torch.tanh(self.R(p))) @ self.R.weight

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """-dH/dq."""
        if self.R is None:
            return -self._slopes(q, p)[0]
        return -(self.a * torch.tanh(self.W(q))) @ self.W.weight

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """(dH/dp, -dH/dq)."""
        q, p = state.unbind(-2)
        if self.R is not None:
            return super().forward(t, state, u)
        dq, dp = self._slopes(q, p)
        return torch.stack((dp, -dq), dim=-2)

    def energy(self, state: Tensor, u: Tensor) -> Tensor:
        """H, `(*batch,)`."""
        q, p = state.unbind(-2)
        if self.R is None or self.c is None:
            return (self.a * log_cosh(self.W(torch.cat((q, p), -1)))).sum(-1)
        return (self.a * log_cosh(self.W(q)) + self.c * log_cosh(self.R(p))).sum(-1)

    def _slopes(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """(dH/dq, dH/dp) of the dense energy."""
        slopes = (self.a * torch.tanh(self.W(torch.cat((q, p), -1)))) @ self.W.weight
        dq, dp = slopes.chunk(2, -1)
        return dq, dp
