"""Curvature against losses whose second derivative is known, and against dense Hessians of torch."""

import math
import sys

import pytest
import torch
from torch.func import functional_call

import neuralosc
from neuralosc.analysis.hessian import hessian, lanczos
from solvers import InputError
from tests.neuralosc.analysis.models import Line, classifier, readable, regression, untouched


def dense(model, loss) -> torch.Tensor:
    """The Hessian of a loss of the model in all its parameters, by torch."""
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def of(flat):
        pieces = zip(names, model.parameters(), flat.split(sizes), strict=True)
        return loss(lambda *a: functional_call(model, {name: part.view_as(p) for name, p, part in pieces}, a))

    return torch.autograd.functional.hessian(of, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_a_quadratic_loss_exactly(monkeypatch):
    model, data, exact = regression()
    values = torch.linalg.eigvalsh(exact)
    with untouched(model):
        found = hessian(model, data, top=3, probes=200, density=True)
    assert found.parameters == 5 and found.eigenvalues == pytest.approx(values.flip(0)[:3].numpy(), rel=1e-10)
    assert found.smallest[0] == pytest.approx(float(values[0]), rel=1e-8)
    assert float(found.residuals.max()) < 1e-10
    products = exact @ found.vectors.T
    torch.testing.assert_close(products, found.vectors.T * found.eigenvalues, rtol=1e-8, atol=1e-10)
    mean, error = found.trace
    assert 0 < error < 0.1 * mean and abs(mean - float(exact.trace())) < 4 * error
    grid, height = found.density
    assert float(torch.trapezoid(height, grid)) == pytest.approx(1, rel=1e-6)
    assert float(torch.trapezoid(height * grid, grid)) == pytest.approx(float(values.mean()), rel=1e-6)
    # The name stands for the function.
    module = sys.modules["neuralosc.analysis.hessian"]
    monkeypatch.setattr(module, "DEPTH", 4)
    monkeypatch.setattr(module, "DRAWS", 200)
    grid, height = hessian(model, data, top=1, trace=False, density=True).density
    assert float(torch.trapezoid(height * grid, grid)) == pytest.approx(float(values.mean()), rel=0.3)
    assert "curves down along none" in found.verdict.sentence
    readable(found)
    assert "vectors" not in found.to_dict()


def test_an_eigenvalue_that_comes_twice():
    """Two answers from the same features have each eigenvalue twice, of which one start sees one."""
    model, data, exact = regression(answers=2)
    values = torch.linalg.eigvalsh(exact).repeat_interleave(2).flip(0)
    assert hessian(model, data, top=4, trace=False).eigenvalues == pytest.approx(values[:4].numpy(), rel=1e-9)


def test_two_parameters():
    w, v = torch.tensor(-0.8), torch.tensor(1.3)
    rnn = neuralosc.ContinuousRNN(Line(float(w), float(v)), "euler", substeps=4)
    found = hessian(rnn, torch.ones(3, 1, 1), lambda outputs, _: outputs[:, -1, 0].square(), top=1, trace=False)
    exact = torch.autograd.functional.hessian(
        lambda p: (p[1] * ((1 + p[0] / 4) ** 4 - 1) / p[0]).square(), torch.stack((w, v)).double()
    )
    values = torch.linalg.eigvalsh(exact)
    assert float(found.eigenvalues[0]) == pytest.approx(float(values[1]), rel=1e-10)
    assert found.smallest[0] == pytest.approx(float(values[0]), rel=1e-10)


def test_a_whole_network():
    model, (x, y) = classifier(batch=5, time=4)
    entropy = torch.nn.functional.cross_entropy
    found = hessian(model, (x, y), top=4, trace=False, lr=0.1)
    exact = dense(model.double(), lambda call: entropy(call(x.double()), y))
    values = torch.linalg.eigvalsh(exact)
    assert found.eigenvalues.tolist() == pytest.approx(values.flip(0)[:4].tolist(), rel=1e-6)
    assert found.smallest[0] == pytest.approx(float(values[0]), rel=1e-4)
    assert found.sharpness == pytest.approx(0.1 * float(values[-1]) / 2, rel=1e-6)
    assert "curves down, by" in found.verdict.sentence and "is stable" in found.verdict.sentence
    assert found.parameters == len(exact) and "plain steps, kept" in found.path


def test_parts_that_fit_the_memory(monkeypatch):
    model, data, exact = regression()
    monkeypatch.setattr("neuralosc.analysis.losses.STATE_BYTES", 8 * 8 * 2 * 4 * 24 * 7)
    found = hessian(model, data, top=5, trace=False)
    assert found.eigenvalues.tolist() == pytest.approx(torch.linalg.eigvalsh(exact).flip(0).tolist(), rel=1e-8)
    assert "in 5 parts" in found.path


@pytest.mark.parametrize(("factor", "stable"), [(0.98, True), (1.02, False)])
def test_sharpness_is_where_gradient_descent_leaves(factor, stable):
    model, (x, y), exact = regression()
    rate = factor * 2 / float(torch.linalg.eigvalsh(exact)[-1])
    found = hessian(model, (x, y), lr=rate, trace=False)
    assert found.sharpness == pytest.approx(factor, rel=1e-9) and f"is {'' if stable else 'un'}stable" in str(
        found.verdict
    )
    losses = []
    for _ in range(200):
        loss = (model(x.double()) - y.double()).square().mean()
        losses.append(loss.item())
        for p, g in zip(model.readout.parameters(), torch.autograd.grad(loss, model.readout.parameters()), strict=True):
            p.data -= rate * g
    assert (losses[-1] < losses[0]) == stable


def test_the_identity_in_as_many_steps_as_dimensions():
    space = lanczos(lambda v: 3 * v, 6, 10, torch.Generator().manual_seed(0))
    assert space.pairs()[0].tolist() == pytest.approx([3.0] * 6)
    torch.testing.assert_close(space.basis.T @ space.basis, torch.eye(6, dtype=torch.float64))


def test_no_claim_before_it_has_converged():
    model, data = classifier()
    found = hessian(model, data, steps=2, top=1, trace=False)
    assert not found.verdict.claim and "raise steps" in found.verdict.sentence
    flat = hessian(model, data, lambda answers, y: answers.sum() * 0, trace=False)
    assert not flat.verdict.claim and "does not curve" in flat.verdict.sentence


def test_a_baseline_has_one_too():
    torch.manual_seed(0)
    model = neuralosc.SequenceModel(neuralosc.LSTM(2, 2), neuralosc.Readout(2, 3)).double()
    x, y = torch.randn(4, 3, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    exact = dense(model, lambda call: torch.nn.functional.cross_entropy(call(x), y))
    found = hessian(model, (x, y), top=1, trace=False)
    assert float(found.eigenvalues[0]) == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"probes": 1}, "probes is 1"),
        ({"steps": True}, "steps"),
    ],
)
def test_bad_input(options, message):
    model, data = classifier()
    with pytest.raises(InputError, match=message):
        hessian(model, data, **options)


def test_a_loss_that_is_no_number():
    model, data = classifier()
    with pytest.raises(InputError, match="is inf"):
        hessian(model, data, lambda answers, y: answers.sum() + math.inf)


@pytest.mark.parametrize("solver", ["semi_implicit_euler", "rk4"])
def test_differences_of_the_gradient_give_the_same_products(solver):
    torch.manual_seed(0)
    rnn = neuralosc.CoRNN(2, 5, dt=0.3, gamma=1.0, epsilon=0.5, solver=solver)
    model = neuralosc.SequenceModel(rnn, neuralosc.Readout(5, 3))
    data = torch.randn(6, 9, 2), torch.randint(3, (6,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exact, rough = (hessian(model, data, top=2, trace=False, products=way) for way in ("exact", "difference"))
    torch.testing.assert_close(rough.eigenvalues, exact.eigenvalues, rtol=1e-7, atol=1e-8)
    assert "double backward" in exact.path and "differences" in rough.path
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="products is 'rough'"):
        hessian(model, data, products="rough")
