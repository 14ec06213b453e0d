"""Work and precision of a network: evaluations counted by hand, orders, and what is not said."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc import InputError
from neuralosc.analysis.work_precision import evaluations_for, work_precision
from tests.neuralosc.analysis.systems import F64, draw


@pytest.fixture(autouse=True)
def plain():
    with solvers.backend("plain"):
        yield


def network(**options):
    torch.manual_seed(0)
    return neuralosc.CoRNN(2, 4, dt=0.2, gamma=1.0, epsilon=0.5, **options)


@pytest.fixture(scope="module")
def found():
    with solvers.backend("plain"):
        rnn = network()
        before = [p.clone() for p in rnn.parameters()]
        names = ("semi_implicit_euler", "stormer_verlet", "rk4", "native_dopri5")
        result = work_precision(rnn, draw(6, 10, 2), names, substeps=(1, 2, 4), tolerances=(1e-4, 1e-6), goal=1e-4)
        assert all(
            torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(before, rnn.parameters(), strict=True)
        )
        return result


def test_evaluations_and_orders(found):
    for name, stages, order in (("semi_implicit_euler", 1, 1), ("rk4", 4, 4)):
        curve = [each for each in found.points if each.solver == name]
        assert [each.evaluations for each in curve] == [10 * stages * n for n in (1, 2, 4)]
        assert abs(math.log2(curve[1].error / curve[2].error) - order) < 0.3
    # Its own step is one of those that were run.
    assert found.own.solver == "semi_implicit_euler" and found.own.choice == "1 substep"
    assert found.own.error == found.points[0].error and found.own.evaluations == 10
    adaptive = [each for each in found.points if each.solver == "native_dopri5"]
    assert all(each.error < 1e-6 for each in adaptive) and adaptive[0].evaluations <= adaptive[1].evaluations
    assert found.samples == 6 and found.reference_error < 1e-9


def test_the_verdict(found):
    assert found.verdict.claim and "semi_implicit_euler" not in found.needed
    assert min(found.needed, key=found.needed.get) in found.verdict.sentence.split("takes")[1]
    assert "the network's own semi_implicit_euler (1 substep) takes 10" in found.verdict.sentence
    assert found.png()[:4] == b"\x89PNG" and "native_dopri5" in found.table() and found.to_dict()["goal"] == 1e-4


def test_on_the_line_between_two_points():
    points = [(10.0, 1e-1), (100.0, 1e-3)]
    assert math.isclose(evaluations_for(points, 1e-2), 10**1.5) and evaluations_for(points, 0.5) == 10.0
    assert evaluations_for(points, 1e-4) is None and evaluations_for([], 1e-4) is None


def test_what_cannot_be_said():
    x = draw(3, 5, 2)
    gru = work_precision(neuralosc.make("torch_gru", input_size=2, hidden_size=2), x)
    assert not gru.verdict.claim and "has no solver" in gru.verdict.sentence and gru.table()
    coarse = work_precision(network(), x, ("euler", "yoshida6"), substeps=(1,), goal=1e-6)
    assert not coarse.verdict.claim and "no solver comes down to" in coarse.verdict.sentence
    assert "conformal" in coarse.points[1].why and math.isnan(coarse.points[1].error)
    fine = work_precision(network(), x, ("rk4",), substeps=(1,), goal=1e-15)
    assert not fine.verdict.claim and "does not tell errors" in fine.verdict.sentence


def test_padding_is_not_counted():
    x = draw(4, 6, 2)
    lengths = torch.tensor([6, 4, 2, 6])
    one = work_precision(network(), (x, None, None, lengths), ("rk4",), substeps=(1,))
    x = x.clone()
    x[1, 4:], x[2, 2:] = 7.0, -3.0
    other = work_precision(network(), (x, None, None, lengths), ("rk4",), substeps=(1,))
    assert one.points[0].error == other.points[0].error > 0 and x.dtype == F64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": 0.0}, "goal is 0.0, expected a relative error between 0 and 1"),
        ({"substeps": (0,)}, r"substeps are \(0,\), expected whole numbers"),
        ({"solvers": ("rk5",)}, "rk5"),
        ({"data": torch.rand(3, 4)}, r"data is \(3, 4\), expected x \(batch, time, input\)"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        work_precision(network(), **{"data": draw(2, 3, 2), **options})
