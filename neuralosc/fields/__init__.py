"""The vector fields of the named networks, and the base classes for one's own."""

from neuralosc.fields.bayes import GRUBayes
from neuralosc.fields.closed_form import ClosedFormContinuous
from neuralosc.fields.controlled import NeuralCDE
from neuralosc.fields.decay import GRUDecay
from neuralosc.fields.fading import FadingGRU, MultiscaleTraces
from neuralosc.fields.gated import GatedRelaxation, Relaxation
from neuralosc.fields.hamiltonian import DenseHamiltonian, Hamiltonian, NeuralHamiltonian
from neuralosc.fields.hawkes import DecayingLSTM
from neuralosc.fields.jump_gru import JumpGRU
from neuralosc.fields.linear_oscillator import LinearOscillator
from neuralosc.fields.lipschitz import Antisymmetric, Lipschitz, Residual
from neuralosc.fields.lstm import LSTMDrive, LSTMFlow
from neuralosc.fields.multiscale import Multiscale
from neuralosc.fields.neurons import LeakyIntegrator, LiquidTimeConstant
from neuralosc.fields.noisy import Noisy
from neuralosc.fields.orthogonal import Orthogonal
from neuralosc.fields.oscillator import HamiltonianOscillator, Oscillator
from neuralosc.fields.phased import TimeGatedLSTM
from neuralosc.fields.synapses import LiquidSynapses

__all__ = [
    "Antisymmetric",
    "ClosedFormContinuous",
    "DecayingLSTM",
    "DenseHamiltonian",
    "FadingGRU",
    "GRUBayes",
    "GRUDecay",
    "GatedRelaxation",
    "Hamiltonian",
    "HamiltonianOscillator",
    "JumpGRU",
    "LSTMDrive",
    "LSTMFlow",
    "LeakyIntegrator",
    "LinearOscillator",
    "Lipschitz",
    "LiquidSynapses",
    "LiquidTimeConstant",
    "Multiscale",
    "MultiscaleTraces",
    "NeuralCDE",
    "NeuralHamiltonian",
    "Noisy",
    "Orthogonal",
    "Oscillator",
    "Relaxation",
    "Residual",
    "TimeGatedLSTM",
]
