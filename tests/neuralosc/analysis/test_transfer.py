"""Trained under one solver, solved by another: fields whose answers are known under every step."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.learned import FEWEST, SHARE
from neuralosc.analysis.samples import Paired, Samples, Score
from neuralosc.analysis.transfer import transfer
from solvers.errors import InputError
from tests.neuralosc.analysis.linear import F64, Linear, model, rotation, sign_of

OTHERS = ("euler", "rk4")


@pytest.fixture(autouse=True)
def _plain():
    """Each network here runs once or twice, which compiling does not pay for."""
    with solvers.backend("plain"):
        yield


def samples(count=200, seed=0):
    return torch.randn(count, 8, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_a_network_whose_step_is_the_flow_has_learnt_the_equation():
    net, x = model(Linear(rotation()), "rk4", 2, dt=0.1), samples()
    found = transfer(net, (x, sign_of(net, x)), OTHERS, (1, 2))
    assert found.verdict.answer == "equation" and found.mean("rk4", "exact") == pytest.approx(
        (1.0, math.nan), nan_ok=True
    )
    own, exact = found.cells[0], found.cells[-1]
    assert own.agreement == 1 and own.deviation < 1e-5 and exact.column == "exact" and exact.deviation == 0
    assert found.verdict.numbers["share lost"] == 0


def test_answers_that_only_the_coarse_step_gives_are_a_step():
    net, x = model(Linear(rotation(2.0)), "euler", 2, dt=0.9), samples()
    found = transfer(net, (x, sign_of(net, x)), OTHERS, (1, 2, 4, 8))
    assert found.verdict.answer == "step" and found.verdict.numbers["share low"] > SHARE
    assert found.cells[0].score == 1.0
    exact = found.cells[-1]
    assert exact.score < 0.9 and exact.paired.high < 0 and exact.paired.p < 1e-4
    # Euler's states approach the exact ones with order one at last; one step of rk4 is nearer than eight of Euler.
    deviation = {cell.column: cell.deviation for cell in found.cells}
    assert deviation["euler x8"] < deviation["euler x4"] < deviation["euler x1"]
    assert deviation["rk4 x4"] < deviation["euler x8"]


def test_the_states_of_euler_on_an_oscillator_are_known():
    """After n steps of h the state is (1 + i h w)^n times the exact exp(i h w n) of the start."""
    h, n = 0.1, 8
    net = model(Linear(rotation()), "euler", 1, dt=h)
    x = torch.zeros(FEWEST, n, 2, dtype=F64)
    x[:, 0] = samples(FEWEST)[:, 0]
    found = transfer(net, (x, torch.zeros(FEWEST, 1, dtype=F64)), (), (1,))
    z, squares, size = 1 + 1j * h, 0.0, 0.0
    # The first sample acts for one step as a held current u: x = h u, and exactly (exp(i h) - 1) / i u.
    for k in range(n):
        exact = (complex(math.cos(h), math.sin(h)) ** k) * (complex(math.cos(h), math.sin(h)) - 1) / 1j
        squares += abs(z**k * h - exact) ** 2
        size += abs(exact) ** 2
    assert found.cells[0].deviation == pytest.approx(math.sqrt(squares / size), rel=1e-5)


def test_regression():
    net, x = model(Linear(rotation()), "rk4", 1, dt=0.1), samples()
    with torch.no_grad():
        y = net(x) + 0.01 * torch.randn(len(x), 1, generator=torch.Generator().manual_seed(3), dtype=F64)
    found = transfer(net, (x, y), OTHERS, (1,))
    assert found.score == "mse" and found.verdict.answer == "equation"


def test_an_untrained_network_gives_no_claim():
    net, x = model(Linear(rotation()), "rk4", 2, dt=0.1), samples()
    y = torch.randint(2, (len(x),), generator=torch.Generator().manual_seed(5))
    found = transfer(net, (x, y), OTHERS, (1,))
    assert not found.verdict.claim and "no better than the best constant answer" in str(found.verdict)


def test_few_sequences_are_said_first():
    net, x = model(Linear(rotation()), "rk4", 2, dt=0.1), samples(40)
    found = transfer(net, (x, sign_of(net, x)), (), (1,))
    assert not found.verdict.claim and "40 sequences are too few: they tell accuracy to +-" in str(found.verdict)


def test_a_stiff_field_has_no_reference_to_rely_on():
    net, x = model(Linear([[-1e6, 0.0], [0.0, -1.0]]), "implicit_midpoint", 2, dt=0.1), samples()
    found = transfer(net, (x, sign_of(net, x)), ("euler",), (1,))
    assert not found.verdict.claim and ("not confirmed" in str(found.verdict) or "not be solved" in str(found.verdict))
    assert all(cell.deviation is None for cell in found.cells)


def test_a_baseline_has_no_step():
    rnn = neuralosc.TorchGRU(2, 4)
    found = transfer(neuralosc.SequenceModel(rnn, neuralosc.Readout(4, 2)), (samples(), torch.zeros(200).long()))
    assert not found.verdict.claim and "a TorchGRU has no solver" in str(found.verdict)
    assert "a TorchGRU has no solver" in found.table()


def test_a_solver_that_does_not_fit_is_a_cell_that_says_why():
    net, x = model(Linear(rotation()), "rk4", 2, dt=0.1), samples()
    found = transfer(net, (x, sign_of(net, x)), ("stormer_verlet", "euler"), (1,))
    wrong = [cell for cell in found.cells if cell.solver == "stormer_verlet"]
    assert len(wrong) == 1 and "partitioned" in wrong[0].why and wrong[0].score is None
    assert found.verdict.claim


def test_rows_of_several_trainings_and_their_spread():
    x = samples()
    good, coarse = model(Linear(rotation()), "rk4", 2, dt=0.1), model(Linear(rotation(2.0)), "euler", 2, dt=0.9)
    y = sign_of(good, x)
    found = transfer({"good": [good, good], "coarse": coarse}, (x, y), (), (1,))
    assert set(found.verdicts) == {"good", "coarse"} and found.verdicts["good"].answer == "equation"
    assert found.mean("good", "exact") == (1.0, 0.0)
    assert "no claim of coarse" in str(found.verdict) or found.verdicts["coarse"].claim
    assert found.to_dict()["cells"][0]["row"] == "good" and len(found.png()) > 10_000


def test_targets_are_needed():
    net = model(Linear(rotation()), "rk4", 2, dt=0.1)
    with pytest.raises(InputError, match="data has no targets"):
        transfer(net, samples())
    with pytest.raises(InputError, match=r"y has 3 rows, and x 200"):
        transfer(net, (samples(), torch.zeros(3).long()))
    with pytest.raises(InputError, match="models is dict, expected a SequenceModel"):
        transfer({}, (samples(), torch.zeros(200).long()))


def test_paired_differences():
    """McNemar's exact test: 1 against 9 of 10 discordant pairs, two-sided, is 22 / 1024."""
    first, second = torch.zeros(50), torch.zeros(50)
    first[:9], second[9] = 1, 1
    found = Paired.of(first, second)
    assert found.p == pytest.approx(22 / 1024) and found.difference == pytest.approx(-8 / 50) and not found.apart
    same = Paired.of(first, first)
    assert (same.difference, same.p) == (0.0, 1.0) and same.high == pytest.approx(3 / 50)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=generator)
    found = Paired.of(x, x + 0.1 + torch.randn(400, generator=generator))
    assert found.low < 0.1 < found.high and found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.1)


