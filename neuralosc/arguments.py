"""Checks of what a recurrent layer is made of, each failure one line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

import solvers
from neuralosc.field import VectorField
from solvers.errors import InputError, listed

#: What to do with NaN in an input; before anything was seen, the last value is zero.
MISSING = {
    "error": "refuse NaN in x",
    "hold": "the last value seen",
    "mask": "that, whether it was seen now, and the time since it was last seen before",
    "decay": "that, going to the mean with time, and whether it was seen now",
}
#: Those under which a network is shown as many values as a sample has.
HELD = {name: MISSING[name] for name in ("error", "hold")}
#: What is shown for each feature of a sample, by what `missing` says.
SHOWN = {"error": 1, "hold": 1, "mask": 3, "decay": 2}


def shown(missing: str, features: int) -> int:
    """Features of what a network is shown of a sample of so many."""
    return features * SHOWN.get(missing, 1)


def features_of(missing: str, shown: int) -> int:
    """The inverse: features of a sample, for a field that takes so many.

    Raises:
        InputError: there are none.
    """
    each = SHOWN.get(missing, 1)
    if shown % each:
        raise InputError(
            f"missing={missing!r} shows {each} values for each feature of a sample, and the field takes {shown}, "
            f"expected a multiple of {each}: make it with {each} times the features"
        )
    return shown // each


def layers(field: VectorField | Sequence[VectorField], directions: int = 1) -> list[VectorField]:
    """The fields of a stack, which must fit each other: one per layer and direction."""
    single = isinstance(field, nn.Module) and not isinstance(field, nn.ModuleList)
    fields: list[Any] = [field] if single or not isinstance(field, Iterable) else list(field)
    if not fields:
        raise InputError("a ContinuousRNN was given no field: give one, or a sequence of them")
    for i, layer in enumerate(fields):
        if not isinstance(layer, VectorField):
            raise InputError(
                f"field {i} is a {type(layer).__name__}, expected a neuralosc.VectorField: "
                "subclass it and write forward(t, state, u)"
            )
        for size in ("input_size", "hidden_size"):
            if getattr(layer, size, None) is None:
                raise InputError(
                    f"{type(layer).__name__} has no {size}: "
                    "call super().__init__(input_size, hidden_size) in its __init__"
                )
        first = fields[0]
        if (layer.components, layer.hidden_size) != (first.components, first.hidden_size):
            raise InputError(
                f"layer {i // directions} has {layer.components} components of {layer.hidden_size} channels, layer 0 "
                f"has {first.components} of {first.hidden_size}: layers of a stack must have states of one shape"
            )
        expected = directions * first.hidden_size if i >= directions else first.input_size
        if layer.input_size != expected:
            source = "the layer before gives" if i >= directions else "its other direction"
            raise InputError(
                f"layer {i // directions} takes {layer.input_size} inputs, {source} {expected}: make them equal"
            )
    if len(fields) % directions:
        raise InputError(
            f"a bidirectional network was given {len(fields)} fields, expected two per layer: the forward one, then "
            "the reverse one"
        )
    return fields


#: What to do instead of arguments that others have.
HINTS = {
    "batch_first": "sequences are batch first always",
    "proj_size": "put a neuralosc.Readout, or an nn.Linear, behind it",
    "time_step": "it is called dt",
    "step_size": "it is called dt",
    "device": "use .to(device)",
    "dtype": "use .to(dtype)",
    "mode": "the network of torch's kind 'mode' is chosen by its own name",
    "output_size": "put a neuralosc.Readout behind it",
    "hx": "it is called state",
    "h0": "it is called state",
    "h_0": "it is called state",
    "input": "it is called x",
    "times": "give timespans, the time since the sample before",
    "mask": "give lengths where samples follow the end of a sequence, and NaN with missing='hold' where values lack",
}


def known(owner: str, given: Iterable[str], names: Iterable[str]) -> None:
    """Refuse the names of arguments that `owner` does not take.

    Raises:
        InputError: there is one; says what it may have been meant for.
    """
    names = list(names)
    wrong = sorted(set(given) - set(names))
    if not wrong:
        return
    near = difflib.get_close_matches(wrong[0].lower(), names, n=2, cutoff=0.6)
    near = near or [name for name in names if len(wrong[0]) > 2 and name.startswith(wrong[0])]
    hint = f"did you mean {' or '.join(near)}?" if near else "leave it out"
    raise InputError(f"{owner} takes {listed(names)}, not {', '.join(wrong)}: {HINTS.get(wrong[0], hint)}")


def solver(owner: str, chosen: Any, options: Mapping[str, Any], names: Iterable[str]) -> solvers.Solver:
    """A solver with options that were given among the arguments of a network, `names` being its other ones."""
    method = solvers.get(chosen)
    elsewhere = {option for name in solvers.SOLVERS for option in solvers.SOLVERS[name].option_names()}
    # An option of other solvers is refused by this one, which says what it takes.
    known(owner, options.keys() - elsewhere, [*names, *method.option_names()])
    return method.with_options(**options)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {reprlib.repr(value)}, expected True or False")
    return value


def choice(name: str, value: Any, meanings: Mapping[str, str]) -> str:
    """One of a few words, each with what it does."""
    if not isinstance(value, str) or value not in meanings:
        expected = " or ".join(f"{word!r} ({meaning})" for word, meaning in meanings.items())
        raise InputError(f"{name} is {reprlib.repr(value)}, expected {expected}")
    return value


def positive(name: str, value: Any) -> float:
    """A positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"{name} is {value!r}, expected a positive finite number")
    return float(value)


def longest_step(value: Any) -> float | str | None:
    """A bound on the steps: a positive number, "auto", or None (also infinity) for none."""
    if value is None or (isinstance(value, float) and value == float("inf")):
        return None
    if value == "auto" and isinstance(value, str):
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"max_dt is {reprlib.repr(value)}, expected a positive number, 'auto' or None")
    return float(value)


def steps(dt: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One dt per layer."""
    values = tuple(dt) if isinstance(dt, Sequence) and not isinstance(dt, str) else (dt,) * count
    if len(values) != count:
        raise InputError(f"dt has {len(values)} values for {count} layers: give one number, or one per layer")
    return tuple(positive("dt", value) for value in values)


def probability(name: str, value: Any) -> float:
    """A number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"{name} is {value!r}, expected at least 0 and below 1")
    return float(value)


def count(name: str, value: Any) -> int:
    """A positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a positive integer")
    return value


def torch_module(module: Any, kind: type[nn.Module]) -> None:
    """Refuse what is no module of torch of this kind."""
    if not isinstance(module, kind):
        raise InputError(f"module is a {type(module).__name__}, expected a torch.nn.{kind.__name__}")
