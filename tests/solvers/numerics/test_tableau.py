"""A tableau refuses coefficients that do not keep its promise, and the methods agree with those written by hand."""

import numpy as np
import pytest
import torch

import solvers
from solvers import ButcherTableau
from solvers.adaptive.shared import TSIT5_A, TSIT5_ERROR, _tsit5_dense
from tests.solvers.ode_problems import FirstOrder, held

HALF = 1 / 2


@pytest.mark.parametrize(
    ("a", "b", "order", "message"),
    [
        (((),), (0.9,), 1, "sum b = 1"),
        (((), (0.4,)), (0.0, 1.0), 2, "b.c = 1/2"),
        (((), (1.0,)), (HALF, HALF), 3, "b.c^2 = 1/3"),
        (((), (HALF,), (HALF, 0.0), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, "misses the condition"),
        (((HALF,),), (1.0,), 1, "lengths"),
        (((), (HALF,)), (1.0,), 1, "lengths"),
        ((), (1.0,), 1, "lengths"),
    ],
)
def test_a_wrong_tableau_is_refused(a, b, order, message, one_line):
    with pytest.raises(solvers.InputError) as error:
        ButcherTableau(a, b, order)
    one_line(error, message)


def test_every_condition_is_checked_alone():
    """Each residual is the first to fail for some tableau: none is vacuous."""
    rk4 = solvers.get("rk4").tableau
    assert set(rk4.residuals()) == {
        "sum b = 1", "b.c = 1/2", "b.c^2 = 1/3", "b.Ac = 1/6", "b.c^3 = 1/4", "b.(c Ac) = 1/8", "b.Ac^2 = 1/12",
        "b.AAc = 1/24",
    }  # fmt: skip
    assert max(map(abs, rk4.residuals().values())) < 1e-15


def test_nodes_are_the_row_sums():
    assert solvers.get("rk4").tableau.c == (0.0, 0.5, 0.5, 1.0)
    assert solvers.get("rk4_38").tableau.c == pytest.approx((0.0, 1 / 3, 2 / 3, 1.0))


def test_rk4_and_the_three_eighths_rule_by_hand():
    field, u, h = FirstOrder(), torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64), 0.4
    x = torch.tensor([[[0.5, -1.0, 0.2]]], dtype=torch.float64)

    def f(t, x):
        return field(t, x, u)

    k1 = f(1.0, x)
    k2 = f(1.0 + h / 2, x + h / 2 * k1)
    k3 = f(1.0 + h / 2, x + h / 2 * k2)
    k4 = f(1.0 + h, x + h * k3)
    classical = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(solvers.get("rk4").step(field, 1.0, h, x, held(u)), classical, rtol=0, atol=1e-15)
    k2 = f(1.0 + h / 3, x + h * k1 / 3)
    k3 = f(1.0 + 2 * h / 3, x + h * (k2 - k1 / 3))
    k4 = f(1.0 + h, x + h * (k1 - k2 + k3))
    kutta = x + h / 8 * (k1 + 3 * k2 + 3 * k3 + k4)
    torch.testing.assert_close(solvers.get("rk4_38").step(field, 1.0, h, x, held(u)), kutta, rtol=0, atol=1e-15)


def test_a_method_of_ones_own_is_a_tableau_and_a_name():
    third = ButcherTableau(((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), order=3)
    kutta3 = solvers.runge_kutta("kutta3", third)
    assert (kutta3.order, kutta3.stages, kutta3.family) == (3, 3, "explicit")
    x, u = torch.ones(1, 1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    reference = solvers.get("dopri5", rtol=1e-12, atol=1e-12).step(FirstOrder(), 0.0, 0.4, x, held(u))
    errors = []
    for n in (8, 16):
        y = x
        for i in range(n):
            y = kutta3.step(FirstOrder(), i * 0.4 / n, 0.4 / n, y, held(u))
        errors.append(float((y - reference).abs().max()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.15)


class TestTsit5:
    """The coefficients that torchdiffeq does not bring."""

    b = np.array([*TSIT5_A[-1], 0.0])
    a = np.zeros((7, 7))
    for i, row in enumerate(TSIT5_A):
        a[i + 1, : len(row)] = row
    c = a.sum(1)

    def test_nodes(self):
        np.testing.assert_allclose(self.c, [0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1], atol=1e-14)

    def test_conditions_of_order_five(self):
        a, b, c = self.a, self.b, self.c
        conditions = {
            "1": (b.sum(), 1), "c": (b @ c, 1 / 2), "c2": (b @ c**2, 1 / 3), "Ac": (b @ a @ c, 1 / 6),
            "c3": (b @ c**3, 1 / 4), "cAc": (b @ (c * (a @ c)), 1 / 8), "Ac2": (b @ a @ c**2, 1 / 12),
            "AAc": (b @ a @ a @ c, 1 / 24), "c4": (b @ c**4, 1 / 5), "c2Ac": (b @ (c**2 * (a @ c)), 1 / 10),
            "AcAc": (b @ (a @ c) ** 2, 1 / 20), "cAc2": (b @ (c * (a @ c**2)), 1 / 15), "Ac3": (b @ a @ c**3, 1 / 20),
            "cAAc": (b @ (c * (a @ a @ c)), 1 / 30), "A(cAc)": (b @ a @ (c * (a @ c)), 1 / 40),
            "AAc2": (b @ a @ a @ c**2, 1 / 60), "AAAc": (b @ a @ a @ a @ c, 1 / 120),
        }  # fmt: skip
        for name, (value, expected) in conditions.items():
            assert value == pytest.approx(expected, abs=1e-13), name

    def test_the_error_weights_vanish_on_order_four(self):
        error, a, c = np.array(TSIT5_ERROR), self.a, self.c
        for value in (error.sum(), error @ c, error @ c**2, error @ a @ c, error @ c**3, error @ a @ a @ c):
            assert abs(value) < 1e-13
        assert abs(error @ c**4) > 1e-4

    def test_the_dense_weights_join_start_and_end(self):
        np.testing.assert_allclose(_tsit5_dense(0.0), 0, atol=1e-15)
        np.testing.assert_allclose(_tsit5_dense(1.0), self.b, atol=1e-13)

    @pytest.mark.parametrize("theta", [0.25, 0.5, 0.8])
    def test_the_dense_weights_are_of_order_four_inside(self, theta):
        b, a, c = np.array(_tsit5_dense(theta)), self.a, self.c
        assert b.sum() == pytest.approx(theta, abs=1e-13)
        assert b @ c == pytest.approx(theta**2 / 2, abs=1e-13)
        assert b @ c**2 == pytest.approx(theta**3 / 3, abs=1e-13)
        assert b @ a @ c == pytest.approx(theta**3 / 6, abs=1e-13)
        assert b @ c**3 == pytest.approx(theta**4 / 4, abs=1e-13)
