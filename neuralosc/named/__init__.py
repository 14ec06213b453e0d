"""The named networks: each is a field, the solver its authors used, and their settings.

A network stands beside what reads its published weights, if they exist.
"""

from neuralosc.named import linoss as linoss
from neuralosc.named.baselines import LSTM, TorchGRU
from neuralosc.named.closed_form import CfC
from neuralosc.named.controlled import NCDE
from neuralosc.named.ctgru import CTGRU
from neuralosc.named.gated import GRU, RNN
from neuralosc.named.grud import GRUD
from neuralosc.named.gruodebayes import GRUODEBayes
from neuralosc.named.hawkes_lstm import HawkesLSTM
from neuralosc.named.latent_ode import LatentODE
from neuralosc.named.lipschitz import AntisymmetricRNN, LipschitzRNN
from neuralosc.named.multiscale import LEM
from neuralosc.named.neurons import CTRNN, LTC, LTCSynapse
from neuralosc.named.noisy import NoisyRNN
from neuralosc.named.ode_rnn import ODERNN
from neuralosc.named.odelstm import ODELSTM
from neuralosc.named.orthogonal import CayleyRNN, ExpRNN
from neuralosc.named.oscillators import CoRNN, HamiltonianRNN, UnICORNN
from neuralosc.named.phased_lstm import PhasedLSTM

__all__ = [
    "CTGRU",
    "CTRNN",
    "GRU",
    "GRUD",
    "LEM",
    "LSTM",
    "LTC",
    "NCDE",
    "ODELSTM",
    "ODERNN",
    "RNN",
    "AntisymmetricRNN",
    "CayleyRNN",
    "CfC",
    "CoRNN",
    "ExpRNN",
    "GRUODEBayes",
    "HamiltonianRNN",
    "HawkesLSTM",
    "LTCSynapse",
    "LatentODE",
    "LipschitzRNN",
    "NoisyRNN",
    "PhasedLSTM",
    "TorchGRU",
    "UnICORNN",
]
