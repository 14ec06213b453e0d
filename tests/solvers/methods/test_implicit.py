"""Implicit Runge-Kutta methods: tableaux, orders, stability, structure, clocks and gradients."""

import cmath
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.autograd import gradcheck, gradgradcheck

import neuralosc
import solvers
from solvers.methods.implicit import ImplicitRungeKutta, implicit_runge_kutta
from solvers.numerics.newton import Newton
from solvers.numerics.tableau import ImplicitTableau
from tests.solvers.ode_problems import DrivenOscillator, LinearOscillator, Pendulum, Swirl, TimedOscillator, held

F64 = torch.float64
NAMES = [info.name for info in solvers.available() if info.family == "implicit"]
SYMPLECTIC, SYMMETRIC = ["implicit_midpoint", "gauss_legendre4"], ["implicit_midpoint", "trapezoid", "gauss_legendre4"]
L_STABLE = ["implicit_euler", "sdirk2", "radau_iia3"]
KINDS = ["newton", "simplified", "krylov"]
GAMMA = 1 - math.sqrt(0.5)
#: R(z) of each method: the factor of one step on x' = lambda x, z = h lambda.
STABILITY = {
    "implicit_euler": lambda z: 1 / (1 - z),
    "implicit_midpoint": lambda z: (1 + z / 2) / (1 - z / 2),
    "trapezoid": lambda z: (1 + z / 2) / (1 - z / 2),
    "sdirk2": lambda z: (1 + (1 - 2 * GAMMA) * z) / (1 - GAMMA * z) ** 2,
    "gauss_legendre4": lambda z: (1 + z / 2 + z * z / 12) / (1 - z / 2 + z * z / 12),
    "radau_iia3": lambda z: (1 + z / 3) / (1 - 2 * z / 3 + z * z / 6),
}


