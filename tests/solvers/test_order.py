"""Measured order of convergence against the declared one, for every registered solver."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import solvers
from tests.solvers.ode_problems import (
    DampedSwirl,
    DrivenOscillator,
    FirstOrder,
    LinearOscillator,
    Swirl,
    TimedOscillator,
    run,
)

PROBLEMS = [LinearOscillator, DrivenOscillator, TimedOscillator, Swirl, DampedSwirl, FirstOrder]
# Methods for noise are measured against paths, not against a solution.
#: Those for fields that relax have their own file, tests/solvers/methods/test_relaxing.py.
FIXED = [
    info
    for info in solvers.available()
    if not info.adaptive and info.family not in ("stochastic", "relaxation", "closed_form")
]
ADAPTIVE = [info for info in solvers.available() if info.adaptive]
SPANS = [0.5, 0.7, 0.4]


def problem(kind):
    components = 1 if kind is FirstOrder else 2
    generator = torch.Generator().manual_seed(11)
    state = torch.randn(2, components, 3, generator=generator, dtype=torch.float64)
    samples = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64).unbind(0)
    return kind(), state, samples


def exact(kind, control):
    """The state at the end by scipy at a tight tolerance, interval by interval."""
    field, state, samples = problem(kind)
    shape, start = state.shape, 0.0
    for i, span in enumerate(SPANS):
        first = samples[max(i - 1, 0)] if control == "linear" else samples[i]

        def slope(t, y, first=first, last=samples[i], start=start, span=span):
            u = first + (t - start) / span * (last - first)
            return field(t, torch.from_numpy(y.reshape(shape)), u).numpy().ravel()

        end = solve_ivp(slope, (start, start + span), state.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-13)
        state, start = torch.from_numpy(end.y[:, -1].reshape(shape)), start + span
    return state


def measured_order(solver, kind, control):
    field, state, samples = problem(kind)
    reference = exact(kind, control)
    order = solvers.get(solver).order
    steps = {1: 128, 2: 48, 3: 24, 4: 12, 5: 8, 6: 6, 8: 6}[order]
    errors = [run(field, solver, state, samples, SPANS, n, control)[-1] - reference for n in (steps, 2 * steps)]
    if float(errors[0].abs().max()) < 1e-11:
        return math.inf
    if order == 5:
        # The next power of the step size is not small against this one while rounding is: it is eliminated.
        errors.append(run(field, solver, state, samples, SPANS, 4 * steps, control)[-1] - reference)
        errors = [coarse - 64 * fine for coarse, fine in itertools.pairwise(errors)]
    return math.log2(float(errors[0].abs().max() / errors[1].abs().max()))


@pytest.mark.parametrize("control", ["hold", "linear"])
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("info", FIXED, ids=lambda info: info.name)
def test_declared_order_is_measured(info, kind, control):
    if not set(info.needs) <= solvers.protocol.structure(kind):
        with pytest.raises(solvers.PairingError, match=f"solver '{info.name}' needs"):
            field, state, samples = problem(kind)
            run(field, info.name, state, samples, SPANS)
        return
    measured = measured_order(info.name, kind, control)
    if info.family == "exponential" and kind is LinearOscillator:
        assert measured == math.inf
    else:
        assert measured == pytest.approx(info.order, abs=0.15)


@pytest.mark.parametrize("terms", ["damping", "stiffness", "both"])
@pytest.mark.parametrize("kind", [DrivenOscillator, TimedOscillator])
def test_imex_is_first_order_whatever_is_implicit(kind, terms):
    solver = {"name": "imex_euler", "implicit_terms": terms}
    assert measured_order(solver, kind, "linear") == pytest.approx(1, abs=0.15)


def test_imex_that_solves_for_everything_is_implicit_euler_on_a_linear_field():
    field, state, samples = problem(LinearOscillator)
    h = 0.3
    end = run(field, {"name": "imex_euler", "implicit_terms": "both"}, state, samples[:1], [h])[-1]
    matrix = torch.tensor([[0, 1], [-field.stiffness, -field.friction]], dtype=torch.float64)
    expected = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - h * matrix, state)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-14)


def test_imex_solves_for_the_damping_the_paper_solves_for():
    field, state, samples = problem(DrivenOscillator)
    q, p = state.unbind(-2)
    h, u = 0.3, samples[0]
    p = (p + h * (field.drive_of(0, q, u) - field.stiffness * q)) / (1 + h * field.friction)
    end = run(field, "imex_euler", state, samples[:1], [h])[-1]
    torch.testing.assert_close(end, torch.stack((q + h * p, p), -2), rtol=0, atol=1e-14)


@pytest.mark.parametrize("control", ["hold", "linear"])
@pytest.mark.parametrize("kind", [DrivenOscillator, TimedOscillator, FirstOrder])
@pytest.mark.parametrize("info", ADAPTIVE, ids=lambda info: info.name)
def test_adaptive_error_falls_with_the_tolerance(info, kind, control):
    field, state, samples = problem(kind)
    reference = exact(kind, control)
    errors = []
    # An order-2 pair needs thousands of steps for a tight tolerance.
    for tolerance in (1e-3, 1e-4, 1e-5) if info.order == 2 else (1e-4, 1e-6, 1e-8):
        solver = solvers.get(info.name, rtol=tolerance, atol=tolerance)
        end = run(field, solver, state, samples, SPANS, control=control)[-1]
        errors.append(float((end - reference).abs().max()))
        # Local errors of a few steps add up, so the global one may exceed the tolerance a little.
        assert errors[-1] < 20 * tolerance
    assert errors[2] < errors[0] / 10
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("info", ADAPTIVE, ids=lambda info: info.name)
def test_adaptive_evaluations_rise_as_the_tolerance_falls(info):
    field, state, samples = problem(DrivenOscillator)
    counts = []
    for tolerance in (1e-2, 1e-4, 1e-7 if info.order > 2 else 1e-5):
        clock = solvers.Clock.uniform(3, 0.5)
        solver = solvers.get(info.name, rtol=tolerance, atol=tolerance)
        backprop, hold = solvers.get_gradient("backprop"), solvers.get_control("hold")
        counts.append(solvers.solve(field, solver, backprop, hold, clock, samples, state).evaluations)
    assert counts[0] <= counts[1] < counts[2]


@pytest.mark.parametrize("info", FIXED, ids=lambda info: info.name)
def test_a_step_costs_the_declared_number_of_stages(info):
    if info.family == "implicit":
        pytest.skip("iterates, so that its cost depends on the problem")
    kind = DrivenOscillator
    field, state, samples = problem(kind)
    backprop, hold = solvers.get_gradient("backprop"), solvers.get_control("hold")
    clock = solvers.Clock.uniform(3, 0.1)
    trajectory = solvers.solve(field, solvers.get(info.name), backprop, hold, clock, samples, state, substeps=2)
    assert trajectory.evaluations == 3 * 2 * info.stages
