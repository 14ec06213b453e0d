"""Fixed points: those of a pendulum and of Duffing's equation, and those that only a step has."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc import InputError
from neuralosc.analysis.fixed_points import fixed_points, stability
from neuralosc.field import VectorField
from tests.neuralosc.analysis.systems import F64, Duffing, Linear, Pendulum, draw


@pytest.fixture(autouse=True)
def plain():
    with solvers.backend("plain"):
        yield


class Logistic(VectorField):
    """x' = x (1 - x)."""

    def forward(self, t, state, u):
        return state * (1 - state)


class Square(VectorField):
    """x' = x^2 + a: a double root at 0, or no root."""

    def __init__(self, a=0.0):
        super().__init__(1, 1)
        self.a = a

    def forward(self, t, state, u):
        return state**2 + self.a


def at(found, of, place, tolerance=1e-12):
    """The one point of a kind at a place (q, 0)."""
    (point,) = [
        p for p in found.points if p.of == of and abs(float(p.state[0, 0]) - place) < tolerance and p.state.norm() < 20
    ]
    return point


def test_a_pendulum():
    start = torch.linspace(-4, 4, 40, dtype=F64).view(-1, 1, 1) * torch.tensor([1.0, 0.1], dtype=F64).view(1, 2, 1)
    found = fixed_points(Pendulum(), None, start, solver="stormer_verlet", dt=0.1)
    for of in ("flow", "map"):
        centre, saddle = at(found, of, 0.0), at(found, of, math.pi)
        assert centre.kind == "centre" and saddle.kind == "saddle" and saddle.unstable == 1
        assert max(centre.q, saddle.q) < 1e-28 and centre.starts > 1
        w = 1.0 if of == "flow" else 2 * math.asin(0.05) / 0.1
        torch.testing.assert_close(
            centre.rates.imag.sort().values, torch.tensor([-w, w], dtype=F64), rtol=1e-12, atol=0
        )
        r = 1.0 if of == "flow" else 2 * math.asinh(0.05) / 0.1
        torch.testing.assert_close(saddle.rates.real, torch.tensor([r, -r], dtype=F64), rtol=1e-12, atol=0)
    assert "are of flow and map (stormer_verlet) alike" in found.verdict.sentence
    assert "with the same stability" in found.verdict.sentence and found.of == "flow, map"
    assert found.verdict.numbers["pairs"] == len(found.points) / 2
    assert found.png()[:4] == b"\x89PNG" and found.table()


def test_duffing_and_its_damping():
    free = fixed_points(Duffing(), None, 2 * draw(40, 2, 1), solver="rk4", dt=0.1, unique=1e-6)
    kinds = {place: (at(free, "flow", place).kind, at(free, "map", place).kind) for place in (-1.0, 0.0, 1.0)}
    # rk4 damps an oscillation: abs(R(iz)) = 1 - z^6 / 144.
    assert kinds == {-1.0: ("centre", "stable"), 0.0: ("saddle", "saddle"), 1.0: ("centre", "stable")}
    assert "2 of them have another stability under the map (centre becomes stable)" in free.verdict.sentence
    rate = float(at(free, "map", 1.0).rates[0].real)
    assert math.isclose(rate, math.log(1 - (0.02**3) / 72 + 0.02**4 / 576) / 2 / 0.1, rel_tol=1e-5)
    assert len([p for p in free.points if p.of == "flow"]) == 3
    damped = fixed_points(Duffing(g=0.1), None, 2 * draw(40, 2, 1), of="flow")
    assert sorted(point.kind for point in damped.points) == ["saddle", "stable", "stable"]
    assert "The flow has 3 fixed points" in damped.verdict.sentence and damped.of == "flow"


def test_a_step_that_is_too_long_turns_stability_around():
    found = fixed_points(Pendulum(g=0.1), None, 0.1 * draw(10, 2, 1), solver="euler", dt=0.3)
    assert at(found, "flow", 0.0).kind == "stable" and at(found, "map", 0.0).kind == "unstable"
    assert "stable becomes unstable" in found.verdict.sentence


