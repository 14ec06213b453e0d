"""Modified equations: closed forms of linear fields, elementary differentials by hand, and a field learnt by a step."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc import InputError
from neuralosc.analysis.modified_equation import modified_equation
from tests.neuralosc.analysis.systems import F64, Duffing, Harmonic, Linear, Lorenz, Pendulum, draw


@pytest.fixture(autouse=True)
def plain():
    with solvers.backend("plain"):
        yield


A = torch.tensor([[-0.3, 1.1], [-0.9, 0.2]], dtype=F64)


def powers(states, *factors):
    """factors[k] A^(k+1) x, k = 0, 1, ..."""
    terms, x = [], states
    for factor in factors:
        x = x @ A.mT
        terms.append(factor * x)
    return torch.stack(terms)


@pytest.mark.parametrize(
    ("solver", "factors"),
    [
        # log(1 + z) / h, log(1 / (1 - z)) / h, log((1 + z/2) / (1 - z/2)) / h, log(1 + z + z^2/2) / h.
        ("euler", (1, -1 / 2, 1 / 3, -1 / 4)),
        ("implicit_euler", (1, 1 / 2, 1 / 3, 1 / 4)),
        ("trapezoid", (1, 0, 1 / 12, 0)),
        ("implicit_midpoint", (1, 0, 1 / 12, 0)),
        ("midpoint", (1, 0, -1 / 6, 1 / 8)),
        ("rk4", (1, 0, 0, 0)),
    ],
)
def test_the_logarithm_of_a_stability_function(solver, factors):
    states = draw(5, 1, 2)
    found = modified_equation(Linear(A), states, 2, solver=solver, dt=0.1)
    factors = factors[:3]
    torch.testing.assert_close(found.terms, powers(states, *factors), rtol=1e-13, atol=2e-15)
    assert found.verdict.claim == (solver != "rk4")


def test_symplectic_euler_on_an_oscillation():
    """Of H~ = H - h q p / 2 + h^2 (q^2 + p^2) / 12."""
    states = draw(6, 2, 1)
    q, p = states.unbind(1)
    found = modified_equation(Harmonic(), states, solver="semi_implicit_euler", dt=0.2)
    torch.testing.assert_close(found.terms[0], torch.stack((p, -q), 1), rtol=0, atol=1e-15)
    torch.testing.assert_close(found.terms[1], torch.stack((-q, p), 1) / 2, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.terms[2], torch.stack((p, -q), 1) / 6, rtol=0, atol=1e-15)
    torch.testing.assert_close(found.field(1), found.terms[0] + 0.2 * found.terms[1])
    assert found.verdict.claim and "follows the field with its corrections to h^2" in found.verdict.sentence
    assert [round(row["power of h"], 1) for row in found.rows()] == [1.0, 2.0, 3.0]


def test_elementary_differentials_of_a_field_that_is_not_linear():
    """f_1 = -f'f / 2 and f_2 = f''(f, f) / 12 + f'f'f / 3 of Euler's method (HLW, example IX.1.2)."""
    states, field = draw(4, 1, 3), Lorenz()

    def f(x):
        return field(0.0, x, None)

    def first(x, v):
        return torch.func.jvp(f, (x,), (v,))[1]

    fx = f(states)
    second = torch.func.jvp(lambda x: first(x, fx), (states,), (fx,))[1]
    found = modified_equation(field, states, solver="euler", dt=1e-3)
    torch.testing.assert_close(found.terms[1], -first(states, fx) / 2, rtol=1e-13, atol=1e-13)
    expected = second / 12 + first(states, first(states, fx)) / 3
    torch.testing.assert_close(found.terms[2], expected, rtol=1e-12, atol=1e-11)
    # Implicit Euler is the adjoint: the terms of even place with the other sign.
    back = modified_equation(field, states, solver="implicit_euler", dt=1e-3)
    torch.testing.assert_close(back.terms[1], -found.terms[1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(back.terms[2], found.terms[2], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    "solver",
    [
        "semi_implicit_euler",
        "stormer_verlet",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("imex_euler", "etd2rk", "strang", "sdirk2")),
    ],
)
def test_a_network_with_a_time_scale_is_confirmed_by_its_own_steps(solver):
    torch.manual_seed(0)
    field = neuralosc.Oscillator(1, 3, 1.5, 0.4, coupled=False, time_scale=[0.5, 1.0, 2.0])
    rnn = neuralosc.ContinuousRNN(field, solver, dt=0.1)
    before = [p.clone() for p in rnn.parameters()]
    found = modified_equation(rnn, draw(4, 2, 3), x=torch.tensor([0.3]))
    assert found.verdict.claim and found.verdict.numbers["power"] > 2.7
    slope = solvers.slope(field.double(), field.drive(torch.full((4, 1, 1), 0.3, dtype=F64))[:, 0])(draw(4, 2, 3))
    torch.testing.assert_close(found.terms[0], slope.detach(), rtol=1e-6, atol=1e-7)
    finer = modified_equation(rnn, draw(4, 2, 3), x=torch.tensor([0.3]), substeps=4)
    torch.testing.assert_close(finer.terms, found.terms) and math.isclose(finer.h, 0.025)
    assert all(torch.equal(a, b.float()) for a, b in zip(before, rnn.parameters(), strict=True))


class Learnt(Linear):
    """What Euler's method at h = 0.1 makes the flow of A: (exp(h A) - 1) / h."""

    def __init__(self, off=0.0):
        super().__init__((torch.linalg.matrix_exp(0.1 * A) - torch.eye(2, dtype=F64)) / 0.1 + off)


