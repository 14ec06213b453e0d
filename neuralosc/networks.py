"""What the named networks share: their cards, their registry, and how one is built from its field."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from neuralosc.field import VectorField
from neuralosc.rnn import ContinuousRNN
from solvers.errors import InputError
from solvers.registry import Registry

if TYPE_CHECKING:
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


def named(
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


def network(
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
