"""GPU steps as kernels of one level each with the library's products between them, against the plain path.

As in the tests of the persistent kernels Triton's interpreter runs them where there is no GPU; a CUDA graph is then
what launches the same kernels again.
"""

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.triton import compiler, emit_persistent, emit_staged, persistent, staged
from solvers.compiled.triton import kernel as triton_kernel
from tests.measures import assert_agree
from tests.solvers.compiled.paths import COMPILED, compiles
from tests.solvers.compiled.triton.kernels import DEVICE, QUICK, Functions, agree, reports, solved

SAID = "in kernels of one level each"


@pytest.fixture(autouse=True)
def no_persistent_kernel(monkeypatch):
    monkeypatch.setattr(triton_kernel, "CACHED", -1)


@pytest.mark.parametrize(("name", "solver"), [*QUICK, ("hamiltonian_oscillator", "stormer_verlet")])
def test_all_gradients_are_those_of_the_plain_path(name, solver, make_field):
    agree(ContinuousRNN(make_field(name), solver, 0.1), spans="sample")


def test_every_function():
    torch.manual_seed(0)
    agree(ContinuousRNN(Functions(2, 3), "midpoint", 0.1), spans="sample")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solver"), QUICK)
def test_single_precision(name, solver, make_field):
    agree(ContinuousRNN(make_field(name, 2, 20), solver, 0.1), dtype=torch.float32, time=6, bound=2e-5)


@pytest.mark.parametrize(("batch", "time", "hidden"), [(1, 1, 1), (3, 2, 37)])
def test_shapes(batch, time, hidden, make_field, monkeypatch):
    """Channels in several pieces, too."""
    monkeypatch.setattr(emit_staged, "PIECE", 16)
    for name, solver in (("oscillator", "semi_implicit_euler"), ("multiscale", "semi_implicit_euler")):
        agree(ContinuousRNN(make_field(name, 2, hidden), solver, 0.1), batch, time, "sample")


@pytest.mark.parametrize("clock", ["uniform", "sample", "shared"])
def test_clocks_and_substeps(clock, make_field, monkeypatch):
    """One interval in each chunk of the backward pass, too, whose steps are an odd number."""
    monkeypatch.setattr(persistent, "CHUNK", 1)
    spans = torch.rand(4, dtype=torch.float64).add(0.1).to(DEVICE).requires_grad_()
    for name, solver in (("oscillator_uncoupled", "stormer_verlet"), ("lipschitz_gated", "euler")):
        rnn = ContinuousRNN(make_field(name), solver, 0.1, substeps=3, control="linear")
        agree(rnn, spans={"uniform": None, "shared": spans}.get(clock, clock))


def test_one_graph_serves_every_length_and_every_place(make_field, monkeypatch):
    """Steps are launched, recorded and replayed, and what is replayed reads what the next solve brings along."""
    recorded = []
    record = staged.Work.recorded
    monkeypatch.setattr(staged, "GRAPH", 4)
    monkeypatch.setattr(
        staged.Work, "recorded", lambda work, count, flags: recorded.append(count) or record(work, count, flags)
    )
    rnn = ContinuousRNN(make_field("oscillator", 2, 5), "semi_implicit_euler", 0.1).to(DEVICE, torch.float64)
    kept = []
    for time in (11, 13, 11, 17):
        x = torch.randn(3, time, 2, dtype=torch.float64).to(DEVICE).requires_grad_()
        kept.append(x)
        weights = [
            torch.randn(*shape, dtype=torch.float64).to(DEVICE) for shape in ((3, time, 2, 5), (3, time, 5), (3, 2, 5))
        ]
        plain, _ = solved(rnn, "plain", x, None, None, weights)
        fast, _ = solved(rnn, "triton", x, None, None, weights)
        assert_agree(fast, plain, 1e-12)
    # Of each pass once: 4 steps, 3 (the rest of 11, and that of the self-check before) and 1 (of 13 and 17).
    assert sorted(recorded) == [1, 1, 3, 3, 4, 4]


def test_another_batch_has_places_of_its_own(make_field):
    rnn = ContinuousRNN(make_field("lipschitz"), "euler", 0.1)
    for batch in (2, 5, 2):
        agree(rnn, batch)


