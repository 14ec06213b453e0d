"""bfloat16, float16 and autocast in GPU kernels: state and sums in float32, products in bfloat16 where asked for.

As in the tests of the kernels in float32, Triton's interpreter runs them where there is no GPU.
"""

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.triton import compiler
from solvers.compiled.triton import kernel as triton_kernel
from solvers.compiled.triton.tiling import Tiling
from tests.measures import assert_agree, relative_error
from tests.solvers.compiled.triton.kernels import DEVICE, reports

HALF = [torch.bfloat16, torch.float16]
#: Where matrices are: on the chip, streamed, or with the library's products between kernels.
WAYS = ["held", "streamed", "both", "staged"]


@pytest.fixture
def lay(monkeypatch):
    def choose(way):
        if way == "staged":
            monkeypatch.setattr(triton_kernel, "CACHED", -1)
        else:
            tiling = Tiling(16, 16, 0 if way == "held" else 16, 4, 1, 512 if way == "both" else 0)
            monkeypatch.setattr(compiler, "tilings", lambda *_: [tiling])

    return choose


def gradients(rnn, x, backend):
    with solvers.backend(backend):
        solution = rnn.solve(x)
        loss = solution.output.float().sin().sum() + solution.state.float().square().sum()
        grads = torch.autograd.grad(loss, [x, *rnn.parameters()])
    record = solution.trajectories[0].record
    assert record.path == backend
    return [solution.output, solution.state, *grads], record


def sample(*shape):
    return torch.rand(*shape).to(DEVICE).requires_grad_()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", ["cornn", "lem", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lipschitz", "hamiltonian"))]
)
def test_autocast_multiplies_in_bfloat16(name, way, lay):
    lay(way)
    rnn = neuralosc.make(name, input_size=3, hidden_size=20).to(DEVICE)
    x = sample(4, 7, 3)
    exact, _ = gradients(rnn, x, "plain")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        fast, record = gradients(rnn, x, "triton")
    assert ("half_dot(" in record.source) == (way != "staged") == ("one level each" not in record.reason)
    assert all(t.dtype == torch.float32 for t in fast)
    assert_agree(fast, exact, 2 * torch.finfo(torch.bfloat16).eps)
    # The kernels do no worse than bfloat16 everywhere would.
    assert max(relative_error(a, b) for a, b in zip(fast, exact, strict=True)) > 1e-5


@pytest.mark.skipif(DEVICE == "cuda", reason="compares two paths in main memory")
@pytest.mark.parametrize("way", WAYS)
def test_the_same_as_compiled_for_the_processor(way, lay):
    lay(way)
    rnn = neuralosc.CoRNN(3, 20)
    x = sample(4, 7, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast, _ = gradients(rnn, x, "triton")
        compiled, _ = gradients(rnn, x, "compiled")
    assert_agree(fast, compiled, torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_float16_keeps_the_digits_that_it_has(dtype):
    rnn = neuralosc.CoRNN(3, 20).to(DEVICE)
    x = sample(4, 7, 3)
    exact, _ = gradients(rnn, x, "plain")
    with torch.autocast(DEVICE, dtype=dtype):
        fast, record = gradients(rnn, x, "triton")
    assert ("half_dot(" in record.source) == (dtype == torch.bfloat16)
    assert_agree(fast, exact, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_states_of_half_precision_are_computed_in_float32(dtype):
    rnn = neuralosc.LEM(3, 20).to(DEVICE, dtype)
    x = sample(4, 7, 3).to(dtype).detach().requires_grad_()
    fast, _ = gradients(rnn, x, "triton")
    assert all(t.dtype == dtype for t in fast)
    exact, _ = gradients(rnn.float(), x.detach().float().requires_grad_(), "plain")
    assert_agree([t.float() for t in fast], exact, 4 * torch.finfo(dtype).eps)


class Product(neuralosc.VectorField):
    """dh = W h."""

    def __init__(self, hidden_size):
        super().__init__(1, hidden_size)
        self.W = nn.Parameter(torch.randn(hidden_size, hidden_size))

    def drive(self, x):
        return x

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return (h @ self.W).unsqueeze(-2)


@pytest.mark.parametrize("way", ["held", "streamed", "both"])
@pytest.mark.parametrize("hidden", [1, 37])
def test_operands_are_rounded_to_nearest_and_nothing_else_is(hidden, way, lay):
    lay(way)
    rnn = ContinuousRNN(Product(hidden).to(DEVICE), "euler", 0.5)
    state = torch.randn(18, 1, hidden, device=DEVICE)
    x = torch.zeros(18, 1, 1, device=DEVICE)
    with solvers.backend("triton"), torch.autocast(DEVICE, dtype=torch.bfloat16):
        output, _ = rnn(x, state)
    rounded = [t.detach().bfloat16().float() for t in (state[:, 0], rnn.field.W)]
    expected = state[:, 0] + 0.5 * (rounded[0] if hidden > 1 else state[:, 0]) @ rounded[1]
    torch.testing.assert_close(output[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_float64_is_left_alone():
    rnn = neuralosc.CoRNN(3, 4).to(DEVICE, torch.float64)
    x = torch.rand(2, 3, 3, dtype=torch.float64).to(DEVICE).requires_grad_()
    plain, _ = gradients(rnn, x, "plain")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        fast, _ = gradients(rnn, x, "triton")
    assert_agree(fast, plain, 1e-12)


@pytest.mark.parametrize(
    ("name", "held"),
    [("oscillator_uncoupled", 128 << 10), pytest.param("oscillator", 192 << 10, marks=pytest.mark.slow)],
)
def test_a_matrix_of_256_channels_stays_on_the_chip_and_of_two_such_most_does(name, held):
    for report in reports(name, "semi_implicit_euler", 256, "bf16"):
        assert report["stack"] == 0 and held <= report["shared"] <= compiler.SHARED
