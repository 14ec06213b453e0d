"""Implicit Runge-Kutta methods: tableaux, orders, linear fields, clocks, batches and use in networks."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch.autograd import gradcheck

import neuralosc
import solvers
from solvers.methods.implicit import ImplicitRungeKutta, implicit_runge_kutta
from solvers.numerics.newton import Newton
from solvers.numerics.tableau import ImplicitTableau
from tests.solvers.methods.implicit_steps import F64, GAMMA, KINDS, NAMES, randn, steps
from tests.solvers.ode_problems import DrivenOscillator, LinearOscillator, Swirl, TimedOscillator, held


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


# Linear fields


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_field_is_solved_in_closed_form(name, monkeypatch):
    x, u, h = randn(4, 2, 3), randn(4, 3), torch.tensor([[0.0], [0.1], [1.0], [30.0]], dtype=F64)
    solver = solvers.get(name)
    plain = solver.step(Resonator(declared=False), 0.3, h, x, held(u))
    if name not in ("gauss_legendre4", "radau_iia3"):
        monkeypatch.setattr(Newton, "root", None)
    counted = solvers.Counted(Resonator())
    end = solver.step(counted, 0.3, h, x, held(u))
    torch.testing.assert_close(end, plain, rtol=1e-10, atol=1e-10)
    assert torch.equal(end[0], x[0])
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
    end = solver.step(Swirl(), 0.2, 0.3, x[:count].reshape(*batch, 2, 3), held(u[:count].reshape(*batch, 3)))
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-13)


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
    for value, expected in zip(*grads, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_float64_to_rounding(name, kind):
    x, u, h = randn(4, 2, 3), randn(4, 3), torch.tensor([[0.1], [0.5], [2.0], [20.0]], dtype=F64)
    field, solver = neuralosc.Oscillator(2, 3, gamma=5.0, epsilon=0.3).double(), solvers.get(name, linear_solver=kind)
    with torch.no_grad():
        exact = solver.step(field, 0.0, h, x, held(u))
        end = solver.step(field.float(), 0.0, h.float(), x.float(), held(u.float()))
    assert end.dtype == torch.float32
    torch.testing.assert_close(end.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_slope_of_another_shape_is_refused(name, one_line):
    with pytest.raises(solvers.InputError) as error:
        solvers.get(name).step(lambda t, x, u: u - x, 0.0, 0.1, randn(3, 1, 4), held(randn(3, 4)))
    one_line(error, "(3, 1, 4)", "(3, 3, 4)", "unbind(-2)")


# Networks


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