def randn(*shape, seed=6, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steps(solver, field, x, span, count, control=lambda t: None):
    h = span / count
    with torch.no_grad():
        for i in range(count):
            x = solver.step(field, i * h, h, x, control)
    return x


class VanDerPol:
    """dq = p, dp = mu (1 - q^2) p - q."""

    structure = frozenset()

    def __init__(self, mu):
        self.mu = mu

    def __call__(self, t, x, u):
        q, p = x.unbind(-2)
        return torch.stack((p, self.mu * (1 - q * q) * p - q), -2)


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


class Resonator(neuralosc.field.Semilinear, neuralosc.field.Partitioned):
    """dq = p, dp = -a q - g p + u cos(t) + 1, declared linear."""

    def __init__(self, declared=True):
        super().__init__(3, 3)
        self.a = torch.nn.Parameter(torch.tensor([1.0, 40.0, 3e4], dtype=F64))
        self.declared = declared

    @property
    def structure(self):
        return super().structure | ({"linear"} if self.declared else set())

    def operator(self, terms=None):
        return solvers.OscillatorOperator(self.a, 0.7)

    def nonlinear(self, t, state, u, terms=None):
        force = u * torch.cos(torch.as_tensor(t, dtype=F64)) + 1
        return torch.stack((torch.zeros_like(force), force), -2)

    def forward(self, t, state, u):
        return self.linear(state) + self.nonlinear(t, state, u)


# Tableaux


def test_what_the_methods_claim():
    flags = {n: (s.order, s.stages, s.symplectic, s.reversible) for n in NAMES for s in (solvers.get(n),)}
    assert flags == {
        "implicit_euler": (1, 1, False, False),
        "implicit_midpoint": (2, 1, True, True),
        "trapezoid": (2, 2, False, True),
        "sdirk2": (2, 2, False, False),
        "gauss_legendre4": (4, 2, True, True),
        "radau_iia3": (3, 2, False, False),
    }
    assert all(info.implicit and not info.needs for info in solvers.available() if info.name in NAMES)
    assert solvers.get("backward_euler") == solvers.get("implicit_euler")


def test_nodes_are_those_of_the_quadratures():
    root3 = math.sqrt(3)
    expected = {"gauss_legendre4": (1 / 2 - root3 / 6, 1 / 2 + root3 / 6), "radau_iia3": (1 / 3, 1.0)}
    for name, nodes in expected.items():
        assert solvers.get(name).tableau.c == pytest.approx(nodes, abs=1e-15)


def test_a_tableau_with_wrong_nodes_is_refused(one_line):
    """Gauss with one node in both places, as it has been published in code: first order where the time matters."""
    root3 = math.sqrt(3)
    rows = ((1 / 4, 1 / 4 - root3 / 6), (1 / 4, 1 / 4 - root3 / 6))
    with pytest.raises(solvers.InputError) as error:
        ImplicitTableau(rows, (1 / 2, 1 / 2), order=4)
    one_line(error, "order 4", "b.c = 1/2")


@pytest.mark.parametrize(
    ("rows", "weights", "order", "word"),
    [
        (((1.0,),), (1.0,), 2, "b.c = 1/2"),
        (((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4), 4, "b.c^3 = 1/4"),
        (((GAMMA, 0.0), (1 - GAMMA, GAMMA)), (1 - GAMMA, GAMMA), 3, "b.c^2 = 1/3"),
        (((float("nan"),),), (1.0,), 2, "b.c"),
        (((0.5, 0.0),), (1.0,), 1, "length"),
        (((), (0.5,)), (0.5, 0.5), 1, "length"),
    ],
)
def test_a_tableau_checks_itself(rows, weights, order, word, one_line):
    with pytest.raises(solvers.InputError) as error:
        ImplicitTableau(rows, weights, order)
    one_line(error, word)


def test_declared_symmetry_is_checked(one_line):
    with pytest.raises(solvers.InputError) as error:
        ImplicitTableau(((1.0,),), (1.0,), order=1, symmetric=True)
    one_line(error, "symmetric", "misses")


@pytest.mark.parametrize("name", NAMES)
def test_symmetry_is_declared_where_it_holds(name):
    tableau = solvers.get(name).tableau
    symmetric = ImplicitTableau(tableau.a, tableau.b, tableau.order)
    a, b = np.array(symmetric.a), np.array(symmetric.b)
    assert (np.abs(a + a[::-1, ::-1] - b).max() < 1e-14) == tableau.symmetric


def test_stages_are_grouped_by_what_they_see():
    groups = {name: [list(block.stages) for block in solvers.get(name).tableau.blocks] for name in NAMES}
    assert groups["sdirk2"] == groups["trapezoid"] == [[0], [1]]
    assert groups["gauss_legendre4"] == groups["radau_iia3"] == [[0, 1]]
    assert [block.explicit for block in solvers.get("trapezoid").tableau.blocks] == [True, False]


def lobatto():
    """Lobatto IIIA with three stages: an explicit one, then two coupled ones with a part that is known."""
    rows = ((0.0, 0.0, 0.0), (5 / 24, 1 / 3, -1 / 24), (1 / 6, 2 / 3, 1 / 6))
    return implicit_runge_kutta("lobatto_iiia4", ImplicitTableau(rows, (1 / 6, 2 / 3, 1 / 6), order=4, symmetric=True))


def test_a_tableau_of_ones_own_mixes_kinds_of_stages():
    solver = lobatto()
    assert [list(block.stages) for block in solver.tableau.blocks] == [[0], [1, 2]]
    assert order_of(solver, TimedOscillator) == pytest.approx(4, abs=0.15)


# Order


def exact(field, x, span, control):
    shape = x.shape

    def slope(t, y):
        return field(t, torch.from_numpy(y).reshape(shape), control(t)).numpy().ravel()

    end = solve_ivp(slope, (0, span), x.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
    return torch.from_numpy(end).reshape(shape)


def order_of(solver, kind):
    """The order between two step sizes, under a control that moves."""
    field, x, u = kind(), randn(2, 2, 3, seed=11), randn(2, 3, seed=12)

    def control(t):
        return u * (1 + math.sin(2 * t))

    reference = exact(field, x, 1.0, control)
    count = {1: 64, 2: 24, 3: 16, 4: 8}[solver.order]
    errors = [float((steps(solver, field, x, 1.0, n, control) - reference).abs().max()) for n in (count, 2 * count)]
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("kind", [LinearOscillator, DrivenOscillator, TimedOscillator, Swirl])
@pytest.mark.parametrize("name", NAMES)
def test_declared_order_is_measured(name, kind):
    solver = solvers.get(name)
    assert order_of(solver, kind) == pytest.approx(solver.order, abs=0.15)


# Stability


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
    for start, found in zip(starts, end, strict=True):
        np.testing.assert_allclose(found.flatten(), radau(4.0, start, 9.0), rtol=0, atol=2e-3)


def test_a_step_too_long_for_the_jump_is_an_error_with_sample_step_and_time(one_line):
    x = torch.tensor([[[2.0], [0.0]], [[1.0], [-20.0]]], dtype=F64)
    clock = solvers.Clock.uniform(600, 2.0)
    backprop, hold = solvers.get_gradient("backprop"), solvers.get_control("hold")
    samples = [torch.zeros(2, 1, dtype=F64)] * 600
    with torch.no_grad(), pytest.raises(solvers.NumericalError) as error:
        solvers.solve(VanDerPol(1000.0), solvers.get("radau_iia3"), backprop, hold, clock, samples, x)
    one_line(error, "radau_iia3", "did not converge", "residual", f"step {error.value.step}", "substeps")
    assert error.value.sample in (0, 1) and error.value.time == 2.0 * error.value.step


# Structure


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


# Linear fields


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_field_is_solved_in_closed_form(name, monkeypatch):
    x, u, h = randn(4, 2, 3), randn(4, 3), torch.tensor([[0.0], [0.1], [1.0], [30.0]], dtype=F64)
    solver = solvers.get(name)
    plain = solver.step(Resonator(declared=False), 0.3, h, x, held(u))
    if name not in ("gauss_legendre4", "radau_iia3"):
        monkeypatch.setattr(Newton, "root", None)
    counted = solvers.Counted(Resonator())
    found = solver.step(counted, 0.3, h, x, held(u))
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10)
    assert torch.equal(found[0], x[0])
    if name not in ("gauss_legendre4", "radau_iia3"):
        assert counted.evaluations == solver.stages


@pytest.mark.parametrize("name", ["implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2"])
def test_closed_form_gradients(name):
    field, solver = Resonator(), solvers.get(name)
    x, u = randn(2, 2, 3).requires_grad_(), randn(2, 3).requires_grad_()
    h = torch.tensor([[0.2], [0.0]], dtype=F64, requires_grad=True)
    assert gradcheck(lambda x, u, h, a: solver.step(field, 0.3, h, x, held(u)), (x, u, h, field.a), rtol=1e-4)


# Batches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_samples_with_clocks_of_their_own_equal_each_alone(name, kind):
    x, u = randn(5, 2, 3), randn(5, 3)
    t, h = randn(5, 1, seed=7), torch.tensor([[0.4], [0.0], [3.0], [-0.2], [1e-6]], dtype=F64)
    solver, field = solvers.get(name, linear_solver=kind), TimedOscillator()
    together = solver.step(field, t, h, x, lambda t: u * (1 + t))
    assert torch.equal(together[1], x[1])
    for i in range(5):
        alone = solver.step(field, float(t[i]), float(h[i]), x[i : i + 1], lambda t, i=i: u[i : i + 1] * (1 + t))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("h", [0.0, torch.zeros(2, 1, dtype=F64)])
def test_a_step_of_zero_changes_nothing(name, h):
    x = randn(2, 2, 3)
    assert torch.equal(solvers.get(name).step(Swirl(), 0.3, h, x, held(randn(2, 3))), x)


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (3, 0)])
def test_batches_of_any_shape(name, batch, kind):
    x, u = randn(6, 2, 3), randn(6, 3)
    solver, count = solvers.get(name, linear_solver=kind), math.prod(batch)
    expected = solver.step(Swirl(), 0.2, 0.3, x, held(u))[:count].reshape(*batch, 2, 3)
    found = solver.step(Swirl(), 0.2, 0.3, x[:count].reshape(*batch, 2, 3), held(u[:count].reshape(*batch, 3)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_linear_solvers_agree(name, kind):
    x, u, h = randn(4, 2, 3), randn(4, 3), torch.tensor([[0.1], [0.5], [2.0], [20.0]], dtype=F64)
    field = neuralosc.Oscillator(2, 3, gamma=5.0, epsilon=0.3).double()
    grads = []
    for solver in (solvers.get(name), solvers.get(name, linear_solver=kind)):
        start = x.clone().requires_grad_()
        end = solver.step(field, 0.0, h, start, held(u))
        grads.append((end.detach(), *torch.autograd.grad(end.square().sum(), (start, field.W, field.R))))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_float64_to_rounding(name, kind):
    x, u, h = randn(4, 2, 3), randn(4, 3), torch.tensor([[0.1], [0.5], [2.0], [20.0]], dtype=F64)
    field, solver = neuralosc.Oscillator(2, 3, gamma=5.0, epsilon=0.3).double(), solvers.get(name, linear_solver=kind)
    with torch.no_grad():
        exact = solver.step(field, 0.0, h, x, held(u))
        found = solver.step(field.float(), 0.0, h.float(), x.float(), held(u.float()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_slope_of_another_shape_is_refused(name, one_line):
    with pytest.raises(solvers.InputError) as error:
        solvers.get(name).step(lambda t, x, u: u - x, 0.0, 0.1, randn(3, 1, 4), held(randn(3, 4)))
    one_line(error, "(3, 1, 4)", "(3, 3, 4)", "unbind(-2)")


# Gradients


class Parametric:
    """A field that closes over its parameters, sees the time and couples everything."""

    structure = frozenset()

    def __init__(self, matrix, rate):
        self.matrix, self.rate = matrix, rate

    def __call__(self, t, x, u):
        q, p = x.unbind(-2)
        return torch.stack((p + 0.3 * torch.sin(q) * t, torch.tanh(q @ self.matrix + u * p) - self.rate * q**3), -2)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "simplified") for name in NAMES), ("trapezoid", "krylov"), ("radau_iia3", "krylov")]
)
def test_gradients_of_everything_once_and_twice(name, kind):
    """Parameters, input, start, step and time, each sample with a step of its own and one of zero."""
    solver = solvers.get(name, linear_solver=kind)
    values = (
        randn(2, 2, seed=1), torch.tensor([0.7, 1.2], dtype=F64), randn(2, 2, 2, seed=2), randn(2, 2, seed=3),
        torch.tensor([[0.5], [0.0]], dtype=F64), torch.tensor([[0.1], [0.3]], dtype=F64),
    )  # fmt: skip

    def step(matrix, rate, x, u, h, t):
        return solver.step(Parametric(matrix, rate), t, h, x, lambda at: u * (1 + at))

    inputs = tuple(value.requires_grad_() for value in values)
    # One random direction of inputs and outputs at a time, against finite differences: all of them would take minutes.
    assert gradcheck(step, inputs, fast_mode=True)
    assert gradgradcheck(step, inputs, fast_mode=True)


