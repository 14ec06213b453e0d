"""The recurrent network of a configuration: a registered one, a vector field of one's own, or a module of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import neuralosc
from experiments import own
from experiments.train.config import RunConfig
from neuralosc import ModelCard
from neuralosc.arguments import MISSING, choice, known, shown
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.named.cards import STANDARD, equal_fields
from solvers.errors import InputError

#: What every class of a network is made with, before its options.
SIZES = ("input_size", "hidden_size")
#: What a call of a network may have besides x.
CALL = ("state", "timespans", "lengths")

# A batch on which a module of one's own shows what it does: no axis is as long as another.
_SHAPE = (3, 4)


def role(config: RunConfig) -> str:
    """What a class of one's own is given as: "field" or "model"."""
    return "field" if config.field else "model"


def own_class(role: str, name: str) -> type:
    """The class of a field or model of one's own.

    Raises:
        InputError: see `own.find`.
    """
    if role == "field":
        return own.find(role, name, neuralosc.VectorField)
    return own.find(role, name, nn.Module, (neuralosc.VectorField, "field"))


def own_arguments(role: str, name: str) -> dict[str, Any]:
    """The arguments of a field or model of one's own that are options, with their defaults; see `own.arguments`.

    Raises:
        InputError: it is not made with `SIZES` first, or takes what is a choice of the network around it.
    """
    kind = own_class(role, name)
    found = own.arguments(role, name, kind, SIZES)
    around = _around(role, kind)
    taken = next((key for key in found if key in around), None)
    if taken is not None:
        raise InputError(
            f"{role} {name!r} is made with {taken!r}, a choice of the network around it: call it otherwise"
        )
    return found


def _around(role: str, kind: type) -> dict[str, Any]:
    """What is chosen of the network around a class of one's own, with defaults."""
    if role == "field":
        # Without a control it is the one that the field needs.
        return {"solver": "rk4", "dt": 1.0, **STANDARD, "control": None}
    return {} if issubclass(kind, RecurrentLayer) else {"missing": "error"}


def card(config: RunConfig) -> ModelCard:
    """What is known of the network of a configuration; an argument without a default has `inspect.Parameter.empty`.

    Raises:
        UnknownNameError: no network has that name.
        InputError: a class of one's own that cannot be used.
    """
    what, name = role(config), config.network
    if not own.is_own(name):
        return neuralosc.model(name)
    kind = own_class(what, name)
    defaults = {**own_arguments(what, name), **_around(what, kind)}
    solver = defaults.get("solver")
    title = kind.__name__

    def make(input_size: int, hidden_size: int, **options: Any) -> RecurrentLayer:
        build = _of_field if what == "field" else _of_module
        return build(name, kind, input_size, hidden_size, {**defaults, **options})

    return ModelCard(
        name,
        title,
        "",
        "",
        title if what == "field" else None,
        solver if isinstance(solver, str) else None,
        defaults,
        make,
    )


def make(config: RunConfig, input_size: int, options: Mapping[str, Any]) -> RecurrentLayer:
    """The network of a configuration with these options, for so many features of a sample.

    Raises:
        InputError, PairingError: what the network refuses, or what is lacking of a class of one's own.
    """
    if not own.is_own(config.network):
        network: RecurrentLayer = neuralosc.make(config.model, input_size=input_size, **options)
        return network
    about = card(config)
    known(f"{role(config)} {config.network!r}", options, ["hidden_size", *about.defaults])
    network = about.make(input_size=input_size, **options)
    # A file of it is loaded into a network that its class has made: no library finds that class.
    network.config = None
    return network


def chosen(config: RunConfig, options: Mapping[str, Any], rnn: RecurrentLayer) -> dict[str, Any]:
    """The options of a network of one's own, those left out included."""
    result = {**card(config).defaults, **options}
    if config.field:
        assert isinstance(rnn, neuralosc.ContinuousRNN)
        result |= {**rnn.choices(), "solver": rnn.solver.name}
    elif "solver" in result and isinstance(rnn, neuralosc.ContinuousRNN):
        result["solver"] = rnn.solver.name
    return result


def require_same(config: RunConfig) -> None:
    """Refuse a run whose field or model is a class that takes other arguments than in its training.

    Raises:
        InputError: see `own.require_arguments`.
    """
    if own.is_own(config.network):
        what, name = role(config), config.network
        others = ("hidden_size", *_around(what, own_class(what, name)))
        own.require_arguments(what, name, own_arguments(what, name), config.model_options, others)


