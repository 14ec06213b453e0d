"""Implicit Runge-Kutta methods on stiff problems: stability functions, damping, slow solutions."""

import cmath
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import solvers
from tests.solvers.methods.implicit_steps import F64, GAMMA, KINDS, NAMES, randn, steps

L_STABLE = ["implicit_euler", "sdirk2", "radau_iia3"]
#: R(z) of each method: the factor of one step on x' = lambda x, z = h lambda.
STABILITY = {
    "implicit_euler": lambda z: 1 / (1 - z),
    "implicit_midpoint": lambda z: (1 + z / 2) / (1 - z / 2),
    "trapezoid": lambda z: (1 + z / 2) / (1 - z / 2),
    "sdirk2": lambda z: (1 + (1 - 2 * GAMMA) * z) / (1 - GAMMA * z) ** 2,
    "gauss_legendre4": lambda z: (1 + z / 2 + z * z / 12) / (1 - z / 2 + z * z / 12),
    "radau_iia3": lambda z: (1 + z / 3) / (1 - 2 * z / 3 + z * z / 6),
}


class VanDerPol:
    """dq = p, dp = mu (1 - q^2) p - q."""

    structure = frozenset()

    def __init__(self, mu):
        self.mu = mu

    def __call__(self, t, x, u):
        q, p = x.unbind(-2)
        return torch.stack((p, self.mu * (1 - q * q) * p - q), -2)


class Spiral:
    """x' = lambda x with one complex lambda for each sample and channel, real and imaginary part as components."""

    structure = frozenset()

    def __init__(self, rates):
        self.rates = rates

    def __call__(self, t, x, u):
        z = torch.complex(*x.unbind(-2)) * self.rates
        return torch.stack((z.real, z.imag), -2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_the_stability_function(name, kind):
    rates = [-1e4, -30.0, -1.0, 0.5, 2j, 1e3j, -3 + 4j, -1e4 + 1e4j]
    field = Spiral(torch.tensor(rates, dtype=torch.complex128).unsqueeze(-1))
    x = torch.tensor([1.0, 0.5], dtype=F64).reshape(1, 2, 1).expand(8, 2, 1)
    end = steps(solvers.get(name, linear_solver=kind), field, x, 1.0, 1)
    for i, rate in enumerate(rates):
        expected = STABILITY[name](rate) * (1 + 0.5j)
        assert cmath.isclose(complex(end[i, 0], end[i, 1]), expected, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_stiff_decay_stays_bounded_and_is_damped_where_the_method_damps(name):
    x = randn(3, 2, 4)
    end = steps(solvers.get(name), lambda t, x, u: -1e4 * x, x, 40.0, 40)
    assert bool((end.abs() <= x.abs() * (1 + 1e-12)).all())
    assert (float(end.abs().max()) < 1e-12) == (name in L_STABLE)


@pytest.mark.parametrize("name", NAMES)
def test_a_stiff_field_follows_its_slow_solution(name):
    """Prothero & Robinson: x' = -1e4 (x - cos t) - sin t has the solution cos t."""

    def field(t, x, u):
        return -1e4 * (x - math.cos(t)) - math.sin(t)

    end = steps(solvers.get(name), field, torch.ones(1, 1, 2, dtype=F64), 2.0, 40)
    torch.testing.assert_close(end, torch.full_like(end, math.cos(2.0)), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "tolerance"), [("implicit_euler", 2e-3), ("sdirk2", 1e-5), ("radau_iia3", 1e-6)])
def test_stiff_van_der_pol_on_its_slow_branch(name, tolerance, kind):
    """mu = 1000 with steps of 5, where an explicit method would need 1e-3; SciPy's Radau is the reference."""
    start = torch.tensor([[2.0], [-2 / 3000]], dtype=F64)
    solver = solvers.get(name, linear_solver=kind)
    end = steps(solver, VanDerPol(1000.0), start.unsqueeze(0), 500.0, 100)
    np.testing.assert_allclose(end.flatten(), radau(1000.0, start, 500.0), rtol=tolerance)


def radau(mu, start, span):
    """SciPy's answer for the van der Pol oscillator."""

    def slope(t, y):
        return [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]

    return solve_ivp(slope, (0, span), start.flatten().numpy(), "Radau", rtol=1e-10, atol=1e-12).y[:, -1]


def test_van_der_pol_through_its_jumps():
    """mu = 4 around a cycle, each sample from its own start."""
    starts = torch.tensor([[2.0, 0.0], [0.1, -1.0]], dtype=F64).unsqueeze(-1)
    end = steps(solvers.get("radau_iia3"), VanDerPol(4.0), starts, 9.0, 450)
    for start, state in zip(starts, end, strict=True):
        np.testing.assert_allclose(state.flatten(), radau(4.0, start, 9.0), rtol=0, atol=2e-3)


def test_a_step_too_long_for_the_jump_is_an_error_with_sample_step_and_time(one_line):
    x = torch.tensor([[[2.0], [0.0]], [[1.0], [-20.0]]], dtype=F64)
    clock = solvers.Clock.uniform(600, 2.0)
    backprop, hold = solvers.get_gradient("backprop"), solvers.get_control("hold")
    samples = [torch.zeros(2, 1, dtype=F64)] * 600
    with torch.no_grad(), pytest.raises(solvers.NumericalError) as error:
        solvers.solve(VanDerPol(1000.0), solvers.get("radau_iia3"), backprop, hold, clock, samples, x)
    one_line(error, "radau_iia3", "did not converge", "residual", f"step {error.value.step}", "substeps")
    assert error.value.sample in (0, 1) and error.value.time == 2.0 * error.value.step
