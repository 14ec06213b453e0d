"""What is typed after an option, and the value it stands for."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from typing import Any

import typer


def number(text: str) -> float:
    """A number."""
    return _parsed(text, float, "a number")


def whole_number(text: str) -> int:
    """A whole number."""
    return _parsed(text, int, "a whole number")


def numbers(text: str) -> float | list[float]:
    """A number, or several separated by commas (one per layer or channel)."""
    values = [_parsed(part, float, "a number") for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def whole_numbers(text: str) -> list[int]:
    """Whole numbers separated by commas."""
    return [_parsed(part, int, "a whole number") for part in text.split(",")]


def names(text: str) -> list[str]:
    """Names separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise typer.BadParameter(f"{text!r} holds no name")
    return parts


def named_numbers(text: str) -> dict[str, float]:
    """Numbers by name, `name=number`, separated by commas."""
    return {name: _parsed(value, float, "a number") for name, value in _named(text, "number")}


def named_ranges(text: str) -> dict[str, tuple[float, float]]:
    """Ranges by name, `name=low:high`, separated by commas."""
    found = {}
    for name, value in _named(text, "low:high"):
        low, colon, high = value.partition(":")
        if not colon:
            raise typer.BadParameter(f"{name}={value} is no range: expected {name}=low:high")
        found[name] = _parsed(low, float, "a number"), _parsed(high, float, "a number")
    return found


def _named(text: str, expected: str) -> Iterable[tuple[str, str]]:
    pairs = [tuple(part.strip() for part in pair.partition("=")[::2]) for pair in text.split(",") if pair.strip()]
    for name, value in pairs:
        if not name or not value:
            raise typer.BadParameter(f"{text!r}: expected name={expected}, separated by commas")
        yield name.replace("-", "_"), value


def _parsed(text: str, kind: Callable[[str], Any], expected: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not {expected}") from None


def anything(text: str) -> Any:
    """A number, numbers separated by commas, or else the text itself."""
    try:
        return numbers(text)
    except typer.BadParameter:
        return text


def plain(text: str) -> Any:
    """What a text says itself: a whole number, a number, several separated by commas, or else text."""
    parts = text.split(",")
    for kind in (int, float):
        try:
            values = [kind(part) for part in parts]
        except ValueError:
            continue
        return values[0] if len(values) == 1 else values
    return text


METAVARS: dict[Callable[..., Any], str] = {
    bool: "",
    str: "NAME",
    number: "NUMBER",
    whole_number: "N",
    numbers: "NUMBER[,...]",
    whole_numbers: "N[,...]",
    names: "NAME[,...]",
    anything: "VALUE",
    plain: "VALUE",
}
BY_TYPE: dict[Any, Callable[..., Any]] = {bool: bool, str: str, int: whole_number, float: number}


def of_values(values: Iterable[Any]) -> Callable[..., Any]:
    """The parser for an option that has these values by default."""
    values = list(values)
    if "auto" in values:
        # What stands for a value that is not there yet, which may be a number.
        return anything
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= BY_TYPE.keys():
        return BY_TYPE[kinds.pop()]
    return numbers if kinds <= {int, float, list, tuple} else anything


def of_hint(hint: Any) -> Callable[..., Any]:
    """The parser for an attribute with this type hint; `kind | None` is parsed as `kind`."""
    if typing.get_origin(hint) is list:
        return names if typing.get_args(hint) == (str,) else whole_numbers
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    return BY_TYPE.get(kinds[0], anything) if len(kinds) == 1 else anything


def of_argument(default: Any, hint: Any) -> Callable[..., Any]:
    """The parser for an argument of a class of one's own, by its type hint, or else by its default."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if len(kinds) == 1 and kinds[0] in BY_TYPE and typing.get_origin(hint) not in (list, tuple):
        return BY_TYPE[kinds[0]]
    kind = None if isinstance(default, list | tuple) else BY_TYPE.get(type(default))
    return kind or plain
