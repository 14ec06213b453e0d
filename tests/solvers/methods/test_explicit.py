"""Explicit Runge-Kutta methods: order, coefficients against other sources, clocks and gradients."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.integrate._ivp.rk import RK23, RK45

import solvers
from tests.solvers.one_step import (
    Coupled,
    Dense,
    check_gradients,
    check_zero_and_clocks,
    measured_order,
    named,
    smooth,
    start,
)

EXPLICIT = named("explicit")


def test_the_family_is_whole():
    expected = {"euler", "midpoint", "heun", "ralston", "bosh3_fixed", "ssprk3", "rk4", "rk4_38", "dopri5_fixed"}
    assert expected <= set(EXPLICIT)
    # The plain names are the adaptive pairs.
    assert solvers.get("dopri5").adaptive and solvers.get("bosh3").adaptive


@pytest.mark.parametrize("kind", [Coupled, Dense])
@pytest.mark.parametrize("name", EXPLICIT)
def test_order_with_an_input_that_changes(name, kind):
    solver = solvers.get(name)
    assert measured_order(solver, kind) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize(("name", "reference"), [("dopri5_fixed", RK45), ("bosh3_fixed", RK23)])
def test_coefficients_are_those_of_scipy(name, reference):
    tableau = solvers.get(name).tableau
    for i, row in enumerate(tableau.a):
        np.testing.assert_allclose(row, reference.A[i, :i], rtol=1e-15)
    np.testing.assert_allclose(tableau.b, reference.B, rtol=1e-15)
    np.testing.assert_allclose(tableau.c, reference.C, rtol=0, atol=1e-15)


def test_ssprk3_is_a_convex_combination_of_euler_steps():
    field, x, h = Dense(), start(Dense), 0.4
    first = x + h * field(0.0, x, smooth(0.0))
    second = 3 / 4 * x + 1 / 4 * (first + h * field(h, first, smooth(h)))
    expected = 1 / 3 * x + 2 / 3 * (second + h * field(h / 2, second, smooth(h / 2)))
    torch.testing.assert_close(solvers.get("ssprk3").step(field, 0.0, h, x, smooth), expected, rtol=0, atol=1e-15)


def test_ralston_by_hand():
    field, x, h, t = Dense(), start(Dense), 0.4, 0.1
    k1 = field(t, x, smooth(t))
    k2 = field(t + 2 / 3 * h, x + 2 / 3 * h * k1, smooth(t + 2 / 3 * h))
    end = solvers.get("ralston").step(field, t, h, x, smooth)
    torch.testing.assert_close(end, x + h / 4 * (k1 + 3 * k2), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", EXPLICIT)
def test_zero_steps_and_clocks(name):
    check_zero_and_clocks(solvers.get(name), Coupled)


@pytest.mark.parametrize("name", EXPLICIT)
def test_gradients(name):
    check_gradients(solvers.get(name).step, Dense, ("M", "W"))


def test_a_tableau_keeps_its_nodes_when_replaced():
    tableau = dataclasses.replace(solvers.get("rk4").tableau, order=2)
    assert tableau.c == (0.0, 0.5, 0.5, 1.0) and tableau.order == 2
