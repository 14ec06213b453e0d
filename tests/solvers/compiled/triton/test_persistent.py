"""The GPU kernels of the compiled loop against the plain one."""

import pytest
import torch

import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.triton import compiler, persistent
from solvers.compiled.triton.tiling import Tiling
from tests.fields import FIELDS
from tests.solvers.compiled.paths import compiles
from tests.solvers.compiled.triton.kernels import DEVICE, QUICK, Functions, agree, reports


@pytest.mark.parametrize(("name", "solver"), QUICK)
def test_all_gradients_are_those_of_the_plain_path(name, solver, make_field):
    agree(ContinuousRNN(make_field(name), solver, 0.1), spans="sample")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solver"), QUICK)
def test_single_precision(name, solver, make_field):
    rnn = ContinuousRNN(make_field(name, 2, 20), solver, 0.1)
    agree(rnn, dtype=torch.float32, time=6, bound=2e-5)


def test_every_function():
    torch.manual_seed(0)
    agree(ContinuousRNN(Functions(2, 3), "midpoint", 0.1), spans="sample")


@pytest.mark.parametrize(("depth", "kept"), [(0, 0), (16, 0), (16, 512)])
@pytest.mark.parametrize(
    ("name", "solver"),
    [("oscillator", "semi_implicit_euler"), pytest.param("multiscale", "heun", marks=pytest.mark.slow)],
)
def test_pieces_of_channels(name, solver, depth, kept, make_field, monkeypatch):
    """Held and streamed matrices, and some of both, cut into tiles that do not divide the width."""
    monkeypatch.setattr(compiler, "tilings", lambda *_: [Tiling(16, 16, depth, 4, 1, kept)])
    agree(ContinuousRNN(make_field(name, 2, 37), solver, 0.1), batch=18, time=2, spans="sample")


@pytest.mark.parametrize(
    ("batch", "time", "hidden"),
    [(1, 1, 1), (1, 3, 5), *(pytest.param(*shape, marks=pytest.mark.slow) for shape in ((2, 1, 17), (17, 2, 33)))],
)
def test_shapes(batch, time, hidden, make_field):
    for name, solver in (("oscillator", "semi_implicit_euler"), ("hamiltonian_oscillator", "stormer_verlet")):
        agree(ContinuousRNN(make_field(name, 2, hidden), solver, 0.1), batch, time, "sample")


@pytest.mark.parametrize(
    "clock", ["uniform", "sample", *(pytest.param(clock, marks=pytest.mark.slow) for clock in ("numbers", "shared"))]
)
def test_clocks_and_substeps(clock, make_field, monkeypatch):
    """One interval in each launch of the backward kernel, too."""
    monkeypatch.setattr(persistent, "CHUNK", 1)
    spans = torch.rand(4, dtype=torch.float64).add(0.1).to(DEVICE)
    chosen = {"uniform": None, "numbers": spans, "shared": spans.requires_grad_(clock == "shared")}
    for name, solver in (("oscillator_uncoupled", "stormer_verlet"), ("lipschitz_gated", "euler")):
        rnn = ContinuousRNN(make_field(name), solver, 0.1, substeps=3, control="linear")
        agree(rnn, spans=chosen.get(clock, clock))


@pytest.mark.slow
def test_every_pairing(make_field):
    count = 0
    for name in FIELDS:
        for solver in solvers.compatible(make_field(name)):
            if compiles(make_field(name), solver):
                agree(ContinuousRNN(make_field(name), solver, 0.1), spans="sample", bound=1e-9)
                count += 1
    assert count > 200


def test_a_gradient_of_the_gradient(make_field, relative_error):
    rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 0.1).to(DEVICE)
    x, by_backend = torch.randn(2, 3, 2, dtype=torch.float64).to(DEVICE), []
    for backend in ("plain", "triton"):
        with solvers.backend(backend):
            output, _ = rnn(x)
            first = torch.autograd.grad(output.square().sum(), list(rnn.parameters()), create_graph=True)
            by_backend.append(torch.autograd.grad(sum(g.square().sum() for g in first), list(rnn.parameters())))
    assert all(relative_error(fast, plain) < 1e-11 for plain, fast in zip(*by_backend, strict=True))


def test_a_step_without_products_is_shared_out_over_channels(make_field):
    rnn = ContinuousRNN(make_field("hamiltonian_oscillator", 2, 70), "semi_implicit_euler", 0.1).to(DEVICE)
    with solvers.backend("triton"):
        source = rnn.solve(torch.randn(2, 3, 2, dtype=torch.float64).to(DEVICE)).trajectories[0].record.source
    assert "tl.program_id(1)" in source and "tl.dot" not in source


@pytest.mark.skipif(DEVICE == "cuda", reason="about machines without a GPU")
def test_what_is_missing_is_said(make_field, monkeypatch, one_line):
    rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 0.1)
    x = torch.randn(2, 3, 2, dtype=torch.float64)

    def said(*words):
        with solvers.backend("triton"), pytest.raises(solvers.PairingError) as error:
            rnn(x)
        one_line(error, "'triton'", *words)

    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET")
        said("interpreter", "TRITON_INTERPRET=1")
    with monkeypatch.context() as patch:
        patch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
        said("Triton is not installed")


COMPILED = [
    pytest.param(name, solver, hidden, precision, marks=[] if quick else [pytest.mark.slow])
    for name, solver, hidden, precision, quick in [
        ("oscillator", "semi_implicit_euler", 128, "tf32", True),
        ("oscillator", "semi_implicit_euler", 128, "ieee", False),
        ("oscillator", "semi_implicit_euler", 256, "tf32", False),
        ("oscillator", "semi_implicit_euler", 256, "ieee", False),
        ("oscillator_uncoupled", "semi_implicit_euler", 256, "ieee", False),
        ("hamiltonian_oscillator", "semi_implicit_euler", 256, "ieee", False),
        ("linear_oscillator", "imex_euler", 128, "ieee", False),
        ("lipschitz", "euler", 128, "tf32", False),
        ("lipschitz", "euler", 256, "ieee", False),
        ("multiscale", "semi_implicit_euler", 128, "ieee", False),
        ("multiscale", "semi_implicit_euler", 256, "tf32", False),
        ("leaky", "rk4", 128, "tf32", False),
        ("leaky", "rk4", 256, "ieee", False),
        ("oscillator", "semi_implicit_euler", 256, "bf16", False),
        ("lipschitz", "euler", 256, "bf16", False),
        ("multiscale", "semi_implicit_euler", 128, "bf16", False),
        ("leaky", "rk4", 128, "bf16", False),
    ]
]


@pytest.mark.parametrize(("name", "solver", "hidden", "precision"), COMPILED)
def test_kernels_compile_for_a_gpu_without_spilling(name, solver, hidden, precision):
    for report in reports(name, solver, hidden, precision):
        assert report["stack"] == 0 and 0 < report["registers"] <= 255
        assert report["shared"] <= 227 * 1024
