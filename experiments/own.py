"""Code of one's own by its name, `package.module:Class`: a task, a vector field or a network.

The name is what a run keeps, and what it is found again by; the class itself is in no file of the run.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from solvers.errors import InputError, unknown

#: What an argument may be to be typed on a command line and written into a configuration.
PLAIN = (bool, int, float, str, type(None))

EXPECTED = "expected package.module:Class, such as mine.fields:Leaky for the class Leaky of mine/fields.py"


def is_own(name: str) -> bool:
    """Whether a name is of code of one's own, and not of what is registered."""
    return ":" in name


def short(name: str) -> str:
    """A name as part of the name of a folder: of code of one's own the class alone."""
    return name.rpartition(":")[2]


def find(role: str, name: str, kind: type = object, instead: tuple[type, str] | None = None) -> type:
    """The class of that name; its module is imported, from the current folder too, as by `python -m`.

    Args:
        role: what it is given as: "task", "field" or "model".
        name: `package.module:Class`.
        kind: what it must be derived from.
        instead: a kind that it must not be, and the role that such a class has.

    Raises:
        InputError: no such name, a module that cannot be imported, no such class in it, or one of another kind.
    """
    path, _, attribute = name.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in path.split(".")):
        raise InputError(f"{role} {name!r} names no class: {EXPECTED}")
    module = _imported(role, name, path)
    found = getattr(module, attribute, None)
    if found is None:
        here = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
        classes = [value.__name__ for value in here if isinstance(value, type) and issubclass(value, kind)]
        raise unknown(f"{role} in {getattr(module, '__file__', path)}:", attribute, classes)
    expected = "a class" if kind is object else f"a class derived from {_full(kind)}"
    if not isinstance(found, type):
        raise InputError(f"{role} {name!r} is a {type(found).__name__}, expected {expected}: name the class")
    if instead is not None and issubclass(found, instead[0]):
        raise InputError(f"{role} {name!r} is derived from {_full(instead[0])}: give it as --{instead[1]}")
    if not issubclass(found, kind):
        bases = ", ".join(_full(base) for base in found.__bases__)
        raise InputError(f"{role} {name!r} is derived from {bases}, expected {expected}")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise InputError(f"{role} {name!r} defines no {lacking}, which a {role} needs: write it")
    return found


def arguments(role: str, name: str, kind: type, leading: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of a class that can be options, with their defaults, `inspect.Parameter.empty` where there is none.

    One whose default can be neither typed nor written down (a function, say) is none, and keeps that default.

    Args:
        role, name: see `find`.
        kind: the class.
        leading: the arguments that come first, which are given to it.

    Raises:
        InputError: it does not begin with these.
    """
    try:
        parameters = inspect.signature(kind).parameters
    except ValueError as error:
        raise InputError(f"{role} {name!r} does not say what it is made with: write its __init__") from error
    if tuple(parameters)[: len(leading)] != leading:
        shown = ", ".join(map(str, parameters.values()))
        raise InputError(f"{role} {name!r} is made with ({shown}): expected {', '.join(leading)} first")
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    rest = {key: p.default for key, p in parameters.items() if key not in leading and p.kind not in several}
    return {key: value for key, value in rest.items() if value is inspect.Parameter.empty or _plain(value)}


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if isinstance(value, list | tuple) else isinstance(value, PLAIN)


def made(role: str, name: str, kind: type, *leading: Any, **options: Any) -> Any:
    """One such, as its constructor makes it.

    Raises:
        InputError: an argument that it needs is left out, or it fails.
    """
    taken = arguments(role, name, kind)
    lacking = [
        key for key in list(taken)[len(leading) :] if taken[key] is inspect.Parameter.empty and key not in options
    ]
    if lacking:
        raise InputError(f"{role} {name!r} needs --{lacking[0].replace('_', '-')}: it has no default")
    try:
        return kind(*leading, **options)
    except InputError:
        raise
    except Exception as error:
        shown = ", ".join([*map(repr, leading), *(f"{key}={value!r}" for key, value in options.items())])
        raise InputError(f"{role} {name!r} cannot be made with ({shown:.160}): {said(error)}") from error


def require_arguments(role: str, name: str, now: dict[str, Any], stored: dict[str, Any], others: Any = ()) -> None:
    """Refuse a class that is made with other arguments than when a run was trained with it.

    Args:
        role, name: see `find`.
        now: its arguments.
        stored: the options of the run, all that there were.
        others: options of the run that are no arguments of the class.

    Raises:
        InputError: it takes one more, or one less.
    """
    new = [key for key in now if key not in stored]
    gone = [key for key in stored if key not in now and key not in others]
    if new or gone:
        what = f"takes {new[0]!r}, of which the run says nothing" if new else f"takes no {gone[0]!r}, which the run has"
        raise InputError(
            f"{role} {name!r} {what}: its class was changed after the training; put it back, or train another run"
        )


def _imported(role: str, name: str, path: str) -> ModuleType:
    """The module, imported."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    # It may have been written after somebody looked into its folder.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        lacking = error.name or path
        if path == lacking or path.startswith(f"{lacking}."):
            file = f"{lacking.replace('.', '/')}.py"
            raise InputError(
                f"{role} {name!r}: there is no module {lacking!r}: start in the folder that holds {file} (this is "
                f"{here}), or put that folder on PYTHONPATH"
            ) from error
        raise InputError(f"{role} {name!r}: {path} imports {lacking!r}, which is not there: install it") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{role} {name!r}: {path} cannot be imported: {said(error)}") from error


def said(error: BaseException) -> str:
    """An error of foreign code in one line, with its place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f" ({Path(place.filename).name}, line {place.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}{where}"


def _full(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
