"""Ranges of dt against closed forms, and against what training does inside and outside of them."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.suggest_dt import suggest_dt
from solvers import InputError
from tests.neuralosc.analysis.models import Line, classifier, readable, untouched

W, T = -0.5, 20


def test_a_linear_equation_in_closed_form():
    found = suggest_dt(neuralosc.ContinuousRNN(Line(W), "euler", 0.3), torch.randn(3, T, 1))
    for probe in found.probes:
        factor = abs(1 + W * probe.dt) ** T
        assert probe.largest == pytest.approx(factor, rel=1e-9) and probe.middle == probe.largest
        assert probe.moved == pytest.approx(abs((1 + W * probe.dt) ** T - 1), rel=1e-9)
        assert probe.growth == pytest.approx(max(factor, 1), rel=1e-9)
        taken = 1e-3 < factor <= 1e3 and probe.moved > 0.1
        assert taken == (not probe.faults), probe
    assert found.eigenvalues == pytest.approx(W)
    assert found.max_dt == pytest.approx((1 + 1e3 ** (1 / T)) / -W / 0.3, rel=1e-6)
    assert found.low <= 0.3 <= found.high
    assert found.verdict.numbers["high"] == found.high and "is inside" in found.verdict.sentence
    edge = (1 - 1e-3 ** (1 / T)) / -W
    assert found.high < edge < 1.1 * found.high, "from there on the gradient vanishes"
    readable(found)


def test_gaps_and_padding():
    spans = torch.tensor([[1.0, 2.5, 0.5, 3.0], [2.0, 1.0, 9.0, 9.0]])
    data = (torch.randn(2, 4, 1), None, spans, torch.tensor([4, 2]))
    for bound in (None, 1.0):
        rnn = neuralosc.ContinuousRNN(Line(W), "euler", 0.4, max_dt=bound)
        probe = suggest_dt(rnn, data, dts=[0.3]).probes[0]
        factors = []
        for row in (spans[0].tolist(), spans[1, :2].tolist()):
            counts = [1 if bound is None else math.ceil(span) for span in row]
            factors.append(math.prod((1 + W * 0.3 * s / n) ** n for s, n in zip(row, counts, strict=True)))
        assert probe.largest == pytest.approx(max(factors), rel=1e-9)
        assert probe.middle == pytest.approx(min(factors), rel=1e-9)


@pytest.mark.parametrize(("solver", "limit"), [("stormer_verlet", 2.0), ("rk4", 2 * math.sqrt(2))])
def test_an_oscillator_up_to_its_limit(solver, limit):
    """Of w = 3: stable up to h w = 2 and 2 sqrt 2; beyond it the modes, and with them the gradient, explode."""
    field = neuralosc.DenseHamiltonian(1, 2, alpha=9.0)
    torch.nn.init.zeros_(field.W)
    near = [0.5 * limit / 3, 0.99 * limit / 3, 1.05 * limit / 3]
    found = suggest_dt(neuralosc.ContinuousRNN(field, solver, near[0]), torch.randn(2, 200, 1), dts=near)
    assert [probe.growth > 1e3 for probe in found.probes if probe.dt in near] == [False, False, True]
    assert sorted(set(abs(found.eigenvalues))) == pytest.approx([3.0] * len(set(abs(found.eigenvalues))))
    assert limit < found.max_dt * near[0] * 3 < 1.02 * limit
    if solver == "stormer_verlet":
        assert near[1] <= found.high < near[2] and "unstable" in found.verdict.sentence


def test_a_range_that_is_not_there():
    found = suggest_dt(neuralosc.ContinuousRNN(Line(0.5), "rk4"), torch.randn(2, T, 1), bounds=(0.99, 1.01))
    assert found.low is None and found.high is None
    assert found.verdict.sentence.startswith("No dt between") and "explodes" in found.verdict.sentence


def test_a_field_a_model_and_a_stack():
    field = neuralosc.DenseHamiltonian(2, 3)
    x = torch.randn(2, 9, 2)
    own = suggest_dt(field, x, solver="stormer_verlet", dts=[0.5])
    same = suggest_dt(neuralosc.ContinuousRNN(field, "stormer_verlet"), x, torch.ones(9), dts=[0.5])
    assert own.probes == same.probes and own.path.startswith("R(h lambda) of stormer_verlet")
    model, (x, _) = classifier()
    with untouched(model):
        one = suggest_dt(model, x, dts=[0.3])
    rnn, start = model.double().rnn, torch.zeros(1, 2, 4, dtype=torch.float64)
    chosen = x[:4] if one.sequences == len(x) else x[torch.randperm(12, generator=torch.Generator().manual_seed(0))[:4]]
    whole = [
        torch.autograd.functional.jacobian(lambda state, row=row: rnn(row, state)[1], start).reshape(8, 8)
        for row in chosen.double().unsqueeze(1)
    ]
    norms = sorted(float(torch.linalg.matrix_norm(each, 2)) for each in whole)
    assert one.own == 0.3 and one.probes[0].largest == pytest.approx(norms[-1], rel=1e-9)
    assert one.probes[0].middle == pytest.approx(norms[1], rel=1e-9)
    stack = neuralosc.ContinuousRNN([field, neuralosc.DenseHamiltonian(3, 3)], "stormer_verlet", [0.5, 0.25])
    both = suggest_dt(stack, torch.randn(2, 9, 2), dts=[0.5, 1.0])
    assert len(both.eigenvalues) == 2 * 16 * 6 and both.verdict.claim


@pytest.mark.parametrize(
    ("field", "solver"),
    [(neuralosc.DenseHamiltonian, "native_dopri5"), (neuralosc.Oscillator, "imex_euler"), (neuralosc.CfC, None)],
)
def test_methods_without_a_stability_function_are_measured(field, solver):
    rnn = field(1, 2) if solver is None else neuralosc.ContinuousRNN(field(1, 2), solver, 0.5)
    found = suggest_dt(rnn, torch.randn(2, 5, 1), dts=[0.5, 1.0])
    assert found.max_dt is None and "measured alone" in found.path and found.probes[0].growth is None
    assert found.probes[0].largest > 0 and found.verdict.claim


def test_no_claim_without_a_solver():
    found = suggest_dt(neuralosc.LSTM(1, 2), torch.randn(2, 5, 1))
    assert not found.verdict.claim and found.low is None and not found.probes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dts": [0.2, 0.1]}, "dts is .*ascending"),
        ({"bounds": (2.0, 3.0)}, "bounds is .*one above"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        suggest_dt(neuralosc.DenseHamiltonian(1, 2), torch.randn(2, 5, 1), **options)


@pytest.mark.slow
def test_training_tells_the_same():
    """To give back the first of 40 samples is learnt inside of the range, and neither below nor above it."""
    torch.manual_seed(0)
    x = torch.randn(64, 40, 1)
    y = x[:, :1, 0]

    def left_over(dt: float) -> float:
        torch.manual_seed(1)
        rnn = neuralosc.ContinuousRNN(neuralosc.DenseHamiltonian(1, 8), "semi_implicit_euler", dt)
        model = neuralosc.SequenceModel(rnn, neuralosc.Readout(8, 1))
        adam = torch.optim.Adam(model.parameters(), 0.02)
        try:
            for _ in range(60):
                loss = (model(x) - y).square().mean() / y.square().mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
        except solvers.NumericalError:
            return math.inf
        return loss.item()

    torch.manual_seed(1)
    found = suggest_dt(neuralosc.ContinuousRNN(neuralosc.DenseHamiltonian(1, 8), "semi_implicit_euler", 0.05), x)
    with solvers.backend("plain"):
        inside, below, above = (left_over(dt) for dt in (found.high / 4, found.low / 30, 2 * found.high))
    assert inside < 0.5 and below > 0.8 and not above < 0.9, (found.low, found.high, inside, below, above)
