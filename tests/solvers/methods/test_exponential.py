"""Exponential methods: exact linear parts, order, stiff limits, and matrix functions made once."""

import dataclasses

import pytest
import torch

import neuralosc
import solvers
from solvers import DenseOperator, DiagonalOperator, ExponentialTableau
from solvers.methods.explicit import RK4
from solvers.methods.exponential import ETD2RK, KROGSTAD
from solvers.numerics.linear import Memo
from tests.solvers.one_step import (
    F64,
    Dense,
    Newtonian,
    check_gradients,
    check_zero_and_clocks,
    matrix,
    measured_order,
    named,
    smooth,
    start,
    walk,
)

NAMES = named("exponential")
ETD = ["exponential_euler", "etd2rk", "etd4rk"]


class Free(Dense):
    """DH = h M, and whatever is added to it."""

    added = 0.0

    def nonlinear(self, t, state, u, terms=None):
        return torch.full_like(state, self.added)


class Diagonal(Free):
    """The same with a diagonal M."""

    def operator(self, terms=None):
        return DiagonalOperator(self.M.diagonal())


def free_oscillator(*arguments):
    field = Newtonian(*arguments)
    field.drive = lambda t, q, u: torch.zeros_like(q)
    return field


class TestTableaux:
    def test_the_family_is_whole(self):
        orders = {name: (solvers.get(name).order, solvers.get(name).stages) for name in NAMES}
        assert orders == {
            "exponential_euler": (1, 1), "etd2rk": (2, 2), "etd4rk": (4, 4), "lawson4": (4, 4), "strang": (2, 2),
        }  # fmt: skip
        assert solvers.get("etd1") == solvers.get("exponential_euler")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"b": ((1.0, 0.0), (-1.0, 0.9))}, ["phi_2", "stage 3", "2 numbers", "sum to 0", "constant N"]),
            ({"b": ((0.9, 0.0), (-1.0, 1.0))}, ["phi_1", "sum to 1"]),
            ({"a": (((0.5,),),)}, ["phi_1", "stage 2", "sum to 1"]),
            ({"b": ((1.0,), (-1.0, 1.0))}, ["phi_1", "2 numbers"]),
            ({"b": ((1.0, 0.0),)}, ["order 2", "b.c = 1/2"]),
            ({"order": 3}, ["order 3", "b.c^2 = 1/3"]),
        ],
    )
    def test_wrong_tableaux_are_refused(self, changes, words, one_line):
        with pytest.raises(solvers.InputError) as error:
            dataclasses.replace(ETD2RK, **changes)
        one_line(error, *words)

    def test_krogstad_is_rk4_without_a_linear_part(self):
        assert KROGSTAD.at_zero().a == RK4.a
        assert KROGSTAD.at_zero().b == pytest.approx(RK4.b)

    @pytest.mark.parametrize("name", ETD)
    def test_the_quadrature_conditions_hold_for_any_linear_part(self, name):
        """Sum_i b_i(z) c_i^(m-1) / (m-1)! = phi_m(z): N that is a polynomial of the time is integrated exactly.

        Hochbruck & Ostermann, Acta Numerica 19 (2010), table 2.2, conditions 1, 2 and 4.
        """
        tableau = solvers.get(name).tableau
        for m in range(1, min(tableau.order, 3) + 1):
            factorial = max(1, m - 1)
            sums = [sum(w * c ** (m - 1) for w, c in zip(row, tableau.c, strict=True)) / factorial for row in tableau.b]
            assert sums == pytest.approx([float(k + 1 == m) for k in range(len(sums))]), m

    def test_a_method_of_ones_own(self):
        """The exponential midpoint rule."""
        tableau = ExponentialTableau((((1 / 2,),),), ((1.0, 0.0), (-2.0, 2.0)), (0.0, 1 / 2), order=2)
        solver = solvers.ExponentialRungeKutta("mine", 2, 2, needs=("semilinear",), tableau=tableau)
        assert measured_order(solver, Dense) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("kind", [Newtonian, Dense])
@pytest.mark.parametrize("name", NAMES)
def test_order_with_an_input_that_changes(name, kind):
    solver = solvers.get(name)
    assert measured_order(solver, kind) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("h", [0.3, 25.0, torch.tensor([[0.3], [25.0]], dtype=F64)])
@pytest.mark.parametrize("name", NAMES)
def test_a_linear_field_is_solved_exactly(name, h):
    solver = solvers.get(name)
    for field in (Free(), Diagonal()):
        x = start(Dense)
        matrices = [torch.linalg.matrix_exp(t * field.operator().apply(torch.eye(3, dtype=F64))) for t in (0.3, 25.0)]
        if not isinstance(h, torch.Tensor):
            matrices = [matrices[(0.3, 25.0).index(h)]] * 2
        expected = torch.stack([row @ m for row, m in zip(x, matrices, strict=True)])
        torch.testing.assert_close(solver.step(field, 0.0, h, x, smooth), expected, rtol=1e-11, atol=1e-13)
    oscillator, x = free_oscillator(), start(Newtonian)
    for i in range(3):
        block = torch.tensor([[0.0, 1.0], [-float(oscillator.A[i]), -float(oscillator.G[i])]], dtype=F64)
        times = torch.as_tensor(h, dtype=F64).expand(2, 1)[:, :, None]
        expected = (torch.linalg.matrix_exp(times * block) @ x[:, :, i : i + 1])[..., 0]
        torch.testing.assert_close(solver.step(oscillator, 0.0, h, x, smooth)[..., i], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ETD)
