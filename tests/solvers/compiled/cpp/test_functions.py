"""The elementary functions of the generated code: a few units in the last place from what is exact."""

import ctypes

import mpmath
import numpy as np
import pytest

from solvers.compiled.cpp import compiler
from solvers.compiled.cpp.emit import HEADER

#: Largest error, in units in the last place of the result.
ULP = {"exp": 4, "expm1": 4, "tanh": 4, "sigmoid": 4, "log": 4, "log1p": 4}


@pytest.fixture(scope="module")
def functions():
    loops = [
        f'extern "C" void {name}_{kind}(const {kind}* x, {kind}* y, long n) {{\n'
        f"#pragma omp simd\nfor (long i = 0; i < n; ++i) y[i] = v{name}<{kind}>(x[i]);\n}}\n"
        for name in ULP
        for kind in ("float", "double")
    ]
    return compiler.library(HEADER.read_text() + "".join(loops))


def computed(functions, name, x):
    y = np.empty_like(x)
    kind = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}[x.dtype]
    pointers = (ctypes.c_void_p(a.ctypes.data) for a in (x, y))
    getattr(functions, f"{name}_{kind}")(*pointers, ctypes.c_long(x.size))
    return y


def wider(dtype):
    """Whether numpy's longest numbers are longer than these: those of float64 are on most machines, but not on all."""
    return np.finfo(np.longdouble).eps < np.finfo(dtype).eps / 100


def exact(name, x):
    """In the longest precision numpy has, if that is longer than that of `x`; else by mpmath, rounded once."""
    if not wider(x.dtype):
        with mpmath.workprec(120):
            function = (lambda v: 1 / (1 + mpmath.exp(-v))) if name == "sigmoid" else getattr(mpmath, name)
            return np.array([float(function(mpmath.mpf(float(v)))) for v in x])
    x = x.astype(np.longdouble)
    with np.errstate(all="ignore"):
        return 1 / (1 + np.exp(-x)) if name == "sigmoid" else getattr(np, name)(x)


def arguments(name, dtype):
    """Signed values of every size; where the function has a domain or saturates, closely around its ends."""
    random = np.random.default_rng(0)
    info = np.finfo(dtype)
    low, high = (np.log10(float(info.tiny)), np.log10(float(info.max)))
    sizes = 10.0 ** random.uniform(low, high, 20_000)
    close = random.uniform(-30, 30, 20_000)
    middle = 10.0 ** random.uniform(-10, 3, 20_000)
    values = np.concatenate([sizes, -sizes, close, middle, -middle, 1 + close / 100, close / 1000])
    if name == "log":
        values = np.abs(values)
    if name == "log1p":
        values = values[values > -1]
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", list(ULP))
def test_accuracy_for_arguments_of_every_size(name, dtype, functions):
    # mpmath takes microseconds for each.
    x = arguments(name, dtype)[:: 1 if wider(dtype) else 20].copy()
    values, expected = computed(functions, name, x), exact(name, x)
    with np.errstate(over="ignore"):
        rounded = expected.astype(dtype)
    # What overflows is infinite; where the result is below the normal numbers its spacing is that of the smallest.
    near = np.isfinite(rounded) & np.isfinite(values)
    edge = np.abs(expected) > 0.999 * float(np.finfo(dtype).max)
    assert np.array_equal(values[~near & ~edge], rounded[~near & ~edge])
    unit = np.spacing(np.maximum(np.abs(rounded[near]), np.finfo(dtype).tiny))
    error = np.abs(values[near].astype(np.longdouble) - expected[near]) / unit
    worst = int(error.argmax())
    assert error[worst] <= ULP[name], f"{error[worst]} ulp at {x[near][worst]!r}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("exp", (0, np.inf)),
        ("expm1", (-1, np.inf)),
        ("tanh", (-1, 1)),
        ("sigmoid", (0, 1)),
        ("log", (np.nan, np.inf)),
        ("log1p", (np.nan, np.inf)),
    ],
)
def test_infinities_zeros_and_nan(name, limits, dtype, functions):
    x = np.array([-np.inf, np.inf, np.nan, 0.0, -0.0], dtype)
    values = computed(functions, name, x)
    np.testing.assert_array_equal(values[:2], np.array(limits, dtype))
    assert np.isnan(values[2])
    at_zero = {"exp": 1, "sigmoid": 0.5, "log": -np.inf}.get(name, 0)
    np.testing.assert_array_equal(values[3:], np.array([at_zero] * 2, dtype))
    if name in ("tanh", "log1p", "expm1"):
        assert list(np.signbit(values[3:])) == [False, True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outside_of_the_domain(dtype, functions):
    assert np.isnan(computed(functions, "log", np.array([-1.0, -1e-30, -np.inf], dtype))).all()
    ends = computed(functions, "log1p", np.array([-1.0, -1.5, -np.inf], dtype))
    assert ends[0] == -np.inf and np.isnan(ends[1:]).all()