def _of_field(
    name: str, kind: type, input_size: int, hidden_size: int, options: dict[str, Any]
) -> neuralosc.ContinuousRNN:
    """A stack of equal fields."""
    solver, dt = options.pop("solver"), options.pop("dt")
    choices: Any = {key: options.pop(key) for key in STANDARD}
    if choices["control"] is None:
        choices.pop("control")
    options = {key: value for key, value in options.items() if value is not inspect.Parameter.empty}

    def field(*sizes: int, **hyperparameters: Any) -> neuralosc.VectorField:
        made: neuralosc.VectorField = own.made("field", name, kind, *sizes, **hyperparameters)
        return made

    fields, settings = equal_fields(name, field, input_size, hidden_size, solver, options, choices)
    if "control" not in choices:
        settings.pop("control")
    return neuralosc.ContinuousRNN(fields, solver, dt, **settings)


def _of_module(name: str, kind: type, input_size: int, hidden_size: int, options: dict[str, Any]) -> RecurrentLayer:
    """A layer as it is; any other module as one."""
    options = {key: value for key, value in options.items() if value is not inspect.Parameter.empty}
    if issubclass(kind, RecurrentLayer):
        layer: RecurrentLayer = own.made("model", name, kind, input_size, hidden_size, **options)
        return layer
    missing = choice("missing", options.pop("missing"), MISSING)
    core = own.made("model", name, kind, shown(missing, input_size), hidden_size, **options)
    return OwnLayer(name, core, input_size, hidden_size, missing)


class OwnLayer(RecurrentLayer):
    """A module of one's own under the interface of the layer: `output, state = core(x)`, batch first.

    It is given a state, timespans or lengths where its `forward` has an argument of that name; what it has none for is
    refused. Its state is whatever it returns.

    Args:
        name: `package.module:Class`.
        core: the module.
        input_size: features of a sample; the core is shown what `missing` makes of them.
        hidden_size: what it was made with.
        missing: what to do with NaN in x, see `ContinuousRNN`.

    Raises:
        InputError: it is not called so, or mixes the samples of a batch.
    """

    def __init__(self, name: str, core: nn.Module, input_size: int, hidden_size: int, missing: str) -> None:
        super().__init__(input_size, hidden_size, 1, 1, False, 0.0, missing)
        self.name, self.core = name, core
        parameters = inspect.signature(core.forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.takes = frozenset(key for key in CALL if anything or key in parameters)
        # What is asked of every layer; see `feeding.check`.
        self.timespans = "true" if "timespans" in self.takes else "refuse"
        self.features = self._tried()

    @property
    def output_size(self) -> int:
        """Features of the output, which need not be `hidden_size`."""
        return self.features

    def _run(self, x: Tensor, state: Any, timespans: Tensor | None, lengths: Any) -> tuple[Tensor, Any]:
        x, spans, valid = self.checked(x, timespans, lengths)
        given: dict[str, Any] = {} if state is None else {"state": state}
        if timespans is not None:
            assert spans is not None
            given["timespans"] = spans.expand(x.shape[:2])
        if valid is not None and ("lengths" in self.takes or not bool(valid.all())):
            given["lengths"] = valid.sum(1)
        for key in given:
            if key not in self.takes:
                raise InputError(
                    f"model {self.name!r} has no {key!r} in its forward, which is needed here: let it take it"
                )
        answer = self.core(x, **given)
        output = answer[0] if isinstance(answer, tuple) and len(answer) == 2 else None
        if not isinstance(output, Tensor) or output.dim() != 3 or output.shape[:2] != x.shape[:2]:
            what = answer[0] if output is not None else answer
            shape = tuple(what.shape) if isinstance(what, Tensor) else type(what).__name__
            made = "an output" if output is not None else "no pair but"
            raise InputError(
                f"model {self.name!r} made of x {tuple(x.shape)} {made} {shape}: expected (output, state) with an "
                "output (batch, time, features)"
            )
        return output, answer[1]

    @torch.no_grad()
    def _tried(self) -> int:
        """The features of the output, of a batch whose samples do not know each other."""
        x = (torch.arange(_SHAPE[0] * _SHAPE[1] * self.input_size) % 7 % 2).to(torch.get_default_dtype())
        x = x.view(*_SHAPE, self.input_size)
        with torch.random.fork_rng(devices=[]):
            self.eval()
            runs = [self._tried_on(rows, seed) for rows, seed in ((x, 0), (x, 1), (x[-1:], 0))]
            self.train()
        drawn = not torch.equal(runs[0], runs[1])
        if not drawn and not torch.allclose(runs[0][-1:], runs[2], rtol=1e-3, atol=1e-4, equal_nan=True):
            raise InputError(
                f"model {self.name!r} answers otherwise to a sequence where others are in the batch: expected x "
                "(batch, time, features); of layers of torch make it with batch_first=True"
            )
        return runs[0].shape[-1]

    def _tried_on(self, x: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        spans = torch.ones(x.shape[:2]) if "timespans" in self.takes else None
        try:
            output, _ = self(x, None, spans)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"model {self.name!r} fails on x {tuple(x.shape)}, (batch, time, features): {own.said(error)}"
            ) from error
        return output  # type: ignore[no-any-return]
