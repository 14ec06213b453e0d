"""Continuous-time recurrent networks: a vector field, a solver and a gradient, chosen independently."""

from neuralosc.data.collate import Batch, Collator, collate
from neuralosc.field import Partitioned, Semilinear, VectorField
from neuralosc.fields import (
    Antisymmetric,
    DenseHamiltonian,
    GatedRelaxation,
    GRUBayes,
    GRUDecay,
    Hamiltonian,
    HamiltonianOscillator,
    LeakyIntegrator,
    LinearOscillator,
    Lipschitz,
    LiquidTimeConstant,
    LSTMDrive,
    LSTMFlow,
    Multiscale,
    Noisy,
    Orthogonal,
    Oscillator,
    Relaxation,
    Residual,
)
from neuralosc.files.programs import Step, export, export_onnx
from neuralosc.files.saved import load, save
from neuralosc.layers.blocks import LinOSSBlock, LinOSSNetwork
from neuralosc.layers.linoss import LinOSS
from neuralosc.layers.readout import READOUTS, Readout
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.solution import Solution
from neuralosc.layers.stream import Stream
from neuralosc.named import (
    CTRNN,
    GRU,
    GRUD,
    LEM,
    LSTM,
    LTC,
    ODELSTM,
    RNN,
    AntisymmetricRNN,
    CayleyRNN,
    CoRNN,
    ExpRNN,
    GRUODEBayes,
    HamiltonianRNN,
    LipschitzRNN,
    NoisyRNN,
    TorchGRU,
    UnICORNN,
)
from neuralosc.named.baselines import Baseline
from neuralosc.named.cards import ModelCard, make, model, models
from neuralosc.named.published import from_reference
from neuralosc.version import __version__
from solvers.errors import InputError

__all__ = [
    "CTRNN",
    "GRU",
    "GRUD",
    "LEM",
    "LSTM",
    "LTC",
    "ODELSTM",
    "READOUTS",
    "RNN",
    "Antisymmetric",
    "AntisymmetricRNN",
    "Baseline",
    "Batch",
    "CayleyRNN",
    "CoRNN",
    "Collator",
    "ContinuousRNN",
    "DenseHamiltonian",
    "ExpRNN",
    "GRUBayes",
    "GRUDecay",
    "GRUODEBayes",
    "GatedRelaxation",
    "Hamiltonian",
    "HamiltonianOscillator",
    "HamiltonianRNN",
    "InputError",
    "LSTMDrive",
    "LSTMFlow",
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
    "collate",
    "export",
    "export_onnx",
    "from_reference",
    "load",
    "make",
    "model",
    "models",
    "save",
]
