"""Solves in half precision, and on clocks whose times have more digits than the states."""

import math

import pytest
import torch

import neuralosc
import solvers
from solvers import Sampled, Status, integrate

F64 = torch.float64
HALF = [torch.bfloat16, torch.float16]
ADAPTIVE = [info.name for info in solvers.available() if info.adaptive]
#: Seconds since 1970: neighbours in float32 are 128 apart.
STAMP = 1.7e9


class Decay(torch.nn.Module):
    """Each state towards its input, or to zero."""

    def __init__(self, rate=1.0, dtype=torch.float32):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor([rate], dtype=dtype))

    def forward(self, t, state, u):
        slope = -self.rate * state[:, 0] if u is None else u - self.rate * state[:, 0]
        return slope.unsqueeze(-2)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_hold_what_half_precision_can(dtype, method):
    field, eps = Decay(dtype=dtype), torch.finfo(dtype).eps
    solved = integrate(field, torch.ones(1, 1, 1, dtype=dtype), [0.0, 1.0, 2.0], method=method)
    states, exact = solved.states.flatten(), torch.tensor([1.0, math.exp(-1), math.exp(-2)], dtype=F64)
    assert states.dtype == dtype and solved.success
    # An error of the tolerance, two units, in each of a few steps.
    torch.testing.assert_close(states.to(F64), exact, rtol=0, atol=6 * eps)
    states[2].backward()
    assert abs(float(field.rate.grad) + 2 * math.exp(-2)) < 10 * eps
    assert int(solved.statistics.steps) < 100


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("linear_solver", ["newton", "simplified", "krylov"])
@pytest.mark.parametrize("method", [i.name for i in solvers.available() if i.family == "implicit"])
def test_implicit_methods_take_half_precision(dtype, linear_solver, method):
    def field(t, x, u):
        return torch.tanh(x) - 2 * x

    x, chosen = torch.tensor([0.3, -0.7, 0.5]).reshape(1, 1, 3), {"name": method, "linear_solver": linear_solver}
    half = integrate(field, x.to(dtype), [0.0, 0.5, 1.0], method=chosen, substeps=2).states
    full = integrate(field, x.to(dtype).double(), [0.0, 0.5, 1.0], method=chosen, substeps=2).states
    assert half.dtype == dtype
    torch.testing.assert_close(half.double(), full, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("control", ["hold", "linear", "cubic"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    ("method", "gradient"),
    [
        *((method, "backprop") for method in ("native_dopri5", "dopri5", "rk4", "implicit_midpoint")),
        *(("rk4", gradient) for gradient in ("checkpoint", "adjoint")),
    ],
)
def test_a_late_clock_gives_what_one_from_zero_does(control, per_sample, method, gradient):
    inputs = torch.sin(torch.arange(6.0) / 3).reshape(1, 6, 1).repeat(2, 1, 1)
    field, found = Decay(0.5), []
    for start in (0.0, STAMP):
        times = start + torch.arange(6, dtype=F64)
        times = times.expand(2, -1) if per_sample else times
        field.zero_grad()
        u = Sampled(inputs, times, control)
        states = integrate(field, torch.zeros(2, 1, 1), times, u, method, gradient).states
        states.sum().backward()
        found.append((states.detach(), field.rate.grad.clone()))
    # Differences of times are exact here, so that what is left is rounding, and the tolerance of an adjoint.
    for late, early in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(late, early, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("method", ["native_dopri5", "native_kencarp4", "dopri5", "rk4", "implicit_midpoint"])
def test_fields_and_inputs_that_are_functions_see_late_times(method, per_sample):
    def wave(t, like):
        return torch.sin(torch.as_tensor(t, dtype=F64) - STAMP).reshape(-1, 1).expand(len(like), 1)

    times = STAMP + torch.linspace(0, 3, 4, dtype=F64)
    times = times.expand(2, -1) if per_sample else times
    kwargs = {} if solvers.get(method).adaptive else {"substeps": 20}
    x = torch.zeros(2, 1, 1)
    by_field = integrate(lambda t, x, u: wave(t, x).unsqueeze(-2) - x, x, times, method=method, **kwargs)
    # x' = sin t - x from zero.
    exact = (math.sin(3) - math.cos(3) + math.exp(-3)) / 2
    assert by_field.states.dtype == torch.float32
    assert float((by_field.states[:, -1] - exact).abs().max()) < 2e-4


def test_an_early_clock_gives_times_in_the_type_of_the_state():
    seen = set()

    def field(t, x, u):
        seen.add(t.dtype)
        return -x

    u = Sampled(torch.zeros(1, 3, 1), torch.arange(3.0, dtype=F64), "linear")
    integrate(field, torch.ones(1, 1, 1), torch.tensor([0.0, 1.0, 2.0], dtype=F64), u)
    integrate(field, torch.ones(1, 1, 1), torch.tensor([[0.0, 1.0, 2.0]], dtype=F64), u, method="rk4")
    assert seen == {torch.float32}


def test_events_have_the_digits_of_late_times():
    event = solvers.Event(lambda t, x: t - (STAMP + 0.75))
    solved = integrate(lambda t, x, u: -x, torch.ones(1, 1, 1), [STAMP, STAMP + 1.0], events=event)
    assert solved.status == (Status.EVENT,)
    assert abs(float(solved.events[0].time) - (STAMP + 0.75)) < 1e-6
    assert float(solved.events[0].state) == pytest.approx(math.exp(-0.75), rel=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_a_layer_in_half_precision_keeps_its_place_between_samples(dtype):
    torch.manual_seed(0)
    # Beyond 256 bfloat16 knows even numbers alone.
    x, spans = torch.randn(2, 300, 1), torch.ones(2, 300)
    full = neuralosc.ContinuousRNN(neuralosc.LeakyIntegrator(1, 4), solver="rk4", dt=0.5, control="linear")
    half = neuralosc.ContinuousRNN(neuralosc.LeakyIntegrator(1, 4), solver="rk4", dt=0.5, control="linear")
    half.load_state_dict(full.state_dict())
    half = half.to(dtype)
    with solvers.backend("plain"), torch.no_grad():
        expected, found = full(x, timespans=spans)[0], half(x.to(dtype), timespans=spans.to(dtype))[0]
    assert float((found.float() - expected).abs().max()) < 12 * torch.finfo(dtype).eps


def test_a_step_at_a_late_time_keeps_its_place_between_samples():
    torch.manual_seed(0)
    rnn, x = (
        neuralosc.ContinuousRNN(neuralosc.LeakyIntegrator(1, 4), solver="rk4", control="linear"),
        torch.randn(2, 3, 1),
    )
    ends = []
    for start in (0.0, torch.tensor([STAMP, STAMP + 7], dtype=F64)):
        stream = None
        for i in range(3):
            output, stream = rnn.step(x[:, i], stream, time=start + i)
        ends.append(output)
    torch.testing.assert_close(ends[1], ends[0])
