"""Continuous-time recurrent networks: a vector field, a solver and a gradient, chosen independently."""

__version__ = "0.1.0"

from neuralosc.blocks import LinOSSBlock, LinOSSNetwork
from neuralosc.exports import Step, export, export_onnx
from neuralosc.field import Partitioned, Semilinear, VectorField
from neuralosc.fields import (
    Antisymmetric,
    DenseHamiltonian,
    GatedRelaxation,
    Hamiltonian,
    HamiltonianOscillator,
    LeakyIntegrator,
    LinearOscillator,
    Lipschitz,
    LiquidTimeConstant,
    Multiscale,
    Noisy,
    Orthogonal,
    Oscillator,
    Relaxation,
    Residual,
)
from neuralosc.linoss import LinOSS
from neuralosc.named import (
    CTRNN,
    GRU,
    LEM,
    LSTM,
    LTC,
    RNN,
    AntisymmetricRNN,
    CayleyRNN,
    CoRNN,
    ExpRNN,
    HamiltonianRNN,
    LipschitzRNN,
    NoisyRNN,
    TorchGRU,
    UnICORNN,
)
from neuralosc.named.baselines import Baseline
from neuralosc.networks import ModelCard, make, model, models
from neuralosc.online import Stream
from neuralosc.persistence import load, save
from neuralosc.readout import READOUTS, Readout
from neuralosc.recurrent import RecurrentLayer
from neuralosc.reference import from_reference
from neuralosc.rnn import ContinuousRNN
from neuralosc.stack import Solution
from solvers.errors import InputError

__all__ = [
    "CTRNN",
    "GRU",
    "LEM",
    "LSTM",
    "LTC",
    "READOUTS",
    "RNN",
    "Antisymmetric",
    "AntisymmetricRNN",
    "Baseline",
    "CayleyRNN",
    "CoRNN",
    "ContinuousRNN",
    "DenseHamiltonian",
    "ExpRNN",
    "GatedRelaxation",
    "Hamiltonian",
    "HamiltonianOscillator",
    "HamiltonianRNN",
    "InputError",
    "LeakyIntegrator",
    "LinOSS",
    "LinOSSBlock",
    "LinOSSNetwork",
    "LinearOscillator",
    "Lipschitz",
    "LipschitzRNN",
    "LiquidTimeConstant",
    "ModelCard",
    "Multiscale",
    "Noisy",
    "NoisyRNN",
    "Orthogonal",
    "Oscillator",
    "Partitioned",
    "Readout",
    "RecurrentLayer",
    "Relaxation",
    "Residual",
    "Semilinear",
    "Solution",
    "Step",
    "Stream",
    "TorchGRU",
    "UnICORNN",
    "VectorField",
    "__version__",
    "export",
    "export_onnx",
    "from_reference",
    "load",
    "make",
    "model",
    "models",
    "save",
]