def test_a_constant_is_integrated_exactly_and_its_fixed_point_stays(name):
    field, x, h = Free(), start(Dense), 1.7
    field.added = 0.8
    fixed = torch.linalg.solve(field.M.T, torch.full((3,), -0.8, dtype=F64)).expand(1, 1, 3)
    end = solvers.get(name).step(field, 0.0, h, fixed, smooth)
    torch.testing.assert_close(end, fixed, rtol=1e-13, atol=1e-13)
    expected = fixed + (x - fixed) @ torch.linalg.matrix_exp(h * field.M)
    torch.testing.assert_close(solvers.get(name).step(field, 0.0, h, x, smooth), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_stiffness_does_not_bound_the_step(name):
    """Decay rates of 1e6 and more, frequencies of 1e3, steps of 0.1."""
    stiff = torch.diag(torch.tensor([-1e6, -1e9, -1.0], dtype=F64))
    end = walk(solvers.get(name), Dense(linear=stiff), start(Dense), 2.0, 20)
    assert float(end.abs().max()) < 2.0
    fast = Newtonian(torch.tensor(1e6, dtype=F64), torch.tensor(0.1, dtype=F64))
    end = walk(solvers.get(name), fast, start(Newtonian), 2.0, 20)
    assert float(end[:, 0].abs().max()) < 3.0


def test_lawson_by_hand():
    """RK4 for exp(-t L) x, written out."""
    field, x, h, t = Dense(), start(Dense), 0.4, 0.1
    half = torch.linalg.matrix_exp(h / 2 * field.M)

    def f(c, x):
        return field.nonlinear(t + c * h, x, smooth(t + c * h))

    k1 = f(0.0, x)
    k2 = f(0.5, (x + h / 2 * k1) @ half)
    k3 = f(0.5, x @ half + h / 2 * k2)
    k4 = f(1.0, x @ half @ half + h * k3 @ half)
    expected = (x + h / 6 * k1) @ half @ half + h / 3 * (k2 + k3) @ half + h / 6 * k4
    torch.testing.assert_close(solvers.get("lawson4").step(field, t, h, x, smooth), expected, rtol=0, atol=1e-14)


def test_strang_by_hand():
    field, x, h, t = Dense(), start(Dense), 0.4, 0.1
    half = torch.linalg.matrix_exp(h / 2 * field.M)
    y = x @ half
    middle = y + h / 2 * field.nonlinear(t, y, smooth(t))
    y = y + h * field.nonlinear(t + h / 2, middle, smooth(t + h / 2))
    torch.testing.assert_close(solvers.get("strang").step(field, t, h, x, smooth), y @ half, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", [Newtonian, Dense])
@pytest.mark.parametrize("name", NAMES)
def test_zero_steps_and_clocks(name, kind):
    check_zero_and_clocks(solvers.get(name), kind)


@pytest.mark.parametrize("kind", [Newtonian, Dense])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, kind):
    check_gradients(solvers.get(name).step, kind, ("M", "W") if kind is Dense else ("A", "G", "W"))


@pytest.mark.parametrize("name", NAMES)
def test_a_time_scale_per_channel_multiplies_the_step(name):
    scale, x = torch.tensor([0.5, 1.0, 1.7], dtype=F64), start(Newtonian)
    u = torch.tensor([[0.3, -0.7, 1.1]], dtype=F64)
    fields = [Newtonian(coupling=torch.eye(3, dtype=F64), scale=s) for s in (scale, None)]
    for field in fields:
        field.drive = lambda t, q, u: torch.tanh(q + u)
    end = solvers.get(name).step(fields[0], 0.0, 0.4, x, lambda t: u)
    for i, s in enumerate(scale.tolist()):
        alone = solvers.get(name).step(fields[1], 0.0, 0.4 * s, x, lambda t: u)
        torch.testing.assert_close(end[..., i], alone[..., i], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_the_stages(name):
    counted = solvers.Counted(Dense())
    solvers.get(name).step(counted, 0.0, 0.1, start(Dense), smooth)
    assert counted.evaluations == solvers.get(name).stages


def network(name, **options):
    return neuralosc.ContinuousRNN(neuralosc.Lipschitz(2, 4), name, dt=0.3, substeps=2, **options).double()


class TestMatrixFunctions:
    x = torch.randn(3, 6, 2, dtype=F64, generator=torch.Generator().manual_seed(8))

    @pytest.fixture
    def matrices(self, monkeypatch):
        """The matrices of which functions were made."""
        calls, original = [], solvers.numerics.linear.matrix_phis
        monkeypatch.setattr(solvers.numerics.linear, "matrix_phis", lambda *a: calls.append(a[0]) or original(*a))
        return calls

    @pytest.mark.parametrize(
        ("name", "sizes"), [("exponential_euler", 1), ("etd4rk", 2), ("lawson4", 1), ("strang", 1)]
    )
    @pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
    def test_are_made_once_for_a_step_size(self, matrices, name, sizes, gradient):
        rnn = network(name, gradient=gradient)
        rnn(self.x)[0].sum().backward()
        assert len(matrices) == sizes
        rnn(self.x)
        assert len(matrices) == 2 * sizes
        with torch.no_grad():
            rnn(self.x, timespans=torch.tensor([1.0, 1.0, 3.0, 3.0, 1.0, 1.0], dtype=F64))
        assert len(matrices) == 4 * sizes

    @pytest.mark.parametrize("name", NAMES)
    def test_the_gradient_is_that_of_making_them_each_time(self, name, monkeypatch):
        rnn = network(name)
        parameters = list(rnn.parameters())
        loss = rnn(self.x)[0].square().sum()
        gradients = torch.autograd.grad(loss, parameters)
        monkeypatch.setattr(Memo, "__call__", lambda self, h, key, make: make())
        anew = torch.autograd.grad(rnn(self.x)[0].square().sum(), parameters)
        for a, b in zip(gradients, anew, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("name", NAMES)
    def test_checkpoint_and_a_step_per_sample_have_the_same_gradient(self, name):
        rnn = network(name)
        parameters = list(rnn.parameters())
        expected = torch.autograd.grad(rnn(self.x)[0].square().sum(), parameters)
        ones = torch.ones(3, 6, dtype=F64)
        for other, spans in ((rnn.with_solver(name, gradient="checkpoint"), None), (rnn, ones)):
            gradients = torch.autograd.grad(other(self.x, timespans=spans)[0].square().sum(), parameters)
            for a, b in zip(gradients, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)

    def test_what_was_made_without_gradients_is_not_used_with_them(self):
        field = neuralosc.Lipschitz(2, 4).double().bind()
        x, u = torch.ones(1, 1, 4, dtype=F64), torch.zeros(1, 4, dtype=F64)
        step = solvers.get("etd2rk").step
        with torch.inference_mode():
            step(field, 0.0, 0.1, x, lambda t: u)
        with torch.no_grad():
            assert not step(field, 0.0, 0.1, x, lambda t: u).requires_grad
        (gradient,) = torch.autograd.grad(step(field, 0.0, 0.1, x, lambda t: u).sum(), field.A)
        assert float(gradient.abs().max()) > 0

    def test_an_operator_made_without_gradients_is_not_used_with_them(self):
        class Own(neuralosc.Lipschitz):
            def operator(self, terms=None):
                return DenseOperator(torch.tanh(self.A))

        bound = Own(2, 4).double().bind()
        x, u = torch.ones(1, 1, 4, dtype=F64), torch.zeros(1, 4, dtype=F64)
        with torch.no_grad():
            solvers.get("etd2rk").step(bound, 0.0, 0.1, x, lambda t: u)
        (gradient,) = torch.autograd.grad(solvers.get("etd2rk").step(bound, 0.0, 0.1, x, lambda t: u).sum(), bound.A)
        assert float(gradient.abs().max()) > 0

    def test_bound_fields_keep_their_operators_and_free_ones_do_not(self):
        field = neuralosc.Lipschitz(2, 4)
        assert solvers.numerics.linear.linear_part(field) is not solvers.numerics.linear.linear_part(field)
        bound = field.bind()
        kept = solvers.numerics.linear.linear_part(bound)
        assert solvers.numerics.linear.linear_part(solvers.Counted(bound)) is kept
        assert solvers.numerics.linear.linear_part(bound.bind()) is not kept

    def test_the_memory_is_bounded(self):
        operator, x = DenseOperator(matrix(3, 1)), torch.ones(1, 1, 3, dtype=F64)
        for i in range(3 * Memo.size):
            operator.phis(0.1 * i, 1, x)
        assert len(operator.memo._kept) == Memo.size

    def test_functional_derivatives_pass_through(self):
        x = start(Dense)

        def loss(m):
            return solvers.get("etd4rk").step(Dense(linear=m), 0.0, 0.3, x, smooth).square().sum()

        expected = torch.autograd.grad(loss(m := matrix(3, 5).requires_grad_()), m)[0]
        torch.testing.assert_close(torch.func.grad(loss)(m.detach()), expected)

    @pytest.mark.parametrize("name", NAMES)
    def test_double_backward(self, name):
        m = (0.5 * matrix(3, 5)).requires_grad_()
        x = start(Dense)
        assert torch.autograd.gradgradcheck(
            lambda m: solvers.get(name).step(Dense(linear=m), 0.0, 0.3, x, smooth), (m,)
        )


def test_the_base_class_says_what_to_write(one_line):
    with pytest.raises(solvers.PairingError) as error:
        solvers.exponential.Exponential("mine", 1, 1).step(Dense(), 0.0, 0.1, start(Dense), smooth)
    one_line(error, "'mine'", "implement it")
