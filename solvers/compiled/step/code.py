"""What a piece of Python code can read besides its arguments: names of globals, of attributes, of modules."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_OWN = ("solvers", "neuralosc")

#: Packages whose code is taken to stay as it is: a function of theirs is looked at no further.
TRUSTED = sys.stdlib_module_names | {"torch", "numpy", "scipy", "triton", "torchdiffeq", "torchsde", "_pytest", *_OWN}

#: Names by which code reaches whatever it likes.
UNBOUNDED = frozenset({"eval", "exec", "globals", "__import__", "import_module"})

#: Names by which code asks an object for attributes that are not written out in it.
DYNAMIC = frozenset({"getattr", "hasattr", "vars", "dir", "__dict__", "__getattribute__", "attrgetter", "methodcaller"})

#: Functions and classes of Python itself that give the same for the same, and read nothing besides.
PURE = frozenset(
    {
        *("abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "int"),
        *("isinstance", "issubclass", "len", "list", "map", "max", "min", "object", "pow", "property", "range"),
        *("reversed", "round", "set", "slice", "sorted", "staticmethod", "classmethod", "str", "sum", "super", "tuple"),
        *(
            "type",
            "zip",
            "NotImplemented",
            "BaseException",
            "Exception",
            "ArithmeticError",
            "AssertionError",
            "AttributeError",
        ),
        *("IndexError", "KeyError", "NotImplementedError", "RuntimeError", "TypeError", "ValueError"),
    }
)

#: Modules of Python and torch of whose functions and classes that is so.
_PURE_MODULES = frozenset(
    {
        *("math", "cmath", "operator", "_operator", "functools", "_functools", "itertools", "typing"),
        *(
            "collections",
            "collections.abc",
            "types",
            "abc",
            "dataclasses",
            "numbers",
            "enum",
            "torch.functional",
            "torch.nn.functional",
        ),
        *("torch._C._nn", "torch._C._linalg", "torch._C._special", "torch._C._fft"),
    }
)


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
        # Those of a pattern stand in a tuple.
        texts = [t for each in part.co_consts for t in (each if isinstance(each, tuple) else (each,))]
        attributes |= {text for text in texts if isinstance(text, str) and text.isidentifier()}
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


def own(kind: type | types.FunctionType) -> bool:
    """Whether a class or a function is of this project."""
    if isinstance(kind, types.FunctionType):
        return str(kind.__globals__.get("__name__")).partition(".")[0] in _OWN
    return kind.__module__.partition(".")[0] in _OWN


def pure(value: Any) -> bool:
    """Whether a function or a class that is looked at no further is known to give the same for the same.

    What is on no list is not known to; by comparing a step at each solve it is found out.
    """
    if isinstance(value, types.ModuleType):
        return False
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        # What a container holds is looked at.
        return type(owner) in (dict, list, tuple, set, frozenset, str, deque)
    name = getattr(value, "__name__", "")
    if name == "_lru_cache_wrapper":
        return False
    module = getattr(value, "__module__", None)
    if isinstance(value, types.FunctionType):
        module = value.__globals__.get("__name__")
    if not isinstance(module, str):
        return False
    if module == "builtins":
        return name in PURE
    if module == "torch" and not isinstance(value, type):
        # Those of tensors belong to nobody; those that tell what is set somewhere belong to a module.
        return isinstance(value, types.BuiltinFunctionType) and owner is None and name != "from_file"
    home = module.partition(".")[0]
    tensors = isinstance(value, type) and home == "torch" and issubclass(value, Tensor | nn.Module)
    return home in _OWN or module in _PURE_MODULES or tensors


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
