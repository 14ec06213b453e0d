"""What implicit Runge-Kutta methods keep: symplectic form, quadratic invariants, and steps taken back."""

import math

import pytest
import torch

import solvers
from tests.solvers.methods.implicit_steps import F64, KINDS, NAMES, randn, steps
from tests.solvers.ode_problems import Pendulum, Swirl, TimedOscillator, held

SYMPLECTIC, SYMMETRIC = ["implicit_midpoint", "gauss_legendre4"], ["implicit_midpoint", "trapezoid", "gauss_legendre4"]


class Oblique:
    """H = (q^2 + 1)(p^2 + 1) / 2 + sum_i q_i p_i+1 + u sin q: velocity and force see both."""

    structure = frozenset({"partitioned", "hamiltonian"})

    def __call__(self, t, x, u):
        q, p = x.unbind(-2)
        dq = (q * q + 1) * p + q.roll(1, -1)
        dp = -(q * (p * p + 1) + p.roll(-1, -1) + u * torch.cos(q))
        return torch.stack((dq, dp), -2)


class RigidBody:
    """dx = x cross x / I: keeps |x|^2 and sum x^2 / I."""

    structure = frozenset()
    inertia = torch.tensor([2.0, 1.0, 2 / 3], dtype=F64)

    def __call__(self, t, x, u):
        return torch.linalg.cross(x, x / self.inertia)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SYMPLECTIC)
def test_the_map_is_symplectic_on_a_hamiltonian_that_does_not_separate(name, kind):
    x, u = 0.7 * randn(1, 2, 3), randn(1, 3)
    solver = solvers.get(name, linear_solver=kind)
    jacobian = torch.autograd.functional.jacobian(lambda x: solver.step(Oblique(), 0.0, 0.2, x, held(u)), x)
    jacobian, eye, zero = jacobian.reshape(6, 6), torch.eye(3, dtype=F64), torch.zeros(3, 3, dtype=F64)
    form = torch.cat((torch.cat((zero, eye), 1), torch.cat((-eye, zero), 1)))
    assert float((jacobian.T @ form @ jacobian - form).abs().max()) < 1e-10


@pytest.mark.parametrize("name", SYMPLECTIC)
def test_quadratic_invariants_are_kept(name):
    x = torch.tensor([[[math.cos(1.1), 0.0, math.sin(1.1)]]], dtype=F64)
    end = steps(solvers.get(name), RigidBody(), x, 30.0, 100)
    assert float((end - x).abs().max()) > 0.1
    for weights in (1.0, 1 / RigidBody.inertia):
        assert float(((end**2 - x**2) * weights).sum().abs()) < 1e-11


def test_the_measures_see_what_keeps_nothing():
    x = torch.tensor([[[math.cos(1.1), 0.0, math.sin(1.1)]]], dtype=F64)
    end = steps(solvers.get("radau_iia3"), RigidBody(), x, 30.0, 100)
    assert float((end**2 - x**2).sum().abs()) > 1e-4


@pytest.mark.parametrize("field", [Pendulum, Oblique, Swirl, TimedOscillator])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_unstep_takes_back_a_step_of_any_field(name, field):
    x, u, h = 0.5 * randn(2, 2, 3), randn(2, 3), torch.tensor([[0.1], [0.03]], dtype=F64)
    solver, field = solvers.get(name), field()

    def control(t):
        return u * (1 + t)

    states = [x]
    for i in range(10):
        states.append(solver.step(field, i * h, h, states[-1], control))
    assert float((states[-1] - x).abs().max()) > 0.05
    back = states[-1]
    for i in reversed(range(10)):
        back = solver.unstep(field, i * h, h, back, control)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SYMMETRIC)))
def test_other_methods_have_no_inverse(name, one_line):
    with pytest.raises(solvers.PairingError) as error:
        solvers.get(name).unstep(Pendulum(), 0.0, 0.1, randn(1, 2, 3), held(None))
    one_line(error, name, "no inverse step")
