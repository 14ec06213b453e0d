"""`integrate` inside torch.func: right where it can work, one line where it cannot. Of dx = -a x, x(1) = e^-a x."""

import math

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import solvers

F64 = torch.float64
FIXED = [("rk4", "backprop"), ("rk4", "checkpoint"), ("rk4", "adjoint"), ("reversible", "reversible")]
TAKEN = [*FIXED, ({"name": "native_dopri5", "rtol": 1e-9, "atol": 1e-9}, "backprop")]


def end(a, x, method, gradient="backprop", times=(0.0, 0.5, 1.0)):
    substeps = 1 if solvers.get(method).adaptive else 50
    states = solvers.integrate(lambda t, s, u: -a * s, x.view(1, 1, -1), times, None, method, gradient, substeps)
    return states.states[0, -1, 0]


@pytest.mark.parametrize(("method", "gradient"), TAKEN)
def test_derivatives(method, gradient):
    a, x, decay = torch.tensor(0.7, dtype=F64), torch.tensor([1.0, 2.0], dtype=F64), math.exp(-0.7)
    close = {"rtol": 1e-3, "atol": 1e-6} if gradient == "reversible" else {"rtol": 1e-6, "atol": 1e-8}
    jacobian = decay * torch.eye(2, dtype=F64)
    for derivative in (jacrev, jacfwd):
        torch.testing.assert_close(derivative(lambda s: end(a, s, method, gradient))(x), jacobian, **close)
    slope = grad(lambda a: end(a, x, method, gradient).sum())(a)
    torch.testing.assert_close(slope, -3 * torch.tensor(decay, dtype=F64), **close)
    second = hessian(lambda s: end(a, s, method, gradient).square().sum())(x)
    torch.testing.assert_close(second, 2 * decay * jacobian, **close)
    times = grad(lambda t: end(a, x, method, gradient, t).sum())(torch.tensor([0.0, 1.0], dtype=F64))
    torch.testing.assert_close(times, 2.1 * torch.tensor([decay, -decay], dtype=F64), **close)


@pytest.mark.parametrize(("method", "gradient"), FIXED)
def test_vmap_over_steps_of_fixed_size(method, gradient):
    a, xs = torch.tensor([0.2, 0.7], dtype=F64), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)
    mapped = vmap(lambda a, s: end(a, s, method, gradient))(a, xs)
    one_by_one = torch.stack([end(b, s, method, gradient) for b, s in zip(a, xs, strict=True)])
    torch.testing.assert_close(mapped, one_by_one, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("method", "words", "transform"),
    [
        ("native_dopri5", "hides", vmap),
        ("dopri5", "native_dopri5", jacrev),
        ("implicit_midpoint", "torch.autograd", jacrev),
        ("native_kencarp4", "torch.autograd", jacrev),
    ],
)
def test_what_cannot_be_transformed_is_refused(method, words, transform, one_line):
    x = torch.ones(2, 2, dtype=F64)

    def sizes(s):
        return solvers.integrate(lambda t, s, u: -s, s.view(1, 1, -1), [0.0, 1.0], method=method).states[0, -1, 0]

    with pytest.raises(solvers.PairingError) as refused:
        transform(sizes)(x)
    one_line(refused, words)