def test_what_a_step_made_a_field_learn():
    states = draw(40, 1, 2)
    found = modified_equation(Learnt(), states, solver="euler", dt=0.1, truth=Linear(A))
    assert "is the inverse modified field of the truth" in found.verdict.sentence
    assert abs(found.factor - 1) < 0.01 and found.explained > 0.9999
    assert list(found.residuals) == sorted(found.residuals, reverse=True)
    itself = modified_equation(Linear(A), states, solver="euler", dt=0.1, truth=Linear(A))
    assert "is the truth itself" in itself.verdict.sentence
    wrong = torch.tensor([[0.3, 0.0], [0.0, 0.1]], dtype=F64)
    other = modified_equation(Linear(A + wrong), states, solver="euler", dt=0.1, truth=Linear(A))
    assert "does not come from the steps" in other.verdict.sentence
    partly = modified_equation(Learnt(0.01), states, solver="euler", dt=0.1, truth=Linear(A))
    assert not partly.verdict.claim and "the steps are a part of it" in partly.verdict.sentence
    few = modified_equation(Learnt(), states[:3], solver="euler", dt=0.1, truth=Linear(A))
    assert not few.verdict.claim and "3 states are too few" in few.verdict.sentence
    assert found.png()[:4] == b"\x89PNG" and "inverse" in found.table()


def test_what_cannot_be_said():
    states = draw(4, 2, 1)
    gru = neuralosc.make("torch_gru", input_size=1, hidden_size=2)
    cases = {
        "has order 4, so that its first correction is the term h^4": modified_equation(
            Pendulum(), states, solver="rk4", dt=0.1
        ),
        "chooses its steps": modified_equation(Pendulum(), states, solver="native_dopri5", dt=0.1),
        "carries more than the state": modified_equation(Pendulum(), states, solver="reversible", dt=0.1),
        "has no solver": modified_equation(gru, draw(2, 1, 2)),
        "too long for a series": modified_equation(Duffing(), 3 * states, solver="euler", dt=0.8),
    }
    for why, found in cases.items():
        assert not found.verdict.claim and why in found.verdict.sentence and found.to_dict()


@pytest.mark.slow
def test_the_first_correction_of_rk4():
    """log(1 + z + .. + z^4/24) = z - z^5/120 + ..."""
    states = draw(3, 1, 2)
    found = modified_equation(Linear(A), states, 4, solver="rk4", dt=0.2)
    torch.testing.assert_close(found.terms, powers(states, 1, 0, 0, 0, -1 / 120), rtol=1e-10, atol=1e-14)
    assert found.verdict.claim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order is 0, expected a whole number from 1 to 4"),
        ({"solver": None, "dt": None}, "a field alone takes no steps: give solver and dt"),
        ({"truth": Linear(A)}, r"states are \(2, 2, 1\), expected \(batch, 1, 2\)"),
        ({"truth": 3}, "model is a int, expected a network, a model, or a field"),
    ],
)
def test_bad_input(options, message):
    given = {"states": draw(2, 2, 1), "solver": "euler", "dt": 0.1, **options}
    with pytest.raises(InputError, match=message):
        modified_equation(Pendulum(), **given)
