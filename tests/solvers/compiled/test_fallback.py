"""What the fast path does not take runs on the plain path, and says why."""

import importlib
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.cpp import compiler as cpp_compiler
from solvers.compiled.step.refused import Refused
from solvers.compiled.triton import compiler as triton_compiler

X = torch.randn(2, 70, 3, generator=torch.Generator().manual_seed(1))


class Written(neuralosc.VectorField):
    """A field whose right-hand side is given."""

    def __init__(self, slope):
        super().__init__(3, 3)
        self.W = nn.Parameter(torch.eye(3))
        self.slope = slope

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return self.slope(self, t, h, u).unsqueeze(-2)


def record_of(slope, solver="euler", x=X, **options):
    rnn = ContinuousRNN(Written(slope), solver, 0.01, **options)
    solution = rnn.solve(x)
    with solvers.backend("plain"):
        plain = rnn.solve(x)
    torch.testing.assert_close(solution.output, plain.output, rtol=1e-5, atol=1e-6)
    return solution.trajectories[0].record


def linear(self, t, h, u):
    return h @ self.W + u


def test_a_field_of_ones_own_is_compiled():
    record = record_of(linear)
    assert record.path == "compiled" and not record.reason and "sgemm" not in record.source
    assert 'extern "C" void forward' in record.source and record.saved > 0


def _branching(self, t, h, u):
    return h if bool((h > 0).all()) else u - h


def _random(self, t, h, u):
    return u - h + 0 * torch.rand_like(h)


def _closure(tensor):
    return lambda self, t, h, u: u - h * tensor


def _coupled(self, t, h, u):
    return u - h * h.mean(0)


def _sorted(self, t, h, u):
    return u - h.sort(-1).values


class _Counter:
    calls = 0


def _counting(self, t, h, u):
    _Counter.calls += 1
    return u - h * float(_Counter.calls % 3)


@pytest.mark.parametrize(
    ("slope", "word"),
    [
        (_branching, "cannot be traced"),
        (_random, "rand"),
        (_closure(torch.ones(3, requires_grad=True)), "no parameter, buffer or bound constant"),
        (_coupled, "sums over the samples"),
        (_sorted, "sort"),
    ],
)
def test_steps_that_are_refused(slope, word):
    record = record_of(slope)
    assert record.path == "plain" and word in record.reason and not record.source


def test_a_step_with_a_memory_in_python_is_caught():
    rnn = ContinuousRNN(Written(_counting), "euler", 0.01)
    record = rnn.solve(X).trajectories[0].record
    assert record.path == "plain" and "changes what it reads" in record.reason


def test_a_gradient_of_ones_own_that_disagrees_is_caught():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.tanh()

        @staticmethod
        def backward(ctx, g):
            return 5 * g

    record = record_of(lambda self, t, h, u: u - Wrong.apply(h @ self.W))
    assert record.path == "plain" and record.reason


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"gradient": "adjoint"}, "adjoint"),
        ({"solver": "dopri5"}, "as it goes"),
        ({"solver": "implicit_midpoint"}, "cannot be traced"),
        ({"x": X[:, :5]}, "fewer than"),
    ],
)
def test_choices_that_are_refused(options, word):
    record = record_of(linear, **options)
    assert record.path == "plain" and word in record.reason


def test_a_changed_attribute_makes_a_new_step():
    class Scaled(neuralosc.VectorField):
        factor = 1.0

        def __init__(self):
            super().__init__(3, 3)
            self.factor = 1.0
            self.W = nn.Parameter(torch.eye(3))

        def forward(self, t, state, u):
            return state * self.factor + 0 * state @ self.W

    rnn = ContinuousRNN(Scaled(), "euler", 0.01)
    state = torch.ones(2, 1, 3)
    for factor in (1.0, -1.0, 1.0):
        rnn.field.factor = factor
        solution = rnn.solve(X, state)
        assert solution.trajectories[0].record.path == "compiled"
        torch.testing.assert_close(solution.state, torch.full((2, 1, 3), (1 + 0.01 * factor) ** 70))


def test_a_changed_closure_makes_a_new_step():
    factor = 1.0

    def scaled(self, t, h, u):
        return h * factor + 0 * h @ self.W

    rnn, state = ContinuousRNN(Written(scaled), "euler", 0.01), torch.ones(2, 1, 3)
    for factor in (1.0, -2.0):
        solution = rnn.solve(X, state)
        assert solution.trajectories[0].record.path == "compiled"
        torch.testing.assert_close(solution.state, torch.full((2, 1, 3), (1 + 0.01 * factor) ** 70))


