"""Products of our own: those of torch on any shapes, and chosen where the library's leave vectors unused."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neuralosc
import solvers
from solvers.compiled.cpp import compiler, gemm

REAL = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


def call(x, m, out, add, transposed):
    """out [+]= x m, or x^T m; rows may be apart."""
    dtype = x.dtype
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)(
        gemm._own({torch.float32: "float", torch.float64: "double"}[dtype])
    )
    rows, columns, depth = len(out), out.shape[1], len(m)
    numbers = [ctypes.c_int(n) for n in (columns, rows, depth)]
    steps = [ctypes.c_int(max(t.stride(0), 1)) for t in (m, x, out)]
    one, beta = REAL[dtype](1), REAL[dtype](float(add))
    texts = [ctypes.create_string_buffer(text) for text in (b"N", b"T" if transposed else b"N")]
    places = [ctypes.c_void_p(t.data_ptr()) for t in (m, x, out)]
    at = ctypes.addressof
    function(
        *map(at, texts), *map(at, numbers), at(one), places[0], at(steps[0]), places[1], at(steps[1]), at(beta),
        places[2], at(steps[2]),
    )  # fmt: skip


sizes = st.integers(1, 70)


@settings(max_examples=150, deadline=None)
@given(
    rows=sizes,
    columns=sizes,
    depth=st.integers(1, 450),
    gap=st.integers(0, 3),
    add=st.booleans(),
    transposed=st.booleans(),
    double=st.booleans(),
)
def test_any_shape(rows, columns, depth, gap, add, transposed, double):
    dtype = torch.float64 if double else torch.float32
    left = (depth, rows) if transposed else (rows, depth)
    x, m = (torch.randn(n, k + gap, dtype=dtype)[:, :k] for n, k in (left, (depth, columns)))
    whole = torch.randn(rows, columns + gap, dtype=dtype)
    before = whole.clone()
    out = whole[:, :columns]
    call(x, m, out, add, transposed)
    expected = (x.T if transposed else x) @ m + (before[:, :columns] if add else 0)
    scale = (x.abs().T if transposed else x.abs()) @ m.abs() + before[:, :columns].abs()
    assert ((out - expected).abs() <= 4 * depth**0.5 * torch.finfo(dtype).eps * scale).all()
    assert torch.equal(whole[:, columns:], before[:, columns:])


@pytest.mark.parametrize("shape", [(400, 33, 64), (5, 512, 256), (193, 12, 385)])
def test_sizes_beyond_the_cache_blocks(shape, relative_error):
    rows, columns, depth = shape
    for transposed in (False, True):
        x = torch.randn(*((depth, rows) if transposed else (rows, depth)), dtype=torch.float64)
        m, out = torch.randn(depth, columns, dtype=torch.float64), torch.zeros(rows, columns, dtype=torch.float64)
        call(x, m, out, False, transposed)
        assert relative_error(out, (x.T if transposed else x) @ m) < 1e-14


def test_what_is_no_number_stays_where_it_belongs():
    x, m = torch.randn(3, 4), torch.randn(4, 40)
    x[1, 2], m[0, 39] = float("nan"), float("inf")
    out = torch.empty(3, 40)
    call(x, m, out, False, False)
    assert out[1].isnan().all()
    assert out[0, :39].isfinite().all() and out[0, 39].isinf()


@pytest.mark.parametrize("products", ["own", "library"])
def test_either_gives_the_numbers_of_the_plain_path(products, monkeypatch, relative_error):
    monkeypatch.setenv(gemm.PRODUCTS, products)
    assert gemm.own() == (products == "own")
    rnn = neuralosc.LEM(3, 37).double()
    x = torch.randn(5, 30, 3, dtype=torch.float64)
    by_backend = {}
    for backend in ("plain", "compiled"):
        with solvers.backend(backend):
            output, _ = rnn(x)
            by_backend[backend] = [output, *torch.autograd.grad(output.square().sum(), list(rnn.parameters()))]
    for fast, plain in zip(by_backend["compiled"], by_backend["plain"], strict=True):
        assert relative_error(fast, plain) < 1e-12


@pytest.mark.parametrize(
    ("processor", "own"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f", True),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f", False),
        ("vendor_id : AuthenticAMD\nflags : avx2", False),
        ("arm64", False),
    ],
)
def test_chosen_by_the_processor(processor, own, monkeypatch):
    monkeypatch.delenv(gemm.PRODUCTS, raising=False)
    monkeypatch.setattr(compiler, "processor", lambda: processor)
    gemm._wide_and_unused.cache_clear()
    try:
        assert gemm.own() == own
    finally:
        gemm._wide_and_unused.cache_clear()


def test_a_wrong_choice_is_said(monkeypatch, one_line):
    monkeypatch.setenv(gemm.PRODUCTS, "fast")
    with pytest.raises(solvers.PairingError) as error, solvers.backend("compiled"):
        neuralosc.CoRNN(1, 4)(torch.randn(2, 3, 1))
    one_line(error, "NEURALOSC_PRODUCTS", "'fast'", "'own' or 'library'")
