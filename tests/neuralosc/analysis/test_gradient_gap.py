"""Gaps of gradients against closed forms, and verdicts that say no."""

import math
from dataclasses import dataclass

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.gradient_gap import gradient_gap
from solvers import InputError
from tests.neuralosc.analysis.models import Line, classifier, readable, untouched

W, V = -0.8, 1.3


@dataclass(frozen=True)
class Forgetful(solvers.Gradient):
    """The gradient through the last sample alone."""

    def run(self, loop, state):
        with torch.no_grad():
            states = loop.advance(loop.solver.open(state), 0, len(loop) - 1)
        return states + loop.advance(states[-1], len(loop) - 1, len(loop))


def last(outputs, _):
    return outputs[:, -1, 0]


def line_gap(substeps: int) -> float:
    """That of x(1) from x(0) = 0 under u = 1 and Euler's method, whose adjoint is solved exactly.

    x_n = v ((1 + w/n)^n - 1) / w; backwards from it x(s) = (x_n + v/w) e^(w (s - 1)) - v/w, and the adjoint is
    e^(w (1 - s)), so that dL/dw = x_n + v/w - v (e^w - 1) / w^2, dL/dv = (e^w - 1) / w.
    """
    w, v = (torch.tensor(value).double().requires_grad_() for value in (W, V))
    end = v * ((1 + w / substeps) ** substeps - 1) / w
    backprop = torch.stack(torch.autograd.grad(end, (w, v)))
    w, v, end = w.detach(), v.detach(), end.detach()
    adjoint = torch.stack((end + v / w - v * (torch.exp(w) - 1) / w**2, (torch.exp(w) - 1) / w))
    return float((adjoint - backprop).abs().max() / backprop.abs().max())


def test_a_linear_equation_in_closed_form():
    rnn = neuralosc.ContinuousRNN(Line(W, V), "euler", substeps=4)
    gradients = [{"name": "adjoint", "rtol": 1e-9, "atol": 1e-11}]
    found = gradient_gap(rnn, torch.ones(2, 1, 1), last, gradients, halvings=(2, 4), tolerances=(1e-8,))
    exact = [line_gap(n) for n in (4, 8, 16)]
    assert found.gaps[0].gap == pytest.approx(exact[0], rel=1e-7)
    assert [gap.gap for gap in found.refined] == pytest.approx(exact[1:], rel=1e-4)
    orders = [math.log2(exact[0] / exact[1]), math.log2(exact[1] / exact[2])]
    assert found.orders["adjoint"] == pytest.approx(orders, rel=1e-3)
    assert found.tolerances[0].gap == pytest.approx(exact[0], rel=1e-6)
    assert (
        gradient_gap(
            neuralosc.ContinuousRNN(Line(W, V), "euler"),
            torch.ones(1, 1, 1),
            last,
            ["adjoint"],
            halvings=(),
            tolerances=(),
        )
        .gaps[0]
        .parameters["fields.0.w"][0]
        == math.inf
    ), "one step does not see w"
    assert "follows the equation" in found.verdict.sentence and found.verdict.claim
    assert found.verdict.numbers["gap of adjoint"] == found.gaps[0].gap


def test_exact_gradients_agree_and_every_registered_one_is_there():
    model, data = classifier()
    with untouched(model):
        found = gradient_gap(model, data, halvings=(), tolerances=())
    gaps = {gap.gradient: gap for gap in found.gaps}
    assert list(gaps) == list(solvers.GRADIENTS)
    assert gaps["backprop"].gap == 0 and gaps["backprop"].cosine == pytest.approx(1)
    assert gaps["checkpoint"].gap < 1e-12 and gaps["reversible"].gap < 1e-12
    assert 1e-6 < gaps["adjoint"].gap < 0.1
    assert set(gaps["adjoint"].parameters) == {name for name, _ in model.named_parameters()}
    assert gaps["adjoint"].parameters["readout.bias"][0] < 1e-12, "the read-out is not differentiated by the adjoint"
    assert "checkpoint and reversible" in found.verdict.sentence and "agree with backprop" in found.verdict.sentence
    readable(found)
    assert found.to_dict()["loss"][0] == "cross-entropy"
    assert found.loss[1] == pytest.approx(torch.nn.functional.cross_entropy(model(data[0]), data[1]).item(), rel=1e-6)


def test_the_whole_gradient_is_that_of_torch():
    model, (x, y) = classifier()
    gap = gradient_gap(model, (x, y), torch.nn.functional.cross_entropy, [Forgetful("forgetful")], halvings=()).gaps[0]
    model = model.double()
    exact, cut = [], []
    for found, gradient in ((exact, "backprop"), (cut, Forgetful("forgetful"))):
        swapped = model.with_solver("stormer_verlet", gradient=gradient)
        loss = torch.nn.functional.cross_entropy(swapped(x.double()), y)
        found += torch.autograd.grad(loss, list(model.parameters()))
    one, other = (torch.cat([g.flatten() for g in part]) for part in (cut, exact))
    assert gap.gap == pytest.approx(float((one - other).abs().max() / other.abs().max()), rel=1e-10)
    assert gap.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(one, other, dim=0)), rel=1e-10)


def test_a_gradient_that_forgets_is_not_closed_by_shorter_steps():
    model, data = classifier()
    found = gradient_gap(model, data, gradients=["backprop", Forgetful("forgetful")])
    assert "shorter steps do not close" in found.verdict.sentence, found.verdict
    assert max(found.orders["forgetful"]) < 0.5 and not found.tolerances


def test_what_does_not_fit_says_why():
    model, data = classifier(solver="rk4")
    gap = gradient_gap(model, data, gradients=["reversible"]).gaps[0]
    assert gap.gap is None and "can be undone" in gap.note


def test_no_claim_without_a_solver_and_without_a_gradient():
    model, data = classifier()
    assert not gradient_gap(neuralosc.LSTM(2, 3), data[0]).verdict.claim
    zero = gradient_gap(model, data, lambda answers, y: 0 * answers.sum(), ["checkpoint"])
    assert "is zero" in zero.verdict.sentence and not zero.verdict.claim


def test_tolerances_are_those_of_a_solver_that_chooses_its_steps():
    rnn = neuralosc.ContinuousRNN(Line(W, V), "dopri5")
    found = gradient_gap(rnn, torch.ones(2, 2, 1), last, ["adjoint"], tolerances=(1e-3, 1e-6))
    assert not found.refined and found.tolerances[0].gap > 10 * found.tolerances[1].gap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 3}, "loss is 3, expected a function"),
        ({"gradients": ["backdrop"]}, "gradient 'backdrop'"),
        ({"loss": lambda answers, y: answers}, "expected one number, or one for each of 12"),
    ],
)
def test_bad_input(options, message):
    model, data = classifier()
    with pytest.raises(InputError, match=message):
        gradient_gap(model, data, **options)


def test_nothing_to_train():
    model, data = classifier()
    with pytest.raises(InputError, match="no parameter of the model requires a gradient"):
        gradient_gap(model.requires_grad_(False), data)
