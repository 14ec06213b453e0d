"""What the named networks share: their cards, their registry, and how one is built from its field."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import solvers
from neuralosc import arguments
from neuralosc.field import VectorField
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.stack import CHOICES
from solvers.base.registry import Registry


class Choices(TypedDict, total=False):
    """What every named network takes besides its own hyperparameters; see `ContinuousRNN`."""

    num_layers: int
    dropout: float
    substeps: int
    gradient: str | solvers.Gradient
    control: str | solvers.Control
    missing: str
    max_dt: float | str | None
    bidirectional: bool
    residual: bool


#: The values of `Choices` when left out.
STANDARD: Choices = {
    "num_layers": 1,
    "dropout": 0.0,
    "substeps": 1,
    "gradient": "backprop",
    "control": "hold",
    "missing": "error",
    "max_dt": "auto",
    "bidirectional": False,
    "residual": False,
}


@dataclass(frozen=True)
class ModelCard:
    """What is known of a named network.

    Attributes:
        name: the name `make` takes.
        title: the name in the literature.
        paper: where it was published.
        equation: its vector field, or its map from sample to sample.
        field: class of its vector field; None for a baseline, which is no differential equation.
        solver: the solver of the published code; None for a baseline.
        defaults: every hyperparameter and its standard value.
        make: builds it from `input_size`, `hidden_size` and hyperparameters.
        also: what the literature calls the field under further solvers, by solver.
        blocks: it is a stack of blocks around recurrences, not one `ContinuousRNN`.
    """

    name: str
    title: str
    paper: str
    equation: str
    field: str | None
    solver: str | None
    defaults: dict[str, Any]
    make: Callable[..., ContinuousRNN | Any]
    also: Mapping[str, str] = dataclasses.field(default_factory=dict)
    blocks: bool = False


MODELS: Registry[ModelCard] = Registry("model")


Maker = TypeVar("Maker", bound=Callable[..., Any])


def named(
    name: str,
    title: str,
    paper: str,
    equation: str,
    field: type[VectorField] | None,
    also: Mapping[str, str] | None = None,
    solver: str | None = None,
    blocks: bool = False,
    choices: Choices | None = None,
) -> Callable[[Maker], Maker]:
    """Register a function or class that makes a network under its name; one without a field is a baseline.

    `also` names the field under further solvers; `solver` is the published one where the default of that
    hyperparameter does not name it; `choices` are those that it does not leave `STANDARD`.
    """

    def register(make: Maker) -> Maker:
        hyperparameters = {
            p.name: p.default
            for p in inspect.signature(make).parameters.values()
            if p.default is not inspect.Parameter.empty
        }
        defaults = hyperparameters if field is None or blocks else {**hyperparameters, **STANDARD, **(choices or {})}
        kind, published = None if field is None else field.__name__, hyperparameters.get("solver") or solver
        card = ModelCard(name, title, paper, equation, kind, published, defaults, make, also or {}, blocks)
        MODELS.add(name, card)
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
    later: Callable[..., VectorField] | None = None,
) -> ContinuousRNN:
    """A stack of `num_layers` equal fields, the first fed by the input, the others by the layer before.

    `later` makes those of the layers after the first where they are not the same.
    """
    fields, settings = equal_fields(name, field, input_size, hidden_size, solver, hyperparameters, choices, later)
    rnn = ContinuousRNN(fields, solver, dt, **settings)
    rnn.config = configuration(name, rnn, hyperparameters)
    return rnn


def equal_fields(
    name: str,
    field: Callable[..., VectorField],
    input_size: int,
    hidden_size: int,
    solver: Any,
    hyperparameters: dict[str, Any],
    choices: Choices,
    later: Callable[..., VectorField] | None = None,
) -> tuple[list[VectorField], dict[str, Any]]:
    """The fields of `num_layers` layers, and what is left for `ContinuousRNN`: choices, and options of the solver."""
    settings: dict[str, Any] = {**STANDARD, **choices}
    arguments.solver(
        name,
        solver,
        {k: v for k, v in choices.items() if k not in STANDARD},
        [*hyperparameters, "num_layers", *CHOICES],
    )
    arguments.count("input_size", input_size), arguments.count("hidden_size", hidden_size)
    layers = arguments.count("num_layers", settings.pop("num_layers"))
    directions = 2 if arguments.flag("bidirectional", settings["bidirectional"]) else 1
    features = arguments.shown(arguments.choice("missing", settings["missing"], arguments.MISSING), input_size)
    fields = [
        (later if layer and later else field)(
            directions * hidden_size if layer else features, hidden_size, **hyperparameters
        )
        for layer in range(layers)
        for _ in range(directions)
    ]
    return fields, settings


def configuration(name: str, rnn: ContinuousRNN, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """What `make` needs to build a named network again."""
    # Tensors and arrays become lists, so that the configuration can be written down.
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in hyperparameters.items()}
    shape = {key: getattr(rnn, key) for key in ("num_layers", "dropout", "missing", "bidirectional", "residual")}
    return {
        "model": name,
        "input_size": rnn.input_size,
        "hidden_size": rnn.hidden_size,
        **plain,
        **shape,
        **rnn.choices(),
    }


def models() -> list[ModelCard]:
    """The card of every named network, the baselines last."""
    return sorted((MODELS[name] for name in MODELS), key=lambda card: card.field is None)


def model(name: str) -> ModelCard:
    """The card of one network.

    Raises:
        UnknownNameError: no network has that name.
    """
    return MODELS[name]


def make(name: str, *, input_size: int, hidden_size: int, **hyperparameters: Any) -> ContinuousRNN | Any:
    """A network from its name: `make("cornn", input_size=1, hidden_size=128, gamma=2.7)`.

    Returns:
        a ContinuousRNN; for the name of a baseline, which has no field and no solver, a `Baseline`, for that of a
        network of blocks its own class.

    Raises:
        UnknownNameError: no network has that name.
        InputError: a hyperparameter it does not take, or a value it cannot have.
    """
    card = MODELS[name]
    chosen = hyperparameters.get("solver") or card.defaults.get("solver") or card.solver
    own = {key: value for key, value in hyperparameters.items() if key not in card.defaults}
    if chosen is None:
        arguments.known(f"model {name!r}", own, card.defaults)
    else:
        arguments.solver(f"model {name!r}", chosen, own, card.defaults)
    return card.make(input_size=input_size, hidden_size=hidden_size, **hyperparameters)
