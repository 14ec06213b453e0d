"""What a piece of Python code can read besides its arguments: names of globals, of attributes, of modules."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_OWN = ("solvers", "neuralosc")

#: Packages whose code is taken to stay as it is: a function of theirs is looked at no further.
TRUSTED = sys.stdlib_module_names | {"torch", "numpy", "scipy", "triton", "torchdiffeq", "torchsde", "_pytest", *_OWN}

#: Names by which code reaches whatever it likes.
UNBOUNDED = frozenset({"eval", "exec", "globals", "__import__", "import_module"})

#: Names by which code asks an object for attributes that are not written out in it.
DYNAMIC = frozenset({"getattr", "hasattr", "vars", "dir", "__dict__", "__getattribute__", "attrgetter", "methodcaller"})


@dataclass(frozen=True)
class Names:
    """What a code object and those inside it read.

    Attributes:
        globals: names looked up in the globals of the function.
        attributes: names of attributes, and strings that could be such names.
        modules: modules imported when it runs.
    """

    globals: tuple[str, ...]
    attributes: frozenset[str]
    modules: tuple[str, ...]


@functools.lru_cache(maxsize=4096)
def names(code: types.CodeType) -> Names:
    """The names that a code object reads."""
    found: dict[str, None] = {}
    attributes: set[str] = set()
    modules: dict[str, None] = {}
    for part in _parts(code):
        for each in dis.get_instructions(part):
            if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                found[each.argval] = None
            elif each.opname == "IMPORT_NAME":
                modules[each.argval] = None
            elif each.argval.__class__ is str and each.opname.startswith(("LOAD_", "STORE_ATTR", "IMPORT_FROM")):
                attributes.add(each.argval)
        attributes |= {text for text in part.co_consts if isinstance(text, str) and text.isidentifier()}
    return Names(tuple(found), frozenset(attributes), tuple(modules))


def _parts(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _parts(inner)


def trusted(value: Any) -> bool:
    """Whether a function, class or module is of a package whose code is taken to stay as it is."""
    name: Any
    if isinstance(value, types.ModuleType):
        name = value.__name__
    elif isinstance(value, types.FunctionType):
        # Not its `__module__`, which a decorator takes over from what it wraps.
        name = value.__globals__.get("__name__")
    else:
        name = getattr(value, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in TRUSTED


def own(kind: type) -> bool:
    """Whether a class is of this project."""
    return kind.__module__.partition(".")[0] in _OWN


@functools.cache
def own_names() -> frozenset[str]:
    """Every name in the code of this project: those by which it asks a field for attributes are among them."""
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] in _OWN:
            for value in list(vars(module).values()):
                if getattr(value, "__module__", None) == name:
                    for function in _functions(value):
                        found.update(*(part.co_names for part in _parts(function.__code__)))
    return frozenset(found)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    for member in vars(value).values() if isinstance(value, type) else (value,):
        for function in (member, getattr(member, "__func__", None), getattr(member, "fget", None)):
            if isinstance(function, types.FunctionType):
                yield function
