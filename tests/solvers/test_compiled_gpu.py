"""The GPU kernels of the compiled loop against the plain one.

On a machine with a GPU they run there. Elsewhere Triton's interpreter runs them, in main memory, and the compiler makes
them for a GPU that is not there, which shows the registers and the shared memory they take.
"""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import conftest
import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.triton import compiler as gpu_build
from solvers.compiled.triton import persistent as gpu_run
from solvers.compiled.triton.tiling import Layout

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when Triton is first imported.
    os.environ["TRITON_INTERPRET"] = "1"


def solved(rnn, backend, x, state, spans, weights):
    """Output, last state and all gradients of one backend."""
    leaves = [t for t in (x, state, spans) if t is not None and t.requires_grad] + list(rnn.parameters())
    with solvers.backend(backend):
        solution = rnn.solve(x, state, timespans=spans)
    record = solution.trajectories[0].record
    assert record.path == backend
    assert ("@triton.jit" in record.source) == (backend == "triton")
    loss = sum((w * t).sum() for w, t in zip(weights, (solution.states, solution.output, solution.state), strict=True))
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [solution.output, solution.state, *found], solution.evaluations


def agree(rnn, batch=3, time=4, spans=None, dtype=torch.float64, bound=1e-12):
    rnn = rnn.to(DEVICE, dtype)
    shape = (batch, time, rnn.components, rnn.hidden_size)
    x = torch.randn(batch, time, rnn.input_size, dtype=dtype).to(DEVICE).requires_grad_()
    state = torch.randn(batch, *shape[2:], dtype=dtype).to(DEVICE).requires_grad_()
    if spans == "sample":
        spans = torch.rand(batch, time, dtype=dtype).add(0.05).to(DEVICE).requires_grad_()
    weights = [torch.randn(s, dtype=dtype).to(DEVICE) for s in (shape, (*shape[:2], shape[3]), (batch, *shape[2:]))]
    plain, calls = solved(rnn, "plain", x, state, spans, weights)
    fast, same = solved(rnn, "triton", x, state, spans, weights)
    assert calls == same
    conftest.assert_agree(fast, plain, bound)


class Functions(neuralosc.VectorField):
    """A user's own field with every function that kernels know."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V = nn.Linear(input_size, hidden_size)
        self.a, self.c = nn.Parameter(torch.randn(hidden_size)), nn.Parameter(torch.tensor(0.3))
        self.W = nn.Parameter(torch.randn(2 * hidden_size, hidden_size) / hidden_size)

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        both = torch.cat([h.sin(), (h * self.a).cos()], -1) @ self.W
        smooth = torch.expm1(-h.abs()) + torch.log1p(h * h) + torch.erf(u) + torch.sqrt(1 + h * h)
        kinked = h.clamp(-0.5, 0.7) + torch.maximum(h, u) - torch.minimum(h * h, u) + torch.relu(u) + h.sign()
        powers = (1 + h * h) ** -0.3 + h**3 + torch.exp(-h * h) ** 2 + torch.log(2 + u.cos())
        chosen = torch.where((h > u) & (h < 2), h, 0.5 * u) + torch.sigmoid(self.c) * torch.where(h > 0, 0.25, 0.75 * u)
        mean = torch.tanh(h.mean(-1, keepdim=True) + u.sum(-1, keepdim=True))
        slope = torch.sigmoid(both) * smooth + 0.1 * kinked + 0.1 * powers + chosen + mean * self.c - 3 * h
        return slope.unsqueeze(-2)


QUICK = [
    ("oscillator", "semi_implicit_euler"),
    ("hamiltonian_oscillator", "semi_implicit_euler"),
    ("lipschitz", "euler"),
    ("multiscale", "semi_implicit_euler"),
    ("linear_oscillator", "imex_euler"),
    ("leaky", "rk4"),
]


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
    monkeypatch.setattr(gpu_build, "layouts", lambda *_: [Layout(16, 16, depth, 4, 1, kept)])
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
    monkeypatch.setattr(gpu_run, "CHUNK", 1)
    spans = torch.rand(4, dtype=torch.float64).add(0.1).to(DEVICE)
    chosen = {"uniform": None, "numbers": spans, "shared": spans.requires_grad_(clock == "shared")}
    for name, solver in (("oscillator_uncoupled", "stormer_verlet"), ("lipschitz_gated", "euler")):
        rnn = ContinuousRNN(make_field(name), solver, 0.1, substeps=3, control="linear")
        agree(rnn, spans=chosen.get(clock, clock))


@pytest.mark.slow
def test_every_pairing(make_field):
    import conftest
    from test_compiled_equality import compiles

    taken = 0
    for name in conftest.FIELDS:
        for solver in solvers.compatible(make_field(name)):
            if compiles(make_field(name), solver):
                agree(ContinuousRNN(make_field(name), solver, 0.1), spans="sample", bound=1e-9)
                taken += 1
    assert taken > 200


def test_a_gradient_of_the_gradient(make_field, relative_error):
    rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 0.1).to(DEVICE)
    x, found = torch.randn(2, 3, 2, dtype=torch.float64).to(DEVICE), []
    for backend in ("plain", "triton"):
        with solvers.backend(backend):
            output, _ = rnn(x)
            first = torch.autograd.grad(output.square().sum(), list(rnn.parameters()), create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), list(rnn.parameters())))
    assert all(relative_error(fast, plain) < 1e-11 for plain, fast in zip(*found, strict=True))


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
        patch.setattr(gpu_build.importlib.util, "find_spec", lambda name: None)
        said("Triton is not installed")


COMPILE = """
import importlib, sys
import torch
from solvers.compiled.triton import compiler as gpu_build
from solvers.compiled.step.refused import Refused
sys.path[:0] = ["tests"]
import conftest, json, neuralosc, solvers

name, solver, hidden, precision = sys.argv[1:]
calls = []

def stop(field, call, *_):
    calls.append(call)
    raise Refused("only compiled")

importlib.import_module("solvers.run.backend").self_check = stop
gpu_build.target = lambda state: gpu_build.Target(90, precision)
rnn = neuralosc.ContinuousRNN(conftest.make_field(name, 2, int(hidden)).float(), solver, 0.1)
try:
    with solvers.backend("triton"):
        rnn.solve(torch.randn(2, 3, 2))
except solvers.PairingError as error:
    if not calls:
        raise
source = calls[0].kernel.source
"""
REPORTS = "print(json.dumps([vars(gpu_build.report(source, which, 90, torch.float32)) for which in (0, 1)]))"

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
    for taken in reports(name, solver, hidden, precision):
        assert taken["stack"] == 0 and 0 < taken["registers"] <= 255
        assert taken["shared"] <= 227 * 1024


def reports(name, solver, hidden, precision, before="", after=REPORTS):
    """What both kernels take, compiled for compute capability 9.0; or what other code prints of `source` as JSON."""
    if os.name != "posix" or not (importlib.util.find_spec("triton.backends") and _has_assembler()):
        pytest.skip("Triton's assembler is not there")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    code = "\n".join((before, textwrap.dedent(COMPILE), after))
    command = [sys.executable, "-W", "ignore", "-c", code, name, solver, str(hidden), precision]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def _has_assembler():
    from triton import knobs

    try:
        return bool(knobs.nvidia.ptxas.path and knobs.nvidia.cuobjdump.path)
    except (AttributeError, RuntimeError):
        return False
