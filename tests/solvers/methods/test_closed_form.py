"""Closed forms: solutions that a field knows, and maps without an equation, which no other solver can step."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.base.state import over_state
from solvers.errors import PairingError
from solvers.protocol import instantaneous, structure

F64 = torch.float64


class Rotation(neuralosc.ClosedForm):
    """An equation with its solution: x' = [[0, 1], [-1, 0]] x + (0, u)."""

    components = 2

    @property
    def structure(self):
        return super().structure | {"differential"}

    def forward(self, t, state, u):
        q, p = state.unbind(-2)
        return torch.stack((p, u - q), -2)

    def propagate(self, t, dt, state, u):
        q, p = state.unbind(-2)
        cos, sin = (getattr(torch, f)(torch.as_tensor(dt, dtype=q.dtype)) for f in ("cos", "sin"))
        return torch.stack((u + cos * (q - u) + sin * p, cos * p - sin * (q - u)), -2)


class Halfway:
    """A map without an equation, of no class of ours: half the way to the input however long it takes, and further."""

    structure = frozenset({"closed_form"})

    def propagate(self, t, dt, state, u):
        return state + (u.unsqueeze(-2) - state) * (0.5 + over_state(dt))


def held(field, spans, samples, state, **settings):
    """The states of a solve under "closed_form" and a control that holds."""
    control, gradient = solvers.get_control("hold"), solvers.get_gradient("backprop")
    clock = solvers.Clock.of_spans(spans)
    return solvers.solve(
        field, solvers.get("closed_form"), gradient, control, clock, samples.unbind(1), state, **settings
    )


def test_a_solution_goes_with_every_solver_and_may_be_cut():
    field, x = Rotation(3, 3), torch.randn(2, 4, 3, dtype=F64)
    spans = torch.tensor([[1.0, 0.0, 5.0, 0.5], [0.5, 9.0, 1.0, 0.0]], dtype=F64)
    rnn = ContinuousRNN(field, "closed_form", 0.7)
    solution = rnn.solve(x, timespans=spans)
    assert solution.evaluations == 4
    assert {"euler", "dopri5", "closed_form"} <= set(solvers.compatible(field)) and not instantaneous(field)
    tight = rnn.with_solver({"name": "dopri8", "rtol": 1e-11, "atol": 1e-12})(x, timespans=spans)[0]
    torch.testing.assert_close(solution.output, tight, rtol=1e-8, atol=1e-9)
    halved = rnn.with_solver("closed_form", substeps=2, max_dt=0.5)(x, timespans=spans)[0]
    torch.testing.assert_close(halved, solution.output, rtol=1e-12, atol=1e-13)
    # In no time a flow goes nowhere, and a sample has no effect.
    torch.testing.assert_close(solution.output[0, 1], solution.output[0, 0], rtol=1e-14, atol=1e-15)


def test_the_gradient_of_a_timespan_of_zero_is_the_right_hand_side():
    field, state = Rotation(3, 3), torch.randn(2, 2, 3, dtype=F64)
    x, spans = torch.randn(2, 1, 3, dtype=F64), torch.zeros(2, 1, dtype=F64, requires_grad=True)
    end = held(field, spans, x, state).end()
    slope = field(0.0, state, x[:, 0])
    for c in range(2):
        (found,) = torch.autograd.grad(end[:, c].sum(), spans, retain_graph=True)
        torch.testing.assert_close(found[:, 0], slope[:, c].sum(-1))


def test_its_order_where_the_input_changes():
    """The input of a step is that at its end: one order, as of a method with one evaluation."""
    field, state = Rotation(1, 1), torch.ones(1, 2, 1, dtype=F64)
    errors = []
    for steps in (64, 256):
        times = torch.linspace(0, 2, steps + 1, dtype=F64)
        end, exact = (
            solvers.integrate(
                field, state, times, lambda t: torch.sin(3 * torch.as_tensor(t, dtype=F64)).view(-1, 1), m
            )
            for m in ("closed_form", "rk4")
        )
        errors.append(float((end.states - exact.states)[0, -1].abs().max()))
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(solvers.get("closed_form").order, abs=0.15)


def test_a_map_is_taken_once_an_interval_and_not_in_no_time():
    field, state = Halfway(), torch.randn(2, 1, 3, dtype=F64)
    assert structure(field) == {"closed_form"} and instantaneous(field)
    spans = torch.tensor([[0.25, 0.0], [0.0, 0.1]], dtype=F64)
    samples = torch.randn(2, 2, 3, dtype=F64)
    states = held(field, spans, samples, state).states()
    expected = state.clone()
    for i in range(2):
        moved = field.propagate(0.0, spans[:, i : i + 1], expected, samples[:, i])
        expected = torch.where((spans[:, i] == 0).view(2, 1, 1), expected, moved)
        torch.testing.assert_close(states[:, i], expected, rtol=1e-14, atol=1e-15)
    assert torch.equal(states[0, 1], states[0, 0]) and torch.equal(states[1, 0], state[1])
    numbers = held(field, torch.tensor([0.0, 0.5], dtype=F64), samples, state).states()
    assert torch.equal(numbers[:, 0], state)


def test_what_a_map_cannot_do(one_line):
    field, samples, state = Halfway(), torch.ones(2, 1, 3, dtype=F64), torch.zeros(2, 1, 3, dtype=F64)
    spans, solver = torch.ones(1, dtype=F64), solvers.get("closed_form")
    assert solvers.compatible(field) == ["closed_form"]
    cases = [
        (
            lambda: solvers.check(field, solvers.get("rk4")),
            ["'rk4'", "Halfway", "differential", "use one of closed_form"],
        ),
        (lambda: solvers.check(field, solvers.get("stormer_verlet")), ["differential"]),
        (lambda: solvers.check(Rotation(1, 1), solvers.get("imex_euler")), ["quasilinear"]),
        (lambda: solvers.check(lambda t, x, u: -x, solver), ["closed_form field", "propagate(t, dt, state, u)"]),
        (
            lambda: solvers.check(field, solver, solvers.get_gradient("adjoint")),
            ["'adjoint'", "Halfway", "'checkpoint'"],
        ),
        (lambda: solvers.check(field, solver, solvers.get_gradient("reversible")), ["use gradient 'checkpoint'"]),
        (lambda: held(field, spans, samples, state, substeps=2), ["substeps is 2", "another map"]),
        (lambda: held(field, spans, samples, state, max_dt=0.5), ["max_dt is 0.5", "another map"]),
        (lambda: solvers.integrate(Plain(1, 1), state, [0.0, 1.0], method="closed_form"), ["integrate", "Plain"]),
    ]
    for act, words in cases:
        with pytest.raises(PairingError) as error:
            act()
        one_line(error, *words)


class Plain(neuralosc.ClosedForm):
    """A closed form in name alone."""


def test_what_is_not_written_is_said(one_line):
    rnn = ContinuousRNN(Plain(2, 2), "closed_form")
    with pytest.raises(solvers.InputError) as error:
        rnn(torch.zeros(1, 1, 2))
    one_line(error, "Plain defines no propagate")
    with pytest.raises(solvers.InputError) as error:
        rnn.field(0.0, torch.zeros(1, 1, 2), torch.zeros(1, 2))
    one_line(error, "Plain", "no right-hand side")