def test_parameters_and_buffers_are_read_at_each_solve(make_field):
    field = make_field("oscillator_per_channel")
    rnn, x = ContinuousRNN(field, "semi_implicit_euler", 0.1), torch.randn(2, 70, 2, dtype=torch.float64)
    for _ in range(2):
        solution = rnn.solve(x)
        assert solution.trajectories[0].record.path == "compiled"
        with solvers.backend("plain"):
            torch.testing.assert_close(rnn(x)[0], solution.output, rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            field.W.mul_(0.5)
            field.gamma.raw.add_(1.0)


def test_the_first_solve_draws_no_random_numbers():
    rnn, before = ContinuousRNN(Written(linear), "euler", 0.01), torch.get_rng_state()
    assert rnn.solve(X).trajectories[0].record.path == "compiled"
    assert torch.equal(torch.get_rng_state(), before)


def test_the_backends(one_line):
    rnn = ContinuousRNN(Written(linear), "euler", 0.01)
    assert solvers.get_backend() == "auto"
    with solvers.backend("plain"):
        assert rnn.solve(X).trajectories[0].record.reason == "the backend is 'plain'"
        with solvers.backend("compiled"):
            assert rnn.solve(X[:, :2]).trajectories[0].record.path == "compiled"
        assert solvers.get_backend() == "plain"
    solvers.set_backend("plain")
    try:
        assert rnn.solve(X).trajectories[0].record.path == "plain"
    finally:
        solvers.set_backend("auto")
    with pytest.raises(solvers.InputError) as error:
        solvers.set_backend("fast")
    one_line(error, "fast", "auto, plain, compiled")
    with solvers.backend("compiled"), pytest.raises(solvers.PairingError) as error:
        rnn.with_solver("dopri5")(X)
    one_line(error, "dopri5", "'auto'")


def test_short_sequences_are_compiled_for_where_that_is_asked_for(one_line):
    rnn = ContinuousRNN(Written(linear), "euler", 0.01)

    def path(steps):
        record = rnn.solve(X[:, :steps]).trajectories[0].record
        return record.path, record.reason

    with solvers.backend("auto", least=5):
        assert path(5)[0] == "compiled"
        assert path(4) == ("plain", "fewer than 5 steps do not pay for compiling")
        with solvers.backend("auto"):
            assert path(5)[0] == "compiled"
        with solvers.backend("plain", least=3):
            assert path(5)[0] == "plain"
        assert path(4)[0] == "plain"
    assert path(5) == ("plain", "fewer than 64 steps do not pay for compiling")
    for least in (0, 2.5, True):
        with pytest.raises(solvers.InputError) as error, solvers.backend("auto", least=least):
            pass
        one_line(error, f"least is {least!r}", "at least 1")
    assert path(5)[0] == "plain"


def test_what_is_taken_on_a_gpu(monkeypatch):
    """GPU kernels where they can be made; else what needs none."""
    backend = importlib.import_module("solvers.run.backend")
    state = types.SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(triton_compiler, "target", lambda state: triton_compiler.Target(90, "ieee"))
    assert backend._path("auto", state) == ("triton", "")
    assert backend._path("plain", state)[0] == "plain" and backend._path("scan", state)[0] == "scan"

    def refuse(state):
        raise Refused("Triton is not installed")

    monkeypatch.setattr(triton_compiler, "target", refuse)
    path, reason = backend._path("auto", state)
    assert path == "plain"
    for asked in (path, "compiled"):
        with pytest.raises(Refused, match=reason if asked == path else "backend 'triton'"):
            backend._maker(asked, reason, state)


def test_an_empty_batch_and_function_transforms_stay_plain():
    rnn = ContinuousRNN(Written(linear), "euler", 0.01)
    assert rnn.solve(X[:0]).trajectories[0].record.path == "plain"
    jacobian = torch.func.jacrev(lambda x: rnn(x)[0][:, -1].sum(0))(X)
    assert jacobian.shape == (3, *X.shape)


def test_failures_read_the_same_on_both_paths(one_line):
    rnn = ContinuousRNN(Written(lambda self, t, h, u: 50 * h * h + u), "euler", 1.0)
    x, messages = torch.zeros(3, 80, 3), []
    x[1] = 1.0
    for backend in ("plain", "compiled"):
        with solvers.backend(backend), pytest.raises(solvers.NonFiniteStateError) as error:
            rnn(x)
        messages.append(one_line(error, "sample 1", "step", "time"))
    assert messages[0] == messages[1]


def test_the_length_and_the_batch_need_no_new_code(monkeypatch):
    rnn = ContinuousRNN(Written(linear), "euler", 0.01)
    rnn(X)[0].sum().backward()

    def refuse(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(cpp_compiler, "library", refuse)
    for x in (X[:, :69].repeat(4, 2, 1), X.repeat(1, 3, 1)[:1]):
        output = rnn.solve(x)
        assert output.trajectories[0].record.path == "compiled"
        output.output.sum().backward()


SCRIPT = """
import torch, neuralosc
rnn = neuralosc.ContinuousRNN(neuralosc.Oscillator(2, 4), "semi_implicit_euler", 0.1)
solution = rnn.solve(torch.ones(2, 80, 2))
solution.output.sum().backward()
record = solution.trajectories[0].record
print(record.path, record.reason)
"""


def run(**environment):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment}
    code = textwrap.dedent(SCRIPT)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def test_the_cache_serves_other_processes_and_a_broken_compiler_falls_back(tmp_path):
    assert run(NEURALOSC_CACHE=str(tmp_path)).startswith("compiled")
    written = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert {p.rsplit(".")[1] for p in written} == {"cpp", "so"}
    assert run(NEURALOSC_CACHE=str(tmp_path)).startswith("compiled")
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == written
    broken = run(NEURALOSC_CACHE=str(tmp_path / "other"), NEURALOSC_CXX="/bin/false")
    assert broken.startswith("torch the compiler") and "/bin/false" in broken
    missing = run(NEURALOSC_CXX="no-such-compiler")
    assert missing.startswith("torch no C++ compiler found")
