"""Every field of the library by name, and two of a user."""

from collections.abc import Callable

import torch
from torch import nn

import neuralosc
import solvers
from solvers.protocol import structure


def pendulum_energy(state, u):
    """A user's own energy, driven through q."""
    q, p = state.unbind(-2)
    return (p.square() / 2 - torch.cos(q) + 0.3 * q.square() - u * q).sum(-1)


class MixedEnergy(neuralosc.Hamiltonian):
    """A user's own energy that does not separate, with parameters."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V = nn.Linear(input_size, hidden_size)
        self.K = nn.Parameter(0.5 * torch.randn(hidden_size, hidden_size) / hidden_size)

    def drive(self, x):
        return self.V(x)

    def energy(self, state, u):
        q, p = state.unbind(-2)
        return (p.square() * (1 + 0.3 * torch.cos(q @ self.K)) / 2 + q.square() / 2 + u * torch.sin(q)).sum(-1)


class Leaky(neuralosc.VectorField):
    """The user's field of ten lines."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V, self.W = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return (torch.tanh(self.W(h) + u) - h).unsqueeze(-2)


class Half:
    """Of a field that is shown what is missing: a feature is seen where it is positive, its square the time since."""

    def __init__(self, input_size, hidden_size, *settings):
        super().__init__(3 * input_size, hidden_size, *settings)
        self.input_size = input_size

    def drive(self, x):
        return super().drive(torch.cat((x, (x > 0).to(x), x.square()), -1))


class HalfDecay(Half, neuralosc.GRUDecay):
    pass


class SmoothBayes(neuralosc.GRUBayes):
    """With tanh for the relu in the right-hand side, across whose kinks a gradient is no better than a step is long."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.p[1] = nn.Tanh()


class HalfBayes(Half, SmoothBayes):
    pass


def per_channel(hidden, low, high):
    return torch.linspace(low, high, hidden, dtype=torch.float64)


#: Every field of the library, and two of a user, from (input_size, hidden_size).
FIELDS: dict[str, Callable[[int, int], neuralosc.VectorField]] = {
    "oscillator": lambda i, h: neuralosc.Oscillator(i, h, gamma=1.7, epsilon=0.6),
    "oscillator_uncoupled": lambda i, h: neuralosc.Oscillator(i, h, gamma=1.7, epsilon=0.6, coupled=False),
    "oscillator_per_channel": lambda i, h: neuralosc.Oscillator(
        i, h, gamma=per_channel(h, 0.5, 2.0), epsilon=per_channel(h, 0.1, 0.9)
    ),
    "oscillator_learned": lambda i, h: neuralosc.Oscillator(i, h, gamma=1.7, epsilon=0.6, learned=True, coupled=False),
    "hamiltonian_oscillator": lambda i, h: neuralosc.HamiltonianOscillator(i, h, alpha=0.8),
    "hamiltonian_energy": MixedEnergy,
    "hamiltonian_one_layer": lambda i, h: neuralosc.DenseHamiltonian(i, h, alpha=0.7),
    "hamiltonian_two_layers": lambda i, h: neuralosc.DenseHamiltonian(i, h, alpha=0.7, energy_layers=2),
    "neural_hamiltonian": lambda i, h: neuralosc.NeuralHamiltonian(i, h, energy_size=8),
    "neural_hamiltonian_dense": lambda i, h: neuralosc.NeuralHamiltonian(i, h, energy_size=8, energy_form="dense"),
    "lipschitz": lambda i, h: neuralosc.Lipschitz(i, h, gamma=0.3),
    "lipschitz_gated": lambda i, h: neuralosc.Lipschitz(i, h, gamma=0.3, gated=True),
    "antisymmetric": lambda i, h: neuralosc.Antisymmetric(i, h, gamma=0.3),
    "multiscale": neuralosc.Multiscale,
    "relaxation": neuralosc.Relaxation,
    "gated_relaxation": neuralosc.GatedRelaxation,
    "gru_decay": HalfDecay,
    "gru_decay_unmasked": lambda i, h: neuralosc.GRUDecay(i, h, masked=False),
    "gru_bayes": lambda i, h: HalfBayes(i, h, 5, 3),
    "gru_bayes_minimal": lambda i, h: SmoothBayes(i, h, 5, 3, full=False, logvar=False, masked=False),
    "gru_bayes_alone": lambda i, h: neuralosc.GRUBayes(i, h, 5, 3, impute=False, masked=False),
    "lstm_flow": neuralosc.LSTMFlow,
    "lstm_drive": neuralosc.LSTMDrive,
    "decaying_lstm": neuralosc.DecayingLSTM,
    "time_gated_lstm": lambda i, h: neuralosc.TimeGatedLSTM(i, h, 1.0, 3.0, open_ratio=0.6, leak=0.1),
    "orthogonal": neuralosc.Orthogonal,
    "linear_oscillator": neuralosc.LinearOscillator,
    "linear_oscillator_damped": lambda i, h: neuralosc.LinearOscillator(i, h, damped=True),
    "leaky": Leaky,
    "neural_cde": lambda i, h: neuralosc.NeuralCDE(i, h, field_size=4, field_layers=2, activation="tanh"),
    "liquid": lambda i, h: neuralosc.LiquidTimeConstant(i, h, tau=per_channel(h, 0.5, 2.0)),
    "jump_gru": lambda i, h: neuralosc.JumpGRU(i, h, units=5),
    "jump_gru_unit": lambda i, h: neuralosc.JumpGRU(i, h, "gru_unit", units=5, gate_units=4),
    "closed_form": lambda i, h: neuralosc.ClosedFormContinuous(i, h, backbone_layers=2, backbone_units=5),
    "closed_form_pure": lambda i, h: neuralosc.ClosedFormContinuous(i, h, "pure", 0, mixed_memory=True),
    "multiscale_traces": lambda i, h: neuralosc.MultiscaleTraces(i, h, scales=3),
    "fading_gru": neuralosc.FadingGRU,
    "synapses": neuralosc.LiquidSynapses,
    "noisy_lipschitz": lambda i, h: neuralosc.Noisy(neuralosc.Lipschitz(i, h, gamma=0.3), 0.2, 0.3),
    "noisy_oscillator": lambda i, h: neuralosc.Noisy(
        neuralosc.Oscillator(i, h, gamma=1.7, epsilon=0.6, coupled=False),
        per_channel(h, 0.1, 0.3),
        0.2,
        component=1,
        learned=True,
    ),
}


def fitting(field: neuralosc.VectorField, solver: str) -> str:
    """The solver, or where it does not work with a field the first one that does."""
    able = solvers.compatible(field)
    return solver if solver in able else able[0]


def controls_for(field, names=tuple(solvers.CONTROLS)):
    """Those of these controls whose paths can drive the field."""
    controlled = "controlled" in structure(field)
    return [name for name in names if not controlled or solvers.CONTROLS[name].derivatives]


def make_field(name: str, input_size: int = 2, hidden_size: int = 3) -> neuralosc.VectorField:
    return FIELDS[name](input_size, hidden_size).double()
