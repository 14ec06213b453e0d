"""Solve and flow of the linear operators against dense matrices."""

import pytest
import torch

from solvers import DenseOperator, OscillatorOperator

F64 = torch.float64
#: (stiffness, damping): under-, over- and critically damped, near critical, undamped, free, pure damping.
CASES = [
    (2.0, 0.3), (1.0, 5.0), (1.0, 2.0), (1.0, 2.0 + 1e-7), (1.0, 2.0 - 1e-7), (1.0, 2.001), (1.0, 1.999),
    (3.0, 0.0), (0.0, 0.0), (0.0, 1.5), (100.0, 0.1), (0.01, 60.0),
]  # fmt: skip


def matrix(stiffness, damping):
    return torch.tensor([[0.0, 1.0], [-stiffness, -damping]], dtype=F64)


def states(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=F64)


@pytest.mark.parametrize("h", [1e-6, 0.01, 0.3, 2.0])
@pytest.mark.parametrize(("stiffness", "damping"), CASES)
def test_oscillator_against_dense_matrices(stiffness, damping, h):
    x, dense = states(4, 2, 3), matrix(stiffness, damping)
    operator = OscillatorOperator(stiffness, damping)
    torch.testing.assert_close(operator.apply(x), dense @ x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        operator.solve(h, x), torch.linalg.solve(torch.eye(2, dtype=F64) - h * dense, x), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(operator.flow(h, x), torch.linalg.matrix_exp(h * dense) @ x, rtol=1e-11, atol=1e-11)


def test_oscillator_with_a_step_per_sample_and_coefficients_per_channel():
    h = torch.tensor([[0.1], [0.0], [1.3], [2.0]], dtype=F64)
    stiffness, damping = torch.tensor([1.0, 2.0, 0.5], dtype=F64), torch.tensor([2.0, 0.1, 4.0], dtype=F64)
    x, operator = states(4, 2, 3), OscillatorOperator(stiffness, damping)
    flow, solved = operator.flow(h, x), operator.solve(h, x)
    for i in range(4):
        for j in range(3):
            dense = matrix(float(stiffness[j]), float(damping[j])) * h[i, 0]
            torch.testing.assert_close(flow[i, :, j], torch.linalg.matrix_exp(dense) @ x[i, :, j])
            expected = torch.linalg.solve(torch.eye(2, dtype=F64) - dense, x[i, :, j])
            torch.testing.assert_close(solved[i, :, j], expected)


def test_oscillator_with_a_step_per_channel():
    h = torch.tensor([0.1, 0.5, 1.5], dtype=F64)
    x, operator = states(4, 2, 3), OscillatorOperator(1.0, 2.0)
    for j in range(3):
        torch.testing.assert_close(operator.flow(h, x)[..., j], operator.flow(float(h[j]), x)[..., j])
        torch.testing.assert_close(operator.solve(h, x)[..., j], operator.solve(float(h[j]), x)[..., j])


@pytest.mark.parametrize(("stiffness", "damping"), CASES)
@pytest.mark.parametrize("method", ["flow", "solve"])
def test_oscillator_gradients(method, stiffness, damping):
    def f(h, a, g, x):
        return getattr(OscillatorOperator(a, g), method)(h, x)

    values = (0.7, max(stiffness, 1e-3), max(damping, 1e-3))
    h, a, g = (torch.tensor(v, dtype=F64, requires_grad=True) for v in values)
    # Central differences of 1e-5 straddle the branch points, which the tolerance must still hold across.
    assert torch.autograd.gradcheck(f, (h, a, g, states(2, 2, 2).requires_grad_()), eps=1e-5, atol=1e-6, rtol=1e-6)


def test_oscillator_second_derivatives_across_critical_damping():
    a = torch.tensor([1.0, 1.0 + 1e-9, 0.9999, 1.01], dtype=F64, requires_grad=True)
    x = states(1, 2, 4)
    assert torch.autograd.gradgradcheck(lambda a: OscillatorOperator(a, 2.0).flow(0.7, x), (a,), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("stiffness", "damping", "h"), [(1.0, 1e4, 1.0), (1e4, 1e6, 10.0), (0.0, 1e5, 3.0)])
def test_large_damping_neither_overflows_nor_loses_gradients(stiffness, damping, h, dtype):
    a, g, step = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (stiffness, damping, h))
    x = torch.ones(1, 2, 1, dtype=dtype, requires_grad=True)
    end = OscillatorOperator(a, g).flow(step, x)
    assert torch.isfinite(end).all() and float(end.detach().abs().max()) <= 1.01
    for gradient in torch.autograd.grad(end.sum(), (a, g, step, x)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("dtype", "stiffness"), [(torch.float32, 1e4), (F64, 1e6)])
