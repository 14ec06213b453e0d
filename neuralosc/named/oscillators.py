"""Networks of oscillators: coRNN, UnICORNN and the Hamiltonian RNN, and the published weights of the first two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

import solvers
from neuralosc.fields import DenseHamiltonian, HamiltonianOscillator, Oscillator
from neuralosc.fields.parameters import Value
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.named.cards import Choices, named, network
from neuralosc.named.published import Keys, Loaded, fill, published
from solvers.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack


@named(
    "cornn",
    "coRNN",
    "Rusch & Mishra, ICLR 2021",
    "dq = p, dp = tanh(W q + R p + u) - gamma q - epsilon p",
    Oscillator,
    also={"imex_euler": "coRNN (the paper's step)"},
)
def CoRNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.042,
    gamma: Value = 2.7,
    epsilon: Value = 4.7,
    coupled: bool = True,
    learned: bool = False,
    time_scale: Value | None = None,
    learned_time_scale: bool = False,
    solver: str | dict[str, Any] | solvers.Solver = "semi_implicit_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """CoRNN under its published step; the standard settings are those of sequential MNIST. See `Oscillator`."""
    hyperparameters: dict[str, Any] = {"gamma": gamma, "epsilon": epsilon, "coupled": coupled, "learned": learned}
    hyperparameters |= {"time_scale": time_scale, "learned_time_scale": learned_time_scale}
    return network("cornn", Oscillator, input_size, hidden_size, dt, solver, hyperparameters, choices)


@published("cornn")
def _cornn(keys: Keys, dt: float, gamma: float, epsilon: float, **settings: Any) -> Loaded:
    weight, bias = keys.take("cell.i2h.weight"), keys.take("cell.i2h.bias")
    hidden = len(bias)
    features = weight.shape[1] - 2 * hidden
    if features < 1:
        raise InputError(
            f"cell.i2h.weight has shape {tuple(weight.shape)}, expected (hidden, input + 2 hidden) with hidden {hidden}"
        )
    rnn = CoRNN(features, hidden, dt=dt, gamma=gamma, epsilon=epsilon, **settings).to(weight.dtype)
    # The published weight acts on the concatenation (x, velocity, position).
    V, R, W = weight.split((features, hidden, hidden), dim=1)
    fill(rnn.field, {"V.weight": V, "V.bias": bias, "W": W, "R": R}, "cornn")
    readout = keys.readout("readout")
    keys.finish()
    return rnn, readout


@named(
    "unicornn",
    "UnICORNN",
    "Rusch & Mishra, ICML 2021",
    "dq = s p, dp = -s (tanh(w * q + u) + alpha q), s = sigmoid(c)",
    HamiltonianOscillator,
)
def UnICORNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.19,
    alpha: Value = 30.65,
    learned: bool = False,
    time_scale: Value | None = None,
    learned_time_scale: bool = False,
    solver: str | dict[str, Any] | solvers.Solver = "symplectic_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """UnICORNN under its published step, with the settings of permuted MNIST. See `HamiltonianOscillator`."""
    hyperparameters: dict[str, Any] = {"alpha": alpha, "learned": learned}
    hyperparameters |= {"time_scale": time_scale, "learned_time_scale": learned_time_scale}
    return network("unicornn", HamiltonianOscillator, input_size, hidden_size, dt, solver, hyperparameters, choices)


@published("unicornn")
def _unicornn(keys: Keys, dt: Any, alpha: float, **settings: Any) -> Loaded:
    layers = sum(re.fullmatch(r"RNNs\.\d+\.weight_hh", key) is not None for key in keys.left)
    if layers == 0:
        keys.take("RNNs.0.weight_hh")
    first = keys.left.get("DIs.0.fc.weight", torch.empty(0, 0))
    features, hidden = first.shape[1], len(keys.left["RNNs.0.weight_hh"])
    rnn = UnICORNN(features or 1, hidden, dt=dt, alpha=alpha, num_layers=layers, **settings).to(first.dtype)
    for i, field in enumerate(rnn.fields):
        maps = {"V.weight": keys.take(f"DIs.{i}.fc.weight"), "V.bias": keys.take(f"DIs.{i}.fc.bias")}
        vectors = {"w": keys.take(f"RNNs.{i}.weight_hh"), "c": keys.take(f"RNNs.{i}.c_")}
        fill(field, {**maps, **vectors}, "unicornn")
    readout = keys.readout("classifier")
    keys.finish()
    return rnn, readout


@named(
    "hamiltonian",
    "Hamiltonian RNN",
    "dense Hamiltonian energies, after Galimberti et al., IEEE TAC 2023",
    "H = sum log cosh(W q + u) + alpha |q|^2 / 2 + |p|^2 / 2 [+ sum log cosh(R p + r)]",
    DenseHamiltonian,
    also={"stormer_verlet": "Hamiltonian RNN"},
)
def HamiltonianRNN(
    input_size: int,
    hidden_size: int,
    *,
    dt: float | Sequence[float] = 0.1,
    alpha: Value = 1.0,
    energy_layers: int = 1,
    learned: bool = False,
    time_scale: Value | None = None,
    learned_time_scale: bool = False,
    solver: str | dict[str, Any] | solvers.Solver = "symplectic_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The Hamiltonian RNN of a dense energy with one or two layers. See `DenseHamiltonian`."""
    hyperparameters: dict[str, Any] = {"alpha": alpha, "energy_layers": energy_layers, "learned": learned}
    hyperparameters |= {"time_scale": time_scale, "learned_time_scale": learned_time_scale}
    return network("hamiltonian", DenseHamiltonian, input_size, hidden_size, dt, solver, hyperparameters, choices)
