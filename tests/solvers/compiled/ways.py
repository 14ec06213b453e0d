"""What the Python of a step can read, each with a field that reads it and a change that the next solve must follow."""

import array
import collections
import contextvars
import ctypes
import dataclasses
import decimal
import enum
import fractions
import functools
import os
import threading
import types
import weakref
from unittest import mock

import numpy as np
import torch
from torch import nn

import neuralosc

#: What fields below read from outside of themselves.
GAIN = 1.0
SETTINGS = types.ModuleType("tests_settings")
SETTINGS.gain = 1.0
VARIABLE = contextvars.ContextVar("gain", default=1.0)


class Marked(float):
    """A number of a class of its own."""


class Patterned:
    gain = 1.0


def matched(value):
    match value:
        case Patterned(gain=gain):
            return gain
    return 0.0


@functools.lru_cache
def cached():
    return GAIN


def forgotten(field):
    globals()["GAIN"] = 2.0
    cached.cache_clear()


def shape_of(z):
    return torch.tanh(z)


class Slotted:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 1.0


class Colour(enum.Enum):
    RED = 1.0
    BLUE = 2.0


@dataclasses.dataclass
class Setting:
    gain: float = 1.0

    def times(self, factor=1.0):
        return factor * self.gain


class Decay(neuralosc.VectorField):
    """dh = u - k(self) h."""

    rate = 1.0

    def __init__(self, k):
        super().__init__(1, 2)
        self.k, self.weight = k, nn.Parameter(torch.ones(2))
        self.register_buffer("gain", torch.tensor(1.0))
        self.register_buffer("pair", torch.ones(2))

    def forward(self, t, state, u):
        return u.unsqueeze(-2) * self.weight - self.k(self) * state

    def own(self):
        return 1.0


def change_global(name, value):
    def change(field):
        globals()[name] = value

    return change


def holding(value, read, change):
    """A field with an attribute: what it holds, how the step reads it, and what changes it in place."""

    def make():
        field = Decay(lambda f: read(f.held))
        field.held = value() if callable(value) else value
        return field

    return make, lambda field: change(field.held)


def closing(value, read, change):
    """A field whose step closes over something."""
    kept = value()
    return (lambda: Decay(lambda f: read(kept))), lambda field: change(kept)


def setting(value, read, after):
    """A field with an attribute that is set anew."""

    def make():
        field = Decay(lambda f: read(f.held))
        field.held = value
        return field

    return make, lambda field: setattr(field, "held", after)


def defaulted():
    def k(f, gain=1.0, *, more=0.0):
        return gain + more

    return k


def with_defaults(field):
    field.k.__defaults__ = (2.0,)


def with_keyword_defaults(field):
    field.k.__kwdefaults__ = {"more": 1.0}


def with_code(field):
    field.k.__code__ = (lambda f, gain=1.0, *, more=0.0: 3.0).__code__


def cell():
    gain = 1.0

    def k(f):
        return gain

    def change(field):
        nonlocal gain
        gain = 2.0

    return (lambda: Decay(k)), change


def importing(f):
    import tests_settings

    return tests_settings.gain


def patched_library_method(field):
    return mock.patch.object(neuralosc.VectorField, "time_scale", lambda self: 2.0)


def nested(value, depth=6):
    for _ in range(depth):
        value = [value]
    return value


def innermost(value):
    while isinstance(value, list) and isinstance(value[0], list):
        value = value[0]
    return value


def put(index, value):
    return lambda held: held.__setitem__(index, value)


class Child(nn.Module):
    """A module whose number is an attribute."""

    gain = 1.0

    def forward(self, z):
        return self.gain * z


def child():
    field = Decay(lambda f: f.child(torch.tensor(-1.0)))
    field.child = Child()
    return field


def unregistered(change):
    def make():
        field = Decay(lambda f: f.held[0](1.0))
        field.held = [Child()]
        return field

    return make, change


class Property(Decay):
    inner = 1.0

    @property
    def shown(self):
        return self.inner

    @staticmethod
    def fixed():
        return 1.0

    @classmethod
    def shared(cls):
        return cls.inner


def reset(kind, name, value):
    """Sets an attribute of a class for the time of a test."""
    return lambda field: mock.patch.object(kind, name, value)


def copied(field):
    with torch.no_grad():
        field.load_state_dict({**field.state_dict(), "gain": torch.tensor(2.0), "pair": torch.full((2,), 2.0)})


def by_data(field):
    field.gain.data = torch.tensor(2.0)


def unseen(field):
    field.pair.numpy()[:] = 2.0


def library_function(field):
    return mock.patch.object(torch, "tanh", torch.sin)


