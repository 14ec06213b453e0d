"""Slices of losses that are known, and barriers on lines."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.landscape import landscape
from solvers import InputError
from tests.neuralosc.analysis.models import Line, classifier, readable, regression, untouched


@pytest.fixture(autouse=True)
def plain():
    with solvers.backend("plain"):
        yield


def gradient(model, x, y):
    loss = (model(x.double()) - y.double()).square().mean()
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.readout.parameters()))])


def last(outputs, _):
    return (outputs[:, -1, 0].square() - 1).square()


def double_well(v: float):
    """One step of Euler's method from 0 under u = 1 gives x = v: the loss is (v^2 - 1)^2."""
    return neuralosc.ContinuousRNN(Line(0.0, v), "euler")


def test_a_quadratic_exactly():
    model, (x, y), curvature = regression()
    own, slope = gradient(model, x, y)
    with untouched(model):
        found = landscape(model, (x, y), points=7, lines=2, reach=0.8)
    assert found.losses.shape == (2, 7) and found.places.tolist() == pytest.approx([0.8 * k / 3 for k in range(-3, 4)])
    for line, d, second in zip(found.losses, found.vectors, found.curvatures, strict=True):
        exact = own + found.places * (slope @ d) + found.places**2 / 2 * (d @ curvature @ d)
        torch.testing.assert_close(line, exact, rtol=1e-10, atol=1e-12)
        assert float(second) == pytest.approx(float(d @ curvature @ d), rel=1e-8)
    weight = model.readout.weight.norm()
    assert float(found.vectors[0, :4].norm()) == pytest.approx(weight.item()) and found.vectors[0, 4] == 0
    assert "is not the lowest" in found.verdict.sentence
    readable(found)
    assert "vectors" not in found.to_dict()


def test_a_plane_of_a_quadratic():
    model, (x, y), curvature = regression()
    own, slope = gradient(model, x, y)
    for directions in ("filter", "hessian"):
        found = landscape(model, (x, y), directions, plane=True, points=5, reach=0.5)
        d, e = found.vectors
        a, b = torch.meshgrid(found.places, found.places, indexing="ij")
        move = a.unsqueeze(-1) * d + b.unsqueeze(-1) * e
        exact = own + move @ slope + ((move @ curvature) * move).sum(-1) / 2
        torch.testing.assert_close(found.losses, exact, rtol=1e-10, atol=1e-12)
    assert found.curvatures.tolist() == pytest.approx(torch.linalg.eigvalsh(curvature).flip(0)[:2].tolist(), rel=1e-8)
    assert float(d.norm()) == pytest.approx(1) and abs(float(d @ e)) < 1e-10


def test_the_lowest_point():
    model, (x, y), curvature = regression()
    slope = gradient(model, x, y)[1]
    step = torch.linalg.solve(curvature, slope)
    model.readout.weight.data -= step[:4]
    model.readout.bias.data -= step[4:]
    found = landscape(model, (x, y), points=5)
    assert "is the lowest of these slices" in found.verdict.sentence and (found.curvatures > 0).all()


def test_rows_of_every_matrix_are_as_long_as_those_of_the_weights():
    model, data = classifier()
    vector = landscape(model, data, points=3, lines=1).vectors[0]
    for p, part in zip(model.parameters(), vector.split([p.numel() for p in model.parameters()]), strict=True):
        if p.dim() > 1:
            torch.testing.assert_close(part.view_as(p).norm(dim=1).float(), p.detach().norm(dim=1))
        else:
            assert not part.any()


def test_the_barrier_of_a_double_well():
    found = landscape(double_well(-1.0), torch.ones(3, 1, 1), other=double_well(1.0), loss=last, points=9)
    exact = ((2 * found.places - 1) ** 2 - 1) ** 2
    torch.testing.assert_close(found.losses[0], exact, rtol=1e-12, atol=1e-14)
    assert found.barrier.height == pytest.approx(1) and found.barrier.place == 0.5
    assert found.verdict.claim and found.verdict.sentence.endswith("a barrier.")


def test_no_barrier_of_a_convex_loss():
    model, (x, y), _ = regression()
    other = regression(seed=1)[0]
    other.rnn = model.rnn
    found = landscape(model, (x, y), other=other)
    assert found.barrier.height == 0 and "no barrier" in found.verdict.sentence
    assert found.barrier.ends == pytest.approx((gradient(model, x, y)[0], gradient(other, x, y)[0]))


def test_no_claim_where_more_than_the_weights_differs():
    model, data = classifier()
    other = model.with_solver("stormer_verlet", dt=0.1)
    found = landscape(model, data, other=other, points=3)
    assert not found.verdict.claim and "more than their weights" in found.verdict.sentence
    mean = landscape(
        double_well(-1.0), torch.ones(3, 1, 1), other=double_well(1.0), loss=lambda *a: last(*a).mean(), points=9
    )
    assert not mean.verdict.claim and mean.barrier.height == pytest.approx(1), "without numbers for each no error"


def test_where_the_state_leaves_the_numbers():
    class Matrix(neuralosc.VectorField):
        def __init__(self):
            super().__init__(3, 3)
            self.W = torch.nn.Parameter(-0.5 * torch.eye(3))

        def forward(self, t, state, u):
            return state @ self.W.T + u.unsqueeze(-2)

    rnn = neuralosc.ContinuousRNN(Matrix(), "euler")
    found = landscape(rnn, torch.randn(2, 300, 3), points=3, lines=1, reach=1e3)
    assert found.losses.isnan().tolist() == [[True, False, True]]
    assert "at 2 places the state leaves the numbers" in str(found.verdict) or not found.verdict.claim
    assert found.verdict.numbers["left"] == 2
    far = landscape(rnn, torch.randn(2, 9, 3), points=3, lines=1, reach=1e3)
    assert far.losses[0, 0] > 1e9 * far.losses[0, 1] and "is the lowest" in far.verdict.sentence
    near = landscape(rnn, torch.randn(2, 9, 3), points=41, lines=3, reach=100.0)
    lower = bool((near.losses < near.losses[0, 20] * (1 - 1e-9)).any())
    assert ("is not the lowest" in near.verdict.sentence) == lower


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": "pca"}, "directions is 'pca'"),
        ({"points": 4}, "points is 4"),
        ({"reach": 0}, "reach is 0"),
        ({"lines": 0}, "lines is 0"),
        ({"plane": True, "other": double_well(1.0)}, "leave one out"),
        ({"other": double_well(1.0)}, "expected a model of the same form"),
    ],
)
def test_bad_input(options, message):
    model, data = classifier(batch=4, time=3)
    with pytest.raises(InputError, match=message):
        landscape(model, data, **options)


def test_vectors_alone_have_no_rows():
    with pytest.raises(InputError, match="rows"):
        landscape(double_well(1.0), torch.ones(3, 1, 1))
