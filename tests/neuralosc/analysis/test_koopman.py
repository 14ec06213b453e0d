"""Koopman spectra: the eigenvalues of a linear system, residuals that say no, and copies that are rotated."""

import math

import pytest
import torch

import neuralosc
from neuralosc import InputError
from neuralosc.analysis.koopman import apart, koopman, similarity
from tests.neuralosc.analysis.systems import F64, draw

A = torch.tensor([[0.9, 0.3, 0.0], [-0.3, 0.9, 0.1], [0.0, 0.0, 0.7]], dtype=F64)


def run(matrix, batch=8, time=40, seed=0, offset=0.0):
    states = [draw(batch, len(matrix), seed=seed)]
    for _ in range(time):
        states.append(states[-1] @ matrix.mT + offset)
    return torch.stack(states, 1)


def sorted_by_parts(values):
    return sorted((round(v.real, 9), round(v.imag, 9)) for v in values.tolist())


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_a_linear_system(offset):
    found = koopman(run(A, offset=offset), 0.1)
    assert found.rank == 3 and float(found.residuals.max()) < 1e-10 and float(found.errors[2]) < 1e-11
    assert sorted_by_parts(found.values) == sorted_by_parts(torch.linalg.eigvals(A))
    assert math.isclose(float(found.rates[0].real), math.log(math.hypot(0.9, 0.3)) / 0.1, rel_tol=1e-9)
    assert found.verdict.claim and "rank 3" in found.verdict.sentence and "3 of its modes" in found.verdict.sentence
    assert found.png()[:4] == b"\x89PNG" and found.table() and found.of == "map"


def test_directions_that_hold_nothing_are_left_out():
    wide = run(A) @ draw(3, 20, seed=3)
    found = koopman(wide.unflatten(2, (2, 10)))
    assert found.rank == 3 and sorted_by_parts(found.values) == sorted_by_parts(torch.linalg.eigvals(A))
    assert koopman(wide, rank=2).rank == 2


def test_a_mode_that_is_none_has_a_large_residual():
    """The logistic map's chaos has no linear mode in its state."""
    states = [torch.rand(16, 1, generator=torch.Generator().manual_seed(0), dtype=F64)]
    for _ in range(60):
        states.append(4 * states[-1] * (1 - states[-1]))
    found = koopman(torch.stack(states, 1))
    assert float(found.residuals.min()) > 0.9
    assert not found.verdict.claim and "a forecast without change" in found.verdict.sentence


def test_a_rotated_copy_and_another_system():
    turn, _ = torch.linalg.qr(draw(3, 3, seed=5))
    one = run(A)
    copy = similarity(one, one @ turn)
    assert copy.distance < 1e-6 and copy.verdict.claim and "are not told apart" in copy.verdict.sentence
    assert similarity(one, one).distance < 1e-6
    other = similarity(one, run(torch.diag(torch.tensor([0.95, 0.6, -0.5], dtype=F64))))
    assert other.distance > 0.1 and "The two dynamics differ" in other.verdict.sentence
    assert other.png()[:4] == b"\x89PNG" and other.to_dict()["rank"] == 3


def test_the_distance_of_two_operators():
    """Of symmetric ones it is that of their eigenvalues in order (Hoffman and Wielandt)."""
    turn, _ = torch.linalg.qr(draw(4, 4, seed=1))
    one, other = (torch.tensor(v, dtype=F64) for v in ([0.1, 0.4, 0.6, 0.9], [0.2, 0.3, 0.7, 1.0]))
    expected = float((one - other).norm() / (one.square().sum() + other.square().sum()).sqrt())
    assert math.isclose(apart(torch.diag(one), turn @ torch.diag(other) @ turn.mT), expected, rel_tol=1e-6)
    swap = draw(5, 5, seed=2)
    reflected, _ = torch.linalg.qr(draw(5, 5, seed=3))
    for sign in (1.0, -1.0):
        reflected[0] *= sign
        assert apart(swap, reflected @ swap @ reflected.mT) < 1e-6


def test_solvers_of_a_network():
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(1, 2, dt=0.3, gamma=2.0, epsilon=0.3).double()
    x, state = torch.zeros(12, 30, 1, dtype=F64), 0.01 * draw(12, 2, 2)
    with torch.no_grad():
        states = [rnn.with_solver(name).solve(x, state).states for name in ("rk4", "semi_implicit_euler")]
    found = similarity(*states, rank=4)
    assert math.isfinite(found.distance) and found.distance > 10 * found.floor and "differ" in found.verdict.sentence


def test_what_cannot_be_said():
    still = koopman(torch.ones(4, 10, 2))
    assert not still.verdict.claim and "do not move" in still.verdict.sentence and still.table()
    few = koopman(draw(2, 6, 8))
    assert not few.verdict.claim and "too few" in few.verdict.sentence
    halves = similarity(run(A, batch=4), run(A, batch=4))
    assert not halves.verdict.claim and "no halves" in halves.verdict.sentence


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: koopman(torch.rand(3, 4)), r"states are \(3, 4\), expected \(batch, time, n\)"),
        (lambda: koopman(torch.full((2, 5, 1), math.nan)), "states have NaN"),
        (lambda: koopman(run(A), rank=4), "rank is 4, expected a whole number from 1 to 3"),
        (lambda: koopman(run(A), -1.0), "dt is -1.0, expected a positive number"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