#: Fields, and what changes what they read.
WAYS = {
    "global number": (lambda: Decay(lambda f: GAIN), change_global("GAIN", 2.0)),
    "global function": (
        lambda: Decay(lambda f: shape_of(torch.ones(()))),
        change_global("shape_of", lambda z: torch.relu(z)),
    ),
    "attribute of a global module": (
        lambda: Decay(lambda f: SETTINGS.gain),
        lambda f: setattr(SETTINGS, "gain", 2.0),
    ),
    "module imported in the step": (lambda: Decay(importing), lambda f: setattr(SETTINGS, "gain", 2.0)),
    "function of torch": (lambda: Decay(lambda f: torch.tanh(torch.ones(()))), library_function),
    "attribute of a class": (lambda: Decay(lambda f: f.rate), reset(Decay, "rate", 2.0)),
    "attribute of a class by a made name": (
        lambda: Decay(lambda f: getattr(f, f"{'ra'}te")),
        reset(Decay, "rate", 2.0),
    ),
    "attribute of a class put before a base": (
        lambda: Property(lambda f: f.rate),
        lambda f: mock.patch.object(Property, "rate", 2.0, create=True),
    ),
    "method of a class": (lambda: Decay(lambda f: f.own()), reset(Decay, "own", lambda self: 2.0)),
    "method of an object": (lambda: Decay(lambda f: f.own()), lambda f: setattr(f, "own", lambda: 2.0)),
    "method of the library": (lambda: Decay(lambda f: 1.0), patched_library_method),
    "forward of a class": (
        lambda: Decay(lambda f: 1.0),
        reset(Decay, "forward", lambda self, t, x, u: u.unsqueeze(-2) * self.weight - 3 * x),
    ),
    "property": (lambda: Property(lambda f: f.shown), reset(Property, "shown", property(lambda self: 2.0))),
    "what a property reads": (lambda: Property(lambda f: f.shown), lambda f: setattr(f, "inner", 2.0)),
    "static method": (lambda: Property(lambda f: f.fixed()), reset(Property, "fixed", staticmethod(lambda: 2.0))),
    "class method": (lambda: Property(lambda f: f.shared()), reset(Property, "inner", 2.0)),
    "attribute of a child": (child, lambda f: setattr(f.child, "gain", 2.0)),
    "class of a child": (child, reset(Child, "gain", 2.0)),
    "another child": (child, lambda f: setattr(f, "child", nn.LeakyReLU())),
    "module in a list": unregistered(lambda f: setattr(f.held[0], "gain", 2.0)),
    "defaults": (lambda: Decay(defaulted()), with_defaults),
    "keyword defaults": (lambda: Decay(defaulted()), with_keyword_defaults),
    "code of a function": (lambda: Decay(defaulted()), with_code),
    "closed over": cell(),
    "closed over, in place": closing(lambda: [1.0], lambda v: v[0], put(0, 2.0)),
    "closed over object": closing(Setting, lambda v: v.gain, lambda v: setattr(v, "gain", 2.0)),
    "array": holding(lambda: np.array([1.0]), lambda v: float(v[0]), lambda v: v.fill(2.0)),
    "array of objects": holding(lambda: np.array([1.0, None]), lambda v: v[0], put(0, 2.0)),
    "array in a closure": closing(lambda: np.ones(2), lambda v: v.sum() / 2, lambda v: v.fill(2.0)),
    "deque": holding(lambda: collections.deque([1.0]), lambda v: v[0], put(0, 2.0)),
    "list": holding(lambda: [1.0], lambda v: v[0], put(0, 2.0)),
    "dictionary": holding(lambda: {"a": 1.0}, lambda v: v["a"], put("a", 2.0)),
    "default dictionary": holding(lambda: collections.defaultdict(float, a=1.0), lambda v: v["a"], put("a", 2.0)),
    "chain of dictionaries": holding(lambda: collections.ChainMap({"a": 1.0}), lambda v: v["a"], put("a", 2.0)),
    "set": holding(lambda: {1.0}, lambda v: sum(v), lambda v: v.add(2.0)),
    "counter": holding(lambda: collections.Counter(a=1), lambda v: v["a"], put("a", 2)),
    "bytes": holding(lambda: bytearray([1]), lambda v: float(v[0]), put(0, 2)),
    "typed array": holding(lambda: array.array("d", [1.0]), lambda v: v[0], put(0, 2.0)),
    "number of C": holding(lambda: ctypes.c_double(1.0), lambda v: v.value, lambda v: setattr(v, "value", 2.0)),
    "slots": holding(Slotted, lambda v: v.value, lambda v: setattr(v, "value", 2.0)),
    "data class": holding(Setting, lambda v: v.gain, lambda v: setattr(v, "gain", 2.0)),
    "name space": holding(lambda: types.SimpleNamespace(gain=1.0), lambda v: v.gain, lambda v: setattr(v, "gain", 2.0)),
    "local to a thread": closing(
        lambda: threading.local().__class__(), lambda v: getattr(v, "g", 1.0), lambda v: setattr(v, "g", 2.0)
    ),
    "nested": holding(lambda: nested([1.0]), lambda v: innermost(v)[0], lambda v: put(0, 2.0)(innermost(v))),
    "bound method": setting(Setting().times, lambda v: v(), Setting(2.0).times),
    "state of a bound method": holding(
        lambda: Setting().times, lambda v: v(), lambda v: setattr(v.__self__, "gain", 2.0)
    ),
    "partial": holding(
        lambda: functools.partial(Setting().times, factor=1.0), lambda v: v(), lambda v: v.keywords.update(factor=2.0)
    ),
    "state of a partial": holding(
        lambda: functools.partial(Setting().times, 1.0), lambda v: v(), lambda v: setattr(v.func.__self__, "gain", 2.0)
    ),
    "wrapped function": holding(
        lambda: functools.wraps(torch.tanh)(lambda s=Setting(): s.gain),  # noqa: B008
        lambda v: v(),
        lambda v: setattr(v.__defaults__[0], "gain", 2.0),
    ),
    "method of a dictionary": holding(lambda: {"a": 1.0}.get, lambda v: v("a"), lambda v: v.__self__.update(a=2.0)),
    "variable of the context": (lambda: Decay(lambda f: VARIABLE.get()), lambda f: VARIABLE.set(2.0)),
    "weak reference": closing(
        lambda: (lambda s: (weakref.ref(s), s))(Setting()), lambda v: v[0]().gain, lambda v: setattr(v[1], "gain", 2.0)
    ),
    "number of numpy": setting(np.float64(1.0), lambda v: v, np.float64(2.0)),
    "integer of numpy": setting(np.int64(1), int, np.int64(2)),
    "fraction": setting(fractions.Fraction(1), float, fractions.Fraction(2)),
    "decimal number": setting(decimal.Decimal(1), float, decimal.Decimal(2)),
    "enumeration": setting(Colour.RED, lambda v: v.value, Colour.BLUE),
    "number of a class": setting(Marked(1.0), lambda v: v * 1.0, Marked(2.0)),
    "attribute of a class in a pattern": (
        lambda: Decay(lambda f, held=Patterned(): matched(held)),  # noqa: B008
        reset(Patterned, "gain", 2.0),
    ),
    "cached function": (lambda: Decay(lambda f: cached()), forgotten),
    "sign of zero": setting(0.0, lambda v: 2.0 if np.copysign(1, v) < 0 else 1.0, -0.0),
    "truth for one": setting(1, lambda v: 2.0 if v is True else 1.0, True),
    "tensor": setting(torch.tensor(1.0), float, torch.tensor(2.0)),
    "tensor, in place": holding(lambda: torch.tensor(1.0), float, lambda v: v.fill_(2.0)),
    "tensor, behind its back": holding(lambda: torch.ones(2), lambda v: v.tolist()[0], lambda v: v.numpy().fill(2.0)),
    "buffer by item": (lambda: Decay(lambda f: f.gain.item()), copied),
    "buffer by float": (lambda: Decay(lambda f: float(f.gain)), copied),
    "buffer by data": (lambda: Decay(lambda f: float(f.gain)), by_data),
    "buffer by array": (lambda: Decay(lambda f: f.pair.numpy()[0]), copied),
    "buffer by list": (lambda: Decay(lambda f: f.pair.tolist()[0]), copied),
    "buffer behind its back": (lambda: Decay(lambda f: f.pair.tolist()[0]), unseen),
    "buffer in a branch": (lambda: Decay(lambda f: 3.0 if f.gain > 1.5 else 1.0), copied),
    "buffers compared": (lambda: Decay(lambda f: 3.0 if torch.equal(f.pair, torch.ones(2)) else 1.0), copied),
    "parameter by item": (
        lambda: Decay(lambda f: f.weight.tolist()[0]),
        lambda f: f.weight.data.fill_(2.0),
    ),
    "environment": (
        lambda: Decay(lambda f: float(os.environ.get("NEURALOSC_TEST_GAIN", "1"))),
        lambda f: mock.patch.dict(os.environ, NEURALOSC_TEST_GAIN="2"),
    ),
}

#: Those whose change is a context that takes itself back.
PATCHES = {
    "function of torch",
    "attribute of a class",
    "attribute of a class by a made name",
    "attribute of a class put before a base",
    "method of a class",
    "method of the library",
    "forward of a class",
    "property",
    "static method",
    "class method",
    "class of a child",
    "attribute of a class in a pattern",
    "environment",
}
