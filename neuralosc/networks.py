"""The named networks: each is a field, the solver its authors used, and their settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from neuralosc.field import VectorField
from neuralosc.fields import (
    Antisymmetric,
    DenseHamiltonian,
    HamiltonianOscillator,
    Lipschitz,
    Multiscale,
    Oscillator,
)
from neuralosc.fields.parameters import Value
from neuralosc.rnn import ContinuousRNN
from solvers.errors import InputError
from solvers.registry import Registry

if TYPE_CHECKING:
    from typing_extensions import Unpack

    import solvers


class Choices(TypedDict, total=False):
    """What every named network takes besides its own hyperparameters; see `ContinuousRNN`."""

    num_layers: int
    dropout: float
    substeps: int
    gradient: str | solvers.Gradient
    control: str | solvers.Control
    missing: str
    max_dt: float | None


#: The values of `Choices` when left out.
STANDARD: Choices = {
    "num_layers": 1,
    "dropout": 0.0,
    "substeps": 1,
    "gradient": "backprop",
    "control": "hold",
    "missing": "error",
    "max_dt": None,
}

SolverChoice = "str | dict[str, Any] | solvers.Solver"


@dataclass(frozen=True)
class ModelCard:
    """What is known of a named network.

    Attributes:
        name: the name `make` takes.
        title: the name in the literature.
        paper: where it was published.
        equation: its vector field.
        field: class of its vector field.
        solver: the solver of the published code.
        defaults: every hyperparameter and its standard value.
        make: builds it from `input_size`, `hidden_size` and hyperparameters.
    """

    name: str
    title: str
    paper: str
    equation: str
    field: str
    solver: str
    defaults: dict[str, Any]
    make: Callable[..., ContinuousRNN]


MODELS: Registry[ModelCard] = Registry("model")


def _named(
    name: str, title: str, paper: str, equation: str, field: type[VectorField]
) -> Callable[[Callable[..., ContinuousRNN]], Callable[..., ContinuousRNN]]:
    """Register a function that makes a network under its name."""

    def register(make: Callable[..., ContinuousRNN]) -> Callable[..., ContinuousRNN]:
        own = {
            p.name: p.default
            for p in inspect.signature(make).parameters.values()
            if p.default is not inspect.Parameter.empty
        }
        defaults = {**own, **STANDARD}
        MODELS.add(name, ModelCard(name, title, paper, equation, field.__name__, own["solver"], defaults, make))
        return make

    return register


def _network(
    name: str,
    field: Callable[..., VectorField],
    input_size: int,
    hidden_size: int,
    dt: float | Sequence[float],
    solver: Any,
    hyperparameters: dict[str, Any],
    choices: Choices,
) -> ContinuousRNN:
    """A stack of `num_layers` equal fields, the first fed by the input, the others by the layer before."""
    given: dict[str, Any] = {**STANDARD, **choices}
    layers = given.pop("num_layers")
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise InputError(f"num_layers is {layers!r}, expected a positive integer")
    fields = [field(hidden_size if layer else input_size, hidden_size, **hyperparameters) for layer in range(layers)]
    rnn = ContinuousRNN(fields, solver, dt, **given)
    # Tensors and arrays become lists, so that the configuration can be written down.
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in hyperparameters.items()}
    sizes = {"model": name, "input_size": input_size, "hidden_size": hidden_size}
    rnn.config = {
        **sizes,
        **plain,
        "num_layers": layers,
        "dropout": rnn.dropout,
        "missing": rnn.missing,
        **rnn.choices(),
    }
    return rnn


@_named(
    "cornn",
    "coRNN",
    "Rusch & Mishra, ICLR 2021",
    "dq = p, dp = tanh(W q + R p + u) - gamma q - epsilon p",
    Oscillator,
)
def CoRNN(
    input_size: int,
    hidden_size: int,
    dt: float | Sequence[float] = 0.042,
    gamma: Value = 2.7,
    epsilon: Value = 4.7,
    coupled: bool = True,
    learned: bool = False,
    solver: str | dict[str, Any] | solvers.Solver = "semi_implicit_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """CoRNN under its published step; the standard settings are those of sequential MNIST. See `Oscillator`."""
    own = {"gamma": gamma, "epsilon": epsilon, "coupled": coupled, "learned": learned}
    return _network("cornn", Oscillator, input_size, hidden_size, dt, solver, own, choices)


@_named(
    "unicornn",
    "UnICORNN",
    "Rusch & Mishra, ICML 2021",
    "dq = s p, dp = -s (tanh(w * q + u) + alpha q), s = sigmoid(c)",
    HamiltonianOscillator,
)
def UnICORNN(
    input_size: int,
    hidden_size: int,
    dt: float | Sequence[float] = 0.19,
    alpha: Value = 30.65,
    solver: str | dict[str, Any] | solvers.Solver = "symplectic_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """UnICORNN under its published step, with the settings of permuted MNIST. See `HamiltonianOscillator`."""
    own = {"alpha": alpha}
    return _network("unicornn", HamiltonianOscillator, input_size, hidden_size, dt, solver, own, choices)


@_named(
    "hamiltonian",
    "Hamiltonian RNN",
    "dense Hamiltonian energies, after Galimberti et al., IEEE TAC 2023",
    "H = sum log cosh(W q + u) + alpha |q|^2 / 2 + |p|^2 / 2 [+ sum log cosh(R p + r)]",
    DenseHamiltonian,
)
def HamiltonianRNN(
    input_size: int,
    hidden_size: int,
    dt: float | Sequence[float] = 0.1,
    alpha: float = 1.0,
    energy_layers: int = 1,
    solver: str | dict[str, Any] | solvers.Solver = "symplectic_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The Hamiltonian RNN of a dense energy with one or two layers. See `DenseHamiltonian`."""
    own = {"alpha": alpha, "energy_layers": energy_layers}
    return _network("hamiltonian", DenseHamiltonian, input_size, hidden_size, dt, solver, own, choices)


