"""Methods of torchdiffeq: what they ask of a field, and the states between their steps."""

import math

import pytest
import torch

import solvers
from solvers import Status, integrate

F64 = torch.float64
ADAPTIVE = [info.name for info in solvers.available() if info.adaptive]
SHARED = [name for name in ADAPTIVE if isinstance(solvers.get(name), solvers.Adaptive)]


def turn(t, x, u):
    """An oscillator of frequency 1."""
    return torch.stack((x[:, 1], -x[:, 0]), 1)


@pytest.mark.parametrize(("method", "rtol"), [*((name, 1e-5) for name in SHARED), ("dopri8", 1e-9), ("dopri8", 1e-11)])
def test_states_between_are_as_exact_as_those_at_the_end(method, rtol):
    times = torch.tensor([0.0, 1.3, 1.4, 3.7, 5.1, 6.0], dtype=F64)
    x = torch.tensor([[[1.0], [0.0]]], dtype=F64)
    states = integrate(turn, x, times, method=method, rtol=rtol, atol=rtol).states[0, :, :, 0]
    error = torch.hypot(states[:, 0] - times.cos(), states[:, 1] + times.sin())
    alone = [
        integrate(turn, x, [0.0, float(t)], method=method, rtol=rtol, atol=rtol).states[0, -1, :, 0] for t in times[1:]
    ]
    own = max(math.hypot(float(a[0] - t.cos()), float(a[1] + t.sin())) for a, t in zip(alone, times[1:], strict=True))
    assert float(error.max()) < 2 * own


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("span", [1e-4, 1.0])
@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun", "native_dopri5", "rk4"])
def test_a_field_is_asked_for_no_time_outside(method, span, backward, gradient):
    seen = []

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor(2.0, dtype=F64))

        def forward(self, t, x, u):
            seen.append(float(torch.as_tensor(t, dtype=F64).detach().reshape(-1)[0]))
            return 1e-3 * self.rate * x

    times = [0.1, 0.1 + span / 3, 0.1 + span]
    times = times[::-1] if backward else times
    solved = integrate(Slow(), torch.ones(1, 1, 1, dtype=F64), times, method=method, gradient=gradient)
    solved.states.sum().backward()
    assert min(seen) >= min(times) and max(seen) <= max(times)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_field_that_ends_with_the_times(method):
    def field(t, x, u):
        return 1e-3 * x * torch.sqrt(1 - torch.as_tensor(t, dtype=F64)).reshape(-1, 1, 1)

    end = integrate(field, torch.ones(1, 1, 1, dtype=F64), [0.0, 1.0], method=method).states[0, -1]
    assert float(end) == pytest.approx(math.exp(2e-3 / 3), abs=2e-5)


class Cliff(torch.nn.Module):
    """x' = w x^2 up to 2, where its derivative is NaN from 1 on."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))

    def forward(self, t, x, u):
        return torch.where(x > 2, torch.sqrt(1 - x), self.w * x * x)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_sample_that_fails_takes_no_other_with_it(method):
    x = torch.tensor([0.1, 0.9, 0.3], dtype=F64).reshape(3, 1, 1).requires_grad_()
    solved = integrate(Cliff(), x, [0.0, 1.0, 2.0], method=method, throw=False, rtol=1e-7)
    assert solved.status == (Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS)
    good = solved.states[[0, 2], -1].flatten()
    # x(2) = x0 / (1 - 2 x0).
    torch.testing.assert_close(good.detach(), torch.tensor([0.125, 0.75], dtype=F64), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(good.sum(), x)
    torch.testing.assert_close(gradient[[0, 2], 0, 0], torch.tensor([1.5625, 6.25], dtype=F64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["native_bosh3", "dopri5", "rk4"])
def test_the_last_time_is_reached_however_the_span_is_rounded(method):
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(200, 3, generator=generator, dtype=F64).sort().values * 3 - 1
    solved = integrate(lambda t, x, u: -x, torch.ones(200, 1, 1, dtype=F64), times, method=method)
    assert solved.success and bool(solved.states.isfinite().all())


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_the_gradient_of_a_sample_sees_no_other(method):
    # The worst sample decides on the steps, of which nothing is differentiated.
    x = torch.tensor([0.3, 2.0, 0.1], dtype=F64).reshape(3, 1, 1).requires_grad_()
    solved = integrate(lambda t, x, u: x * x, x, [0.0, 0.2, 0.9], method=method, throw=False)
    assert [status == Status.SUCCESS for status in solved.status] == [True, False, True]
    (gradient,) = torch.autograd.grad(solved.states[[0, 2], -1].sum(), x)
    assert float(gradient[1]) == 0.0


@pytest.mark.parametrize("method", ["implicit_euler", "gauss_legendre4", "radau_iia3", "native_kencarp4"])
@pytest.mark.parametrize("linear_solver", ["simplified", "newton"])
def test_a_derivative_that_is_nan_is_called_so(method, linear_solver, one_line):
    def field(t, x, u):
        zero = x - x
        return torch.where(zero == 0, -x, x / torch.sqrt(zero.square()))

    with pytest.raises(solvers.NonFiniteStateError) as error:
        integrate(
            field, torch.ones(2, 1, 2, dtype=F64), [0.0, 1.0], method={"name": method, "linear_solver": linear_solver}
        )
    one_line(error, "derivative of the field", method, "sample 0")


@pytest.mark.parametrize("method", ["rk4", "dopri5", "native_dopri5", "native_kencarp4", "implicit_midpoint"])
@pytest.mark.parametrize("shape", [(1, 1, 0), (0, 1, 2), (2, 0, 3)])
def test_an_empty_state_has_an_empty_solution(method, shape):
    solved = integrate(lambda t, x, u: -x, torch.zeros(shape), [0.0, 1.0, 2.0], method=method)
    assert solved.states.shape == (shape[0], 3, *shape[1:]) and solved.success
    assert len(solved.status) == len(solved.statistics.steps) == shape[0]
