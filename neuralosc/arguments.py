"""Checks of what a recurrent layer is made of, each failure one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from neuralosc.field import VectorField
from solvers.errors import InputError

#: What to do with NaN in an input: refuse it, or take the last value of that feature that was seen (zero before).
MISSING = ("error", "hold")


def layers(field: VectorField | Sequence[VectorField]) -> list[VectorField]:
    """The fields of a stack, which must fit each other."""
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
                f"layer {i} has {layer.components} components of {layer.hidden_size} channels, layer 0 has "
                f"{first.components} of {first.hidden_size}: layers of a stack must have states of one shape"
            )
        if i and layer.input_size != fields[i - 1].hidden_size:
            raise InputError(
                f"layer {i} takes {layer.input_size} inputs, the layer before gives {fields[i - 1].hidden_size}: "
                "make them equal"
            )
    return fields


def positive(name: str, value: Any) -> float:
    """A positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"{name} is {value!r}, expected a positive finite number")
    return float(value)


def steps(dt: float | Sequence[float], count: int) -> tuple[float, ...]:
    """One dt per layer."""
    given = tuple(dt) if isinstance(dt, Sequence) and not isinstance(dt, str) else (dt,) * count
    if len(given) != count:
        raise InputError(f"dt has {len(given)} values for {count} layers: give one number, or one per layer")
    return tuple(positive("dt", value) for value in given)


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


def missing_values(value: Any) -> str:
    """What to do with NaN."""
    if value not in MISSING:
        raise InputError(f"missing is {value!r}, expected 'error' (refuse NaN in x) or 'hold' (the last value seen)")
    return str(value)