def test_gradients_entry_by_entry():
    inputs = tuple(
        value.requires_grad_()
        for value in (randn(1, 1), randn(1), randn(1, 2, 1), randn(1, 1), torch.full((1, 1), 0.5, dtype=F64))
    )

    def step(matrix, rate, x, u, h):
        return solvers.get("gauss_legendre4").step(Parametric(matrix, rate), 0.1, h, x, lambda at: u * (1 + at))

    assert gradcheck(step, inputs)
    assert gradgradcheck(step, inputs)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *(("implicit_midpoint", model) for model in ("cornn", "unicornn", "hamiltonian", "lipschitz", "antisymmetric")),
        *((name, "cornn") for name in ("sdirk2", "radau_iia3")),
    ],
)
def test_networks_train_and_give_the_same_numbers_however_they_are_called(name, model):
    rnn = neuralosc.make(model, input_size=2, hidden_size=4, solver=name, dt=0.3)
    x, spans = randn(3, 3, 2, dtype=torch.float32), randn(3, 3, seed=9, dtype=torch.float32).abs()
    output, _ = rnn(x, timespans=spans)
    output.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in rnn.parameters())
    with torch.no_grad():
        assert torch.equal(rnn(x, timespans=spans)[0], output)
    with torch.inference_mode():
        torch.testing.assert_close(rnn(x, timespans=spans)[0], output.detach(), rtol=0, atol=1e-6)
    krylov = rnn.with_solver(solvers.get(name, linear_solver="krylov"))
    torch.testing.assert_close(krylov(x, timespans=spans)[0], output, rtol=0, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(krylov(x, timespans=spans)[0], output.detach(), rtol=0, atol=1e-5)


def test_options_reach_configurations():
    rnn = neuralosc.make(
        "cornn", input_size=2, hidden_size=4, solver={"name": "sdirk2", "tol": 1e-4, "linear_solver": "krylov"}
    )
    assert rnn.solver == solvers.get("sdirk2", tol=1e-4, linear_solver="krylov")
    assert isinstance(rnn.solver, ImplicitRungeKutta)
    assert solvers.get(rnn.choices()["solver"]) == rnn.solver