@_named(
    "lipschitz",
    "Lipschitz RNN",
    "Erichson et al., ICLR 2021",
    "dh = alpha h A + tanh(h W + u), A and W almost skew",
    Lipschitz,
)
def LipschitzRNN(
    input_size: int,
    hidden_size: int,
    dt: float | Sequence[float] = 0.03,
    beta: float = 0.75,
    gamma: float = 0.001,
    alpha: float = 1.0,
    gated: bool = False,
    init_std: float = 1.0,
    solver: str | dict[str, Any] | solvers.Solver = "euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The Lipschitz RNN with the settings of sequential MNIST. See `Lipschitz`."""
    own = {"beta": beta, "gamma": gamma, "alpha": alpha, "gated": gated, "init_std": init_std}
    return _network("lipschitz", Lipschitz, input_size, hidden_size, dt, solver, own, choices)


@_named(
    "antisymmetric",
    "AntisymmetricRNN",
    "Chang et al., ICLR 2019",
    "dh = tanh(h (M - M^T - gamma I) + u)",
    Antisymmetric,
)
def AntisymmetricRNN(
    input_size: int,
    hidden_size: int,
    dt: float | Sequence[float] = 0.03,
    gamma: float = 0.001,
    init_std: float = 1.0,
    solver: str | dict[str, Any] | solvers.Solver = "euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """The antisymmetric RNN under Euler. See `Antisymmetric`."""
    own = {"gamma": gamma, "init_std": init_std}
    return _network("antisymmetric", Antisymmetric, input_size, hidden_size, dt, solver, own, choices)


@_named(
    "lem",
    "LEM",
    "Rusch et al., ICLR 2022",
    "dq = g1(q) (tanh(Z p + u) - q), dp = g2(q) (tanh(W q + u) - p), g = sigmoid(W_g q + u)",
    Multiscale,
)
def LEM(
    input_size: int,
    hidden_size: int,
    dt: float | Sequence[float] = 0.21,
    solver: str | dict[str, Any] | solvers.Solver = "semi_implicit_euler",
    **choices: Unpack[Choices],
) -> ContinuousRNN:
    """Long expressive memory under its published step, with the time step of sequential MNIST. See `Multiscale`."""
    return _network("lem", Multiscale, input_size, hidden_size, dt, solver, {}, choices)


def models() -> list[ModelCard]:
    """The card of every named network."""
    return [MODELS[name] for name in MODELS]


def model(name: str) -> ModelCard:
    """The card of one network.

    Raises:
        UnknownNameError: no network has that name.
    """
    return MODELS[name]


def make(name: str, *, input_size: int, hidden_size: int, **hyperparameters: Any) -> ContinuousRNN:
    """A network from its name: `make("cornn", input_size=1, hidden_size=128, gamma=2.7)`.

    Raises:
        UnknownNameError: no network has that name.
        InputError: a hyperparameter it does not take, or a value it cannot have.
    """
    card = MODELS[name]
    wrong = sorted(set(hyperparameters) - set(card.defaults))
    if wrong:
        raise InputError(f"model {name!r} takes {', '.join(card.defaults)}, not {', '.join(wrong)}: leave it out")
    return card.make(input_size=input_size, hidden_size=hidden_size, **hyperparameters)