def test_points_of_the_step_alone():
    """The explicit midpoint rule at h = 3 also rests at 2 / h and 1 + 2 / h (Iserles, 1990)."""
    start = torch.linspace(-0.2, 1.9, 60, dtype=F64).view(-1, 1, 1)
    found = fixed_points(Logistic(1, 1), None, start, solver="midpoint", dt=3.0)
    places = sorted(float(point.state) for point in found.points if point.of == "map")
    assert places == pytest.approx([0.0, 2 / 3, 1.0, 5 / 3], abs=1e-12)
    assert sorted(float(point.state) for point in found.points if point.of == "flow") == pytest.approx(
        [0.0, 1.0], abs=1e-12
    )
    assert "2 are of both, 0 of the flow alone and 2 of the map alone" in found.verdict.sentence


def test_a_network_and_its_input():
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(2, 6, dt=0.2, gamma=1.5, epsilon=0.8)
    before = [p.clone() for p in rnn.parameters()]
    x = torch.tensor([0.5, -1.0])
    found = fixed_points(rnn, x, torch.randn(3, 4, 2, 6), samples=8)
    assert found.starts == 8 and found.reached == {"flow": 8, "map": 8}
    flow, step = found.points
    q = flow.state[0]
    field = rnn.double().field
    rest = torch.tanh(q @ field.W.T + field.V(x.double())) / 1.5
    torch.testing.assert_close(q, rest.detach(), rtol=1e-12, atol=1e-13)
    assert not flow.state[1].abs().max() > 1e-14 and flow.partner < 1e-13 and flow.kind == step.kind == "stable"
    assert all(torch.equal(a, b.float()) for a, b in zip(before, rnn.parameters(), strict=True))


def test_what_is_degenerate_slow_or_not_there():
    start = draw(6, 1, 1)
    assert [p.kind for p in fixed_points(Square(), None, start, of="flow").points] == ["degenerate"]
    slow = fixed_points(Square(1e-4), None, 0.1 * start, of="flow")
    assert not slow.points and [p.kind for p in slow.slow] == ["slow point"]
    assert not slow.verdict.claim and "no start of 6 led to a fixed point (1 slow points)" in slow.verdict.sentence
    none = fixed_points(Square(1.0), None, start, of="flow")
    assert not none.points and not none.slow and none.table().startswith("(no rows)")
    far = fixed_points(Linear(torch.eye(1, dtype=F64)), None, 100 + 0.01 * start, of="flow")
    assert not far.points and not far.verdict.claim
    gru = fixed_points(neuralosc.make("torch_gru", input_size=1, hidden_size=2), None, draw(2, 1, 2))
    assert not gru.verdict.claim and "has no solver" in gru.verdict.sentence


def test_the_kinds():
    cases = {
        "stable": [-1, -2], "unstable": [1, 2], "saddle": [-1, 1], "centre": [1j, -1j], "neutral": [-1, 1j, -1j],
        "degenerate": [-1, 0],
    }  # fmt: skip
    for kind, rates in cases.items():
        assert stability(torch.tensor(rates, dtype=torch.complex128), 1.0, 0.1)[0] == kind
    # Eigenvectors that are nearly one say nothing of a small real part.
    assert stability(torch.tensor([-1e-8 + 1j, -1e-8 - 1j]), 1e9, 0.1)[0] == "centre"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "steps"}, "of is 'steps', expected 'flow', 'map' or 'flow, map'"),
        ({"of": "map"}, "a field alone is no map: give solver and dt, or of='flow'"),
        ({"tol_q": 0.0}, "tol_q is 0.0, expected a positive number"),
        ({"x": torch.rand(4, 1)}, "x has 4 rows, expected one input"),
        ({"start": torch.rand(2, 1, 1)}, r"states are \(2, 1, 1\), expected \(batch, 2, 1\)"),
    ],
)
def test_bad_input(options, message):
    given = {"x": None, "start": draw(4, 2, 1), **options}
    with pytest.raises(InputError, match=message):
        fixed_points(Pendulum(), **given)