def test_fast_oscillation_keeps_its_gradients(dtype, stiffness):
    """W h far beyond log(max float): the branch not taken must not poison the gradient."""
    a, g = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (stiffness, 0.1))
    x = torch.ones(1, 2, 1, dtype=dtype, requires_grad=True)
    end = OscillatorOperator(a, g).flow(1.0, x)
    for gradient in torch.autograd.grad(end.sum(), (a, g, x)):
        assert torch.isfinite(gradient).all()


def test_the_slow_mode_of_strong_damping_is_accurate():
    """Q decays at stiffness / damping, a difference of two large numbers."""
    x = torch.tensor([[[1.0], [0.0]]], dtype=F64)
    end = OscillatorOperator(1.0, 1e8).flow(1e8, x)
    torch.testing.assert_close(end[0, 0, 0], torch.exp(torch.tensor(-1.0, dtype=F64)), rtol=1e-9, atol=0)


def test_flow_composes():
    operator, x = OscillatorOperator(2.0, 0.7), states(3, 2, 4)
    torch.testing.assert_close(operator.flow(0.3, operator.flow(0.5, x)), operator.flow(0.8, x))
    torch.testing.assert_close(operator.flow(-0.8, operator.flow(0.8, x)), x)
    torch.testing.assert_close(operator.flow(0.0, x), x, rtol=0, atol=0)


@pytest.mark.parametrize("h", [0.2, torch.tensor(0.2, dtype=F64)])
def test_dense_against_dense_matrices(h):
    m, x = states(4, 4), states(5, 2, 4)
    operator = DenseOperator(m)
    torch.testing.assert_close(operator.apply(x), x @ m)
    torch.testing.assert_close(operator.solve(h, x), x @ torch.linalg.inv(torch.eye(4, dtype=F64) - h * m))
    torch.testing.assert_close(operator.flow(h, x), x @ torch.linalg.matrix_exp(h * m))


def test_dense_with_a_step_per_sample():
    m, x = states(4, 4), states(3, 2, 4)
    h = torch.tensor([[0.1], [0.0], [0.7]], dtype=F64)
    operator = DenseOperator(m)
    for i in range(3):
        torch.testing.assert_close(operator.solve(h, x)[i], operator.solve(float(h[i]), x[i]))
        torch.testing.assert_close(operator.flow(h, x)[i], operator.flow(float(h[i]), x[i]))


def test_dense_with_a_step_per_channel_scales_what_each_channel_receives():
    m, x, h = states(4, 4), states(3, 2, 4), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    system = torch.eye(4, dtype=F64) - m * h
    operator = DenseOperator(m)
    # (1 - h L) y = x with h L y = (y M) * h.
    solved = operator.solve(h, x)
    torch.testing.assert_close(solved - operator.apply(solved) * h, x)
    torch.testing.assert_close(solved, x @ torch.linalg.inv(system))
    torch.testing.assert_close(operator.flow(h, x), x @ torch.linalg.matrix_exp(m * h))


@pytest.mark.parametrize("method", ["flow", "solve"])
def test_dense_gradients(method):
    m, x = (0.3 * states(3, 3)).requires_grad_(), states(2, 1, 3).requires_grad_()
    h = torch.tensor([[0.3], [0.9]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h, m, x: getattr(DenseOperator(m), method)(h, x), (h, m, x))
