"""Everything that the Python of a step can reach, as a value to compare, and whether any of it was replaced since.

The step is recorded once and then runs without Python, so that it holds what Python read: attributes of the field and
of its class, globals, what functions close over, numbers in arrays. A survey walks through all of these. Its key is the
same for two walks that found the same; its watches are quick and say whether a new walk is worth its time.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import operator
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from solvers.base.modules import has_hooks, slots_of
from solvers.compiled.step.code import DYNAMIC, PURE, UNBOUNDED, names, own, own_names, pure, trusted
from solvers.compiled.step.refused import Refused

#: Objects in a walk beyond which looking at all of them before each solve would cost more than it saves.
MOST = 20_000

#: Bytes of a tensor or an array that are compared at each call.
LARGEST = 1 << 20

_MISSING = object()
_EXACT = (type(None), bool, int, str, bytes, range, slice, type(Ellipsis), torch.dtype, torch.device, torch.Size)
_MODULE_STATE = frozenset(vars(nn.Module())) - {"training"}
#: What a field keeps of its own accord, and what this package keeps with it.
KEPT = frozenset({"_bound", "operators", "_fingerprint"})
#: Packages whose objects are taken as they are: what a logger, a lock or a file holds is nothing a step computes with.
_OPAQUE = frozenset({"logging", "threading", "_thread", "io", "_io", "socket", "asyncio", "subprocess", "warnings"})
#: What a class defines that no step asks for: how its objects are made, shown, told apart and kept.
_UNREAD = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slots__", "__match_args__"),
        *("__init__", "__post_init__", "__init_subclass__", "__dataclass_fields__", "__dataclass_params__"),
        *("__repr__", "__str__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__"),
        *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"),
    }
)


class Same:
    """Equal for the same object alone, also when another one takes its place in memory."""

    __slots__ = ("number", "reference")

    def __init__(self, value: Any) -> None:
        self.number = id(value)
        try:
            self.reference: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self.reference = lambda: value

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        value = self.reference()
        return isinstance(other, Same) and value is not None and value is other.reference()


class Survey:
    """A walk over what some values reach.

    Attributes:
        watches: each is False once something it looks at was replaced or changed.
        held: the objects that were walked through, by address.
        read: names of those whose values the step read nevertheless.
        unseen: the first thing on the way that can change without being seen to, or "".
    """

    def __init__(self, module: nn.Module, read: frozenset[str] = frozenset()) -> None:
        self.watches: list[Callable[[], bool]] = []
        self.held: dict[int, tuple[int, Any]] = {}
        self.module, self.read = module, read
        self._attributes: set[str] = set()
        self._spaces: list[_Space] = []
        self._classes: dict[int, type] = {}
        self._dynamic = False
        self._scopes: dict[int, tuple[Mapping[str, Any], dict[str, None]]] = {}
        self._passed: set[int] = set()
        self.unseen = ""

    @functools.cached_property
    def named(self) -> dict[int, str]:
        """The name of each tensor of the field, by its `id`: a step is given these anew at each solve."""
        kept = itertools.chain(self.module.named_parameters(), self.module.named_buffers())
        return {id(tensor): name for name, tensor in kept}

    def key(self, *values: Any) -> Hashable:
        """What the values are made of and reach.

        Raises:
            Refused: it cannot be told.
        """
        try:
            return (*(self._key(value) for value in values), *self._by_name())
        except RecursionError:
            raise Refused("what its step can reach is nested too deeply to see whether it changes") from None

    def unchanged(self) -> bool:
        """Whether all that was walked through is still the same, as far as it can be seen."""
        try:
            return all(watch() for watch in self.watches)
        except Exception:
            # What cannot be looked at as before was changed; a new walk says how.
            return False

    def _blind(self, what: str) -> None:
        self.unseen = self.unseen or what

    def _same(self, value: Any) -> Same:
        """An object that is told from others, but not from what it was."""
        self._blind(f"an object of {type(value).__name__}")
        return Same(value)

    def _pass(self, value: Any) -> None:
        """A function or a class that is looked at no further: whether it gives the same for the same."""
        if not pure(value):
            self._blind(getattr(value, "__name__", type(value).__name__))

    def _key(self, value: Any) -> Hashable:
        kind: Any = type(value)
        if kind in _EXACT:
            return (kind, value) if kind is not slice else (kind, repr(value))
        if kind in (float, complex) or isinstance(value, np.number | np.bool_):
            # NaN is no other NaN, and -0.0 is not 0.0.
            return (kind, repr(value))
        known = self.held.get(id(value))
        if known is not None:
            return ("again", known[0])
        self.held[id(value)] = (len(self.held), value)
        if len(self.held) > MOST:
            raise Refused(f"its step can reach more than {MOST:,} objects, too many to see whether one changes")
        for kinds, method in _KINDS:
            if isinstance(value, kinds):
                found: Hashable = method(self, value)
                return found
        return self._object(value)

    def _keys(self, values: Iterable[Any]) -> tuple[Hashable, ...]:
        return tuple([self._key(value) for value in values])

    def _tensor(self, value: Tensor) -> Hashable:
        name = self.named.get(id(value))
        if name is not None and name not in self.read:
            return ("tensor", name)
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.device.type == "meta":
            return self._same(value)
        size = value.numel() * value.element_size()
        if size > LARGEST:
            self._blind("a large tensor")
            version = value._version
            self.watches.append(lambda: value._version == version)
            return (Same(value), version)
        content = _tensor_bytes(value)
        self.watches.append(lambda: _tensor_bytes(value) == content)
        return ("values", value.shape, value.dtype, value.device, value.requires_grad, content)

    def _array(self, value: np.ndarray) -> Hashable:
        if value.dtype.hasobject:
            self._blind("an array of objects")
            return (value.shape, self._sequence(value.ravel().tolist()))
        if value.nbytes > 16 * LARGEST:
            raise Refused(f"its step can reach an array of {value.nbytes:,} bytes, too large to see whether it changes")
        content = value.tobytes()
        self.watches.append(lambda: value.tobytes() == content)
        return (value.shape, value.dtype.str, content)

    def _buffer(self, value: Any) -> Hashable:
        content = bytes(memoryview(value))
        self.watches.append(lambda: bytes(memoryview(value)) == content)
        return (type(value), content)

    def _sequence(self, value: Any) -> Hashable:
        stored = tuple(value)
        if not isinstance(value, tuple | frozenset):
            self.watches.append(lambda: len(value) == len(stored) and all(map(is_, value, stored)))
        kind: Any = type(value)
        return (kind, *self._keys(stored), self._extra(value))

    def _mapping(self, value: Any) -> Hashable:
        stored = dict(value)
        self._watch_mapping(value, tuple(stored), tuple(stored.values()))
        return (type(value), self._keys(stored), self._keys(stored.values()), self._extra(value))

    def _watch_mapping(self, value: Any, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        self.watches.append(
            lambda: len(value) == len(keys) and all(map(is_, value.values(), values)) and all(map(is_, value, keys))
        )

    def _function(self, value: types.FunctionType) -> Hashable:
        code, defaults, more = value.__code__, value.__defaults__, value.__kwdefaults__
        cells = value.__closure__ or ()
        contents = tuple(map(_content, cells))
        self.watches.append(
            lambda: (
                value.__code__ is code
                and value.__defaults__ is defaults
                and value.__kwdefaults__ is more
                and all(map(is_, map(_content, cells), contents))
            )
        )
        bound = self._keys((defaults, more, *contents, vars(value) or None))
        if trusted(value):
            self._pass(value)
            return (Same(value), code, bound)
        read = names(code)
        if read.attributes & UNBOUNDED or set(read.globals) & UNBOUNDED:
            word = sorted((read.attributes | set(read.globals)) & UNBOUNDED)[0]
            raise Refused(f"its code uses {word}, so that what it reads is not known")
        dynamic = (read.attributes | set(read.globals)) & DYNAMIC
        if dynamic:
            self._dynamic = True
            self._blind(f"what {sorted(dynamic)[0]} finds")
        self._attributes |= read.attributes
        scope = value.__globals__
        found = tuple([scope.get(name, _MISSING) for name in read.globals])
        self.watches.append(lambda: all(map(is_, [scope.get(name, _MISSING) for name in read.globals], found)))
        modules = [sys.modules[name] for name in read.modules if name in sys.modules]
        impure = [n for n, v in zip(read.globals, found, strict=True) if v is _MISSING and n not in PURE]
        if impure or len(modules) < len(read.modules):
            self._blind(f"{(*impure, *read.modules)[0]}")
        return (code, bound, *self._keys(v for v in found if v is not _MISSING), *self._keys(modules))

    def _scope(self, function: types.FunctionType) -> None:
        """The functions that a function of this project calls: what is put in their place is seen."""
        if id(function) in self._passed or not own(function):
            return
        self._passed.add(id(function))
        read = names(function.__code__)
        for name in read.globals:
            value = function.__globals__.get(name)
            if isinstance(value, types.FunctionType):
                self._names(function.__globals__, (name,))
                self._scope(value)
            elif isinstance(value, type) and own(value) and not issubclass(value, BaseException):
                self._type(value)
            elif value is torch or value is functional:
                self._names(vars(value), [n for n in read.attributes if callable(vars(value).get(n))])

    def _names(self, scope: Mapping[str, Any], asked: Iterable[str]) -> None:
        self._scopes.setdefault(id(scope), (scope, {}))[1].update(dict.fromkeys(asked))

    def _in_scopes(self) -> Iterable[Hashable]:
        """What own code finds under the names of the functions it calls."""
        for scope, asked in self._scopes.values():
            if asked:
                # One call for all of them: this runs before each solve, when nothing of it is in the caches.
                get = operator.itemgetter(*asked)
                found = get(scope)
                self.watches.append(_watch_scope(scope, get, found))
                yield (*asked, *map(Same, found if len(asked) > 1 else (found,)))

    def _method(self, value: types.MethodType) -> Hashable:
        return (self._key(value.__func__), self._key(value.__self__))

    def _builtin(self, value: Any) -> Hashable:
        owner = getattr(value, "__self__", None)
        self._pass(value)
        return (Same(value), None if isinstance(owner, types.ModuleType) else self._key(owner))

    def _partial(self, value: functools.partial[Any]) -> Hashable:
        return ("partial", self._key(value.func), self._key(value.args), self._key(value.keywords), self._extra(value))

    def _property(self, value: property) -> Hashable:
        return ("property", *self._keys((value.fget, value.fset)))

    def _wrapped(self, value: Any) -> Hashable:
        return (type(value), self._key(value.__func__))

    def _reference(self, value: Any) -> Hashable:
        target = value()
        self.watches.append(lambda: value() is target)
        return ("reference", self._key(target))

    def _variable(self, value: contextvars.ContextVar[Any]) -> Hashable:
        content = value.get(_MISSING)
        self.watches.append(lambda: value.get(_MISSING) is content)
        return (Same(value), self._key(content))

    def _type(self, value: type) -> Hashable:
        """A class: its identity; what it and its bases define is looked up by name, once all names are known."""
        for base in value.__mro__:
            # Nobody but us has reason to look for methods of torch or Python that were exchanged: the comparison with a
            # plain step finds those.
            if not own(base) and trusted(base):
                if not own(value):
                    self._pass(base)
            elif id(base) not in self._classes:
                self._classes[id(base)] = base
                self._spaces.append(_Space(vars(base), trusted(base), True))
        return Same(value)

    def _module(self, value: types.ModuleType) -> Hashable:
        self._spaces.append(_Space(vars(value), trusted(value), False))
        return Same(value)

    def _network(self, value: nn.Module) -> Hashable:
        """A module: its class, its attributes, and what its tensors are like, though not their values."""
        if has_hooks(value):
            raise Refused("the field has hooks")
        attributes = vars(value)
        self.watches.append(lambda: not has_hooks(value))
        kept = {k: v for k, v in attributes.items() if k not in KEPT}
        self._watch_attributes(attributes, tuple(kept), tuple(kept.values()))
        free = {k: v for k, v in kept.items() if k not in _MODULE_STATE}
        tensors: list[Hashable] = []
        for slots in (value._parameters, value._buffers):
            stored = tuple(slots.values())
            like = [_like(t) for t in stored]
            self.watches.append(_watch_tensors(slots, stored, like))
            tensors += [
                (k, u, None if t is None else self._key(t)) for (k, t), u in zip(slots.items(), like, strict=True)
            ]
        children = value._modules
        self._watch_mapping(children, tuple(children), tuple(children.values()))
        inner = [(name, self._key(child)) for name, child in children.items()]
        return (self._key(type(value)), self._keys(free), self._keys(free.values()), *tensors, *inner)

    def _watch_attributes(self, attributes: dict[str, Any], keys: tuple[str, ...], values: tuple[Any, ...]) -> None:
        """The attributes of a module, but for those that this package keeps with it."""
        kept = tuple(KEPT)
        self.watches.append(
            lambda: (
                len(attributes) - sum(map(attributes.__contains__, kept)) == len(keys)
                and all(map(is_, map(attributes.get, keys), values))
            )
        )

    def _object(self, value: Any) -> Hashable:
        """Any other object: its class, its attributes and slots; of one that has neither, what can be seen of it."""
        kind = type(value)
        home = kind.__module__.partition(".")[0]
        if home in _OPAQUE:
            return self._same(value)
        parts: list[Hashable] = [self._key(kind), self._extra(value)]
        for plain in (int, float, complex, str, bytes):
            if isinstance(value, plain):
                # What such a class adds to is a number or a text, which does not change.
                return (*parts, plain.__repr__(value))
        slots = slots_of(kind)
        if slots and home != "builtins":
            found = tuple([getattr(value, name, _MISSING) for name in slots])
            self.watches.append(lambda: all(map(is_, [getattr(value, name, _MISSING) for name in slots], found)))
            parts.append(self._keys(v for v in found if v is not _MISSING))
        elif parts[1] is None and _has_buffer(value):
            parts.append(self._buffer(value))
        elif parts[1] is None:
            if kind is not object:
                self._blind(f"an object of {kind.__name__}")
            parts += [Same(value), self._reduced(value) if home in sys.stdlib_module_names else None]
        return tuple(parts)

    def _reduced(self, value: Any) -> Hashable:
        """What an object of the standard library, such as a decimal number, would be pickled as."""
        try:
            made = repr(value.__reduce_ex__(2))
        except Exception:
            return None
        self.watches.append(lambda: repr(value.__reduce_ex__(2)) == made)
        return made

    def _extra(self, value: Any) -> Hashable:
        """The attributes of an object; None where it can have none."""
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict):
            return None
        self.watches.append(lambda: value.__dict__ is attributes)
        self._watch_mapping(attributes, tuple(attributes), tuple(attributes.values()))
        return (self._keys(attributes), self._keys(attributes.values()))

    def _by_name(self) -> list[Hashable]:
        """What classes and modules define under the names that any code asks for."""
        parts: list[Hashable] = []
        before = -1
        while before != (before := len(self._spaces) + len(self._attributes) + len(parts)):
            for i, space in enumerate(self._spaces):
                for name in sorted(self._asked(space)):
                    space.seen[name] = space.values[name]
                    parts.append((i, name, self._member(space.values[name], space.trusted)))
        for space in self._spaces:
            self.watches.append(space.watch(self._attributes))
        return [*parts, *self._in_scopes()]

    def _asked(self, space: _Space) -> Iterable[str]:
        """The names that are there, are asked for and were not looked up before."""
        asked = self._attributes
        if space.of_class:
            asked = asked | own_names()
            if not space.trusted:
                asked = asked | {n for n in space.values if self._dynamic or n.startswith("__")}
            asked = asked - _UNREAD
        return asked & space.values.keys() - space.seen.keys()

    def _member(self, value: Any, known: bool) -> Hashable:
        """What a class or a module defines; the code of a package that stays as it is, by its identity."""
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        code = isinstance(inner, types.FunctionType | type | types.ModuleType)
        if known and (trusted(inner) if code else callable(inner)):
            self._pass(inner)
            if isinstance(inner, types.FunctionType):
                self._scope(inner)
            return Same(value)
        return self._key(value)


@dataclass
class _Space:
    """What is looked up by name: the dictionary of a class or of a module."""

    values: Mapping[str, Any]
    trusted: bool
    of_class: bool
    seen: dict[str, Any] = field(default_factory=dict)

    def watch(self, asked: set[str]) -> Callable[[], bool]:
        """Whether all that was asked for is still what it was, and nothing came that might be asked for."""
        values, size = self.values, len(self.values)
        keys, found = tuple(self.seen), tuple(self.seen.values())
        if self.of_class:
            return lambda: len(values) == size and all(map(is_, map(values.get, keys), found))
        missing = () if self.trusted else tuple(name for name in asked if name not in values)
        return lambda: all(map(is_, map(values.get, keys), found)) and not any(map(values.__contains__, missing))


#: How each kind of object is walked through, the first that fits.
_KINDS: tuple[tuple[Any, Any], ...] = (
    (Tensor, Survey._tensor),
    (nn.Module, Survey._network),
    (types.FunctionType, Survey._function),
    (types.MethodType, Survey._method),
    ((types.BuiltinFunctionType, types.MethodWrapperType), Survey._builtin),
    (functools.partial, Survey._partial),
    (property, Survey._property),
    (functools.cached_property, lambda survey, value: ("cached", survey._key(value.func))),
    ((staticmethod, classmethod), Survey._wrapped),
    ((types.MemberDescriptorType, types.GetSetDescriptorType), lambda _, value: Same(value)),
    (type, Survey._type),
    (types.ModuleType, Survey._module),
    (np.ndarray, Survey._array),
    ((bytearray, memoryview), Survey._buffer),
    ((tuple, list, set, frozenset, deque), Survey._sequence),
    ((dict, types.MappingProxyType), Survey._mapping),
    (weakref.ref, Survey._reference),
    (contextvars.ContextVar, Survey._variable),
)


def _watch_scope(scope: Mapping[str, Any], get: Callable[[Any], Any], found: Any) -> Callable[[], bool]:
    return lambda: bool(get(scope) == found)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _like(tensor: Tensor | None) -> Hashable:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)


def _watch_tensors(slots: dict[str, Any], stored: tuple[Any, ...], like: list[Hashable]) -> Callable[[], bool]:
    return lambda: (
        len(slots) == len(stored)
        and all(map(is_, slots.values(), stored))
        and [_like(tensor) for tensor in stored] == like
    )


def _has_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def _tensor_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)
    return flat.view(torch.uint8).cpu().numpy().tobytes() if flat.numel() else b""