class Rotated(neuralosc.VectorField):
    """A component of the state put together from channels that are computed apart."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V = nn.Linear(input_size, hidden_size)
        half = hidden_size // 2
        self.W, self.w = nn.Parameter(torch.randn(half, half) / half), nn.Parameter(torch.randn(half))

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        a, b = state.squeeze(-2).chunk(2, -1)
        return (torch.cat([torch.tanh(b @ self.W), -self.w * a], -1) + u).unsqueeze(-2)


def test_a_state_put_together_from_parts(monkeypatch):
    """No persistent kernel takes it."""
    monkeypatch.setattr(triton_kernel, "CACHED", 1 << 20)
    torch.manual_seed(0)
    rnn = ContinuousRNN(Rotated(2, 6), "heun", 0.1).to(DEVICE, torch.float64)
    agree(rnn, spans="sample")
    with solvers.backend("triton"):
        record = rnn.solve(torch.randn(2, 3, 2, dtype=torch.float64).to(DEVICE)).trajectories[0].record
    assert record.path == "triton" and SAID in record.reason and "computed apart" in record.reason


def test_why_it_is_taken_is_said(make_field, monkeypatch):
    x = torch.randn(2, 3, 2, dtype=torch.float64).to(DEVICE)

    def reason():
        rnn = ContinuousRNN(make_field("oscillator"), "semi_implicit_euler", 0.1).to(DEVICE, torch.float64)
        with solvers.backend("triton"):
            return rnn.solve(x).trajectories[0].record.reason

    assert SAID in reason() and "its largest matrix has 0 KiB" in reason()
    monkeypatch.setattr(triton_kernel, "CACHED", 1 << 20)
    assert SAID not in reason()
    monkeypatch.setattr(emit_persistent, "LARGEST", 1)
    assert SAID in reason() and "too many for one GPU kernel" in reason()


@pytest.mark.skipif(DEVICE == "cuda", reason="kernels for another device than this")
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.abort()", "Triton's compiler ended with SIGABRT"),
        ("raise SystemExit(3)", "Triton's compiler ended with code 3"),
        ("from solvers.compiled.step.refused import Refused; raise Refused('of a reason')", "of a reason"),
    ],
)
def test_a_compiler_that_aborts_takes_nothing_along(code, reason, make_field, monkeypatch, tmp_path):
    """What it compiled for is a GPU that is not here, so that the kernels of stages are refused, too, when they run."""
    kernels = []
    monkeypatch.setenv("NEURALOSC_CACHE", str(tmp_path))
    monkeypatch.setattr(triton_kernel, "CACHED", 1 << 20)
    monkeypatch.setattr(compiler, "_APART", code)
    monkeypatch.setattr(compiler, "target", lambda state: compiler.Target(90, "ieee"))
    monkeypatch.setattr(staged.Work, "run", lambda work, *_: kernels.append(work.kernel) or 1 / 0)
    rnn = ContinuousRNN(make_field("oscillator", 2, 8), "semi_implicit_euler", 0.1)
    with solvers.backend("triton"), pytest.raises(solvers.PairingError, match="ZeroDivisionError"):
        rnn(torch.randn(2, 3, 2, dtype=torch.float64))
    assert kernels[0].note.endswith(f"no tiling of a GPU kernel fits: {reason}")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_every_pairing(name, make_field):
    solver_names = [s for s in solvers.compatible(make_field(name)) if compiles(make_field(name), s)]
    for solver in solver_names:
        agree(ContinuousRNN(make_field(name), solver, 0.1), spans="sample", bound=1e-9)
    assert solver_names


STAGES = """
found = staged.reports(source, 90, torch.float32)
print(json.dumps({name: vars(report) for name, report in found.items()}))
"""


@pytest.mark.parametrize(
    ("name", "solver", "hidden"),
    [
        ("oscillator", "semi_implicit_euler", 1024),
        pytest.param("multiscale", "semi_implicit_euler", 4096, marks=pytest.mark.slow),
        pytest.param("leaky", "rk4", 1024, marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_for_a_gpu_without_spilling(name, solver, hidden):
    before = "from solvers.compiled.triton import kernel, staged\nkernel.CACHED = -1"
    by_kernel = reports(name, solver, hidden, "ieee", before, STAGES)
    assert {key.split("_")[0] for key in by_kernel} == {"forward", "backward"}
    for report in by_kernel.values():
        assert report["stack"] == 0 and 0 < report["registers"] <= 255