def test_scores_of_sequences_with_answers_at_every_sample():
    answers = torch.tensor([[[1.0], [2.0], [9.0]], [[1.0], [1.0], [1.0]]])
    y = torch.tensor([[[1.0], [1.0], [0.0]], [[0.0], [float("nan")], [2.0]]])
    seen = Samples(torch.zeros(2, 3, 1), y, None, torch.tensor([2, 3]))
    score = Score.of(None, y)
    assert score.each(answers, y, seen.valid).tolist() == [0.5, 1.0]
    # The best constant answer to 1, 1, 0 and 2 is 1.
    assert score.guess(answers, y, seen.valid).tolist() == [0.0, 1.0]
    classes = torch.tensor([[0, 1, 1], [0, 0, 1]])
    score = Score.of(None, classes)
    assert score.guess(torch.zeros(2, 3, 2), classes, seen.valid).tolist() == [0.5, pytest.approx(2 / 3)]


def test_parts_keep_what_all_share():
    seen = Samples(torch.zeros(5, 3, 1), torch.arange(5), torch.ones(3), torch.tensor([3, 2, 3, 1, 3]))
    parts = list(seen.parts(2))
    assert [len(part) for part in parts] == [2, 2, 1] and parts[2].timespans.shape == (3,)
    assert parts[1].lengths.tolist() == [3, 1] and seen.take(2, seed=1).timespans.shape == (3,)
