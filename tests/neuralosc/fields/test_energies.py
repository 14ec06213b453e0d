"""Energies to full precision, also where their formulas cancel, against mpmath."""

import mpmath
import pytest
import torch

import neuralosc
from neuralosc.fields.energies import log_cosh, mean_tanh

F64 = torch.float64


def exact_mean(u, d):
    u, d = mpmath.mpf(u), mpmath.mpf(d)
    with mpmath.workdps(60):
        value = (mpmath.log(mpmath.cosh(u + d)) - mpmath.log(mpmath.cosh(u))) / d if d else mpmath.tanh(u)
    return float(value)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_log_cosh_keeps_its_digits(dtype):
    x = torch.tensor([1e-12, -1e-4, 1e-3, 0.1, 0.999, -1.0, 1.001, 3.0, 50.0, 1e4], dtype=dtype)
    with mpmath.workdps(60):
        expected = [float(mpmath.log(mpmath.cosh(mpmath.mpf(v)))) for v in x.tolist()]
    torch.testing.assert_close(
        log_cosh(x), torch.tensor(expected, dtype=dtype), rtol=8 * torch.finfo(dtype).eps, atol=0
    )
    x.requires_grad_()
    (slope,) = torch.autograd.grad(log_cosh(x).sum(), x)
    torch.testing.assert_close(slope, torch.tanh(x), rtol=8 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_mean_of_tanh(dtype):
    u = torch.tensor([0.0, 1e-5, 0.3, -0.3, 2.0, -5.0, 15.0], dtype=dtype)
    d = torch.tensor([0.0, 1e-12, -1e-6, 1e-3, 0.05, -0.2, 0.99, -1.01, 3.0, -40.0], dtype=dtype)
    u, d = (t.flatten() for t in torch.meshgrid(u, d, indexing="ij"))
    expected = torch.tensor([exact_mean(*pair) for pair in zip(u.tolist(), d.tolist(), strict=True)], dtype=dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(mean_tanh(u, d), expected, rtol=64 * eps, atol=8 * eps)


@pytest.mark.parametrize("w", [0.0, 1e-8, 1e-6, 1e-4, 1e-2, 1.0, -0.3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_energy_of_unicornn_for_any_w(w, dtype):
    """Its change, and its slopes, which are those of the field."""
    field = neuralosc.HamiltonianOscillator(1, 1, alpha=1.0).to(dtype)
    with torch.no_grad():
        field.w.fill_(w)
    u, state = torch.full((1, 1), 2.0, dtype=dtype), torch.tensor([[[0.5], [0.1]]], dtype=dtype, requires_grad=True)
    energy = field.energy(state, u)
    rounded = float(field.w.detach())
    expected = 0.5 * exact_mean(2.0, 0.5 * rounded) + 0.5**2 / 2 + float(state.detach()[0, 1, 0]) ** 2 / 2
    torch.testing.assert_close(energy, torch.tensor([expected], dtype=dtype), rtol=8 * torch.finfo(dtype).eps, atol=0)
    assert float(field.energy(torch.zeros_like(state), u).detach()) == 0.0
    slope, other = torch.autograd.grad(energy.sum(), (state, field.w))
    q, p = state.unbind(-2)
    bound = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(-slope[:, 0], field.force(0.0, q, p, u), rtol=bound, atol=bound)
    torch.testing.assert_close(slope[:, 1], p)
    assert bool(torch.isfinite(other).all())


def test_small_energies_of_dense_fields_keep_their_digits():
    torch.manual_seed(0)
    field = neuralosc.DenseHamiltonian(2, 4, energy_layers=1)
    state, u = 1e-4 * torch.randn(3, 2, 4), torch.zeros(3, 4)
    expected = neuralosc.DenseHamiltonian(2, 4, energy_layers=1).double()
    expected.load_state_dict(field.state_dict())
    torch.testing.assert_close(
        field.energy(state, u), expected.energy(state.double(), u.double()).float(), rtol=1e-5, atol=0
    )
