"""What the structured solvers claim beyond order: symplectic, reversible, bounded energy."""

import pytest
import torch

import neuralosc
import solvers
from tests.solvers.ode_problems import (
    Chain,
    DampedSwirl,
    DrivenOscillator,
    LinearOscillator,
    Pendulum,
    Swirl,
    held,
    run,
)

SYMPLECTIC = [info.name for info in solvers.available() if info.symplectic]
REVERSIBLE = [info.name for info in solvers.available() if info.reversible and info.family != "stochastic"]
U = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64)
STATE = torch.tensor([[[0.4, -1.1, 0.8], [0.9, 0.3, -0.5]]], dtype=torch.float64)


class ScaledNetwork:
    """Fields of the library as separable Hamiltonian systems."""

    def __init__(self, field):
        self.field = field.double()

    def __call__(self, solver, x, h=0.37):
        return solvers.get(solver).step(self.field, 0.0, h, x, held(U))


def defect(step):
    """J^T S J - S of a map of one sample, largest entry."""
    jacobian = torch.autograd.functional.jacobian(step, STATE).reshape(6, 6)
    eye, zero = torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    form = torch.cat((torch.cat((zero, eye), 1), torch.cat((-eye, zero), 1)))
    return float((jacobian.T @ form @ jacobian - form).abs().max())


@pytest.mark.parametrize("kind", [Pendulum, Chain])
@pytest.mark.parametrize("name", SYMPLECTIC)
def test_the_map_is_symplectic_on_a_separable_hamiltonian(name, kind):
    assert defect(lambda x: solvers.get(name).step(kind(), 0.0, 0.37, x, held(U))) < 1e-10


@pytest.mark.parametrize(
    "field",
    [
        lambda: neuralosc.HamiltonianOscillator(2, 3, alpha=1.3),
        lambda: neuralosc.DenseHamiltonian(2, 3),
        lambda: neuralosc.DenseHamiltonian(2, 3, energy_layers=2),
        lambda: neuralosc.Hamiltonian(
            3, 3, lambda state, u: (state[..., 0, :].cos() + state[..., 1, :] ** 4).sum(-1), separable=True
        ),
    ],
)
@pytest.mark.parametrize("name", SYMPLECTIC)
def test_the_map_is_symplectic_on_the_fields_of_the_library(name, field):
    network = ScaledNetwork(field())
    assert defect(lambda x: network(name, x)) < 1e-10


def test_the_measure_sees_what_is_not_symplectic():
    assert defect(lambda x: solvers.get("rk4").step(Pendulum(), 0.0, 0.37, x, held(U))) > 1e-5
    assert defect(lambda x: solvers.get("stormer_verlet").step(DrivenOscillator(), 0.0, 0.37, x, held(U))) > 1e-2


@pytest.mark.parametrize("kind", [Pendulum, Chain])
@pytest.mark.parametrize("name", REVERSIBLE)
def test_unstep_takes_back_a_step(name, kind):
    solver = solvers.get(name)
    x = solver.open(STATE)
    for i in range(50):
        x = solver.step(kind(), 0.1 * i, 0.1, x, held(U))
    assert float((solver.close(x) - STATE).abs().max()) > 0.1
    for i in reversed(range(50)):
        x = solver.unstep(kind(), 0.1 * i, 0.1, x, held(U))
    torch.testing.assert_close(solver.close(x), STATE, rtol=0, atol=1e-12)


def test_stormer_verlet_takes_back_linear_damping_and_a_moving_control():
    solver, x, field = solvers.get("stormer_verlet"), STATE, DrivenOscillator()

    def control(t):
        return U * (1 + t)

    for i in range(20):
        x = solver.step(field, 0.1 * i, 0.1, x, control)
    for i in reversed(range(20)):
        x = solver.unstep(field, 0.1 * i, 0.1, x, control)
    torch.testing.assert_close(x, STATE, rtol=0, atol=1e-12)


def test_stormer_verlet_is_symmetric():
    solver = solvers.get("stormer_verlet")
    forth = solver.step(Chain(), 0.0, 0.3, STATE, held(U))
    torch.testing.assert_close(solver.step(Chain(), 0.3, -0.3, forth, held(U)), STATE, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", [Swirl, DampedSwirl])
@pytest.mark.parametrize("name", REVERSIBLE)
def test_unstep_refuses_a_field_it_cannot_undo(name, kind, one_line):
    if solvers.get(name).undoes(kind()):
        pytest.skip("undoes a step of any field")
    with pytest.raises(solvers.PairingError) as error:
        solvers.get(name).unstep(kind(), 0.0, 0.1, STATE, held(U))
    one_line(error, name, kind.__name__, "separable")


@pytest.mark.parametrize("name", [i.name for i in solvers.available() if not i.reversible])
def test_other_solvers_have_no_inverse(name, one_line):
    with pytest.raises(solvers.PairingError) as error:
        solvers.get(name).unstep(Pendulum(), 0.0, 0.1, STATE, held(U))
    one_line(error, name, "no inverse step")


def pendulum_energies(solver, steps, h=0.1):
    """Energy of three pendulums before the first step and after every step, `(steps + 1, 3)`."""
    control, field = held(None), Pendulum()
    states = [torch.tensor([[[0.5, 1.5, 2.5], [0.0, 0.2, -0.1]]], dtype=torch.float64)]
    with torch.no_grad():
        for _ in range(steps):
            states.append(solver.step(field, 0.0, h, states[-1], control))
        q, p = torch.cat(states).unbind(-2)
    return p.square() / 2 - q.cos()


# Those whose step is cheap, two to four seconds each; the others take up to minutes.
QUICK = ("semi_implicit_euler", "symplectic_euler_dk", "stormer_verlet", "position_verlet")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SYMPLECTIC]
)
def test_the_energy_stays_bounded_over_a_hundred_thousand_steps(name):
    solver = solvers.get(name)
    if solver.implicit:
        # The tolerance of Newton's method must not be what drifts.
        solver = solver.with_options(tol=1e-13)
    energies = pendulum_energies(solver, 100_000)
    error = (energies - energies[0]).abs()
    # At a step of 0.1; the constants of methods of the same order differ by more than ten.
    assert float(error.max()) < {1: 0.15, 2: 0.01, 3: 1e-3, 4: 1e-3, 6: 1e-4, 8: 1e-4}[solver.order]
    # No drift: later errors are as large as those of the first tenth, and the energy comes back to its first mean.
    rounding = 1e-11
    assert float(error[10_000:].max()) < 1.05 * float(error[:10_000].max()) + rounding
    first, last = energies[:10_000].mean(0), energies[-10_000:].mean(0)
    assert float((last - first).abs().max()) < 0.02 * float(error.max()) + rounding


def test_the_energy_drifts_under_euler():
    energies = pendulum_energies(solvers.get("euler"), 300)
    assert float((energies[-1] - energies[0]).abs().max()) > 0.5


def test_damping_is_contracted_exactly():
    """On pure damping Störmer-Verlet is the exact solution, however large the step."""

    class Drag(LinearOscillator):
        stiffness, friction = 0.0, 30.0

    end = run(Drag(), "stormer_verlet", STATE, [U], [1.0])[-1]
    torch.testing.assert_close(end[:, 1], STATE[:, 1] * torch.exp(torch.tensor(-30.0)).double(), rtol=1e-6, atol=0)


def test_semi_implicit_euler_kicks_first_and_goes_by_two_names():
    q, p = STATE.unbind(-2)
    p = p + 0.2 * Pendulum().force(0, q, p, U)
    expected = torch.stack((q + 0.2 * p, p), -2)
    end = solvers.get("semi_implicit_euler").step(Pendulum(), 0.0, 0.2, STATE, held(U))
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-15)
    assert solvers.get("symplectic_euler") == solvers.get("semi_implicit_euler")


def test_the_time_scale_of_a_field_multiplies_the_step():
    field = neuralosc.HamiltonianOscillator(2, 3, alpha=1.3).double()
    scale = torch.sigmoid(field.c.detach())
    q, p = STATE.unbind(-2)
    p = p - 0.2 * scale * (torch.tanh(field.w * q + U) + 1.3 * q)
    expected = torch.stack((q + 0.2 * scale * p, p), -2)
    end = solvers.get("symplectic_euler").step(field, 0.0, 0.2, STATE, held(U))
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-14)
