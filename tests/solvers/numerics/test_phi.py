"""The phi-functions against mpmath: numbers, oscillator blocks, matrices and their action."""

import math

import mpmath as mp
import pytest
import torch

from solvers import DenseOperator, DiagonalOperator, OscillatorOperator
from solvers.numerics.phi import matrix_phis, oscillator_phis, phi_action, phis
from tests.solvers.one_step import F64, matrix

POSITIVE = [1e-300, 1e-12, 1e-5, 0.0999, 0.1, 0.1001, 0.5, 0.999, 1.0, 1.001, 1.5, 3.0, 20.0]
REAL = [0.0, *POSITIVE, *(-z for z in POSITIVE), -50.0, -1e4, -1e8]
PAIRS = [1e-6j, 1j, 0.1 + 0.02j, -0.3 + 0.4j, -1 + 3j, 2 - 1j, 5j, 100j, -50 + 200j, -1e4 + 3j]


def exact(z, k):
    """phi_k(z) to 40 digits and more."""
    with mp.workdps(90):
        z = mp.mpmathify(z)
        if abs(z) < mp.mpf(10) ** -8:
            return sum(z**n / mp.factorial(n + k) for n in range(8))
        value = mp.exp(z)
        for j in range(k):
            value = (value - 1 / mp.factorial(j)) / z
        return value


def block(h, stiffness, damping, k):
    """phi_k of h [[0, 1], [-A, -G]] in reading order, by its eigenvalues."""
    with mp.workdps(110):
        h, stiffness, damping = mp.mpf(h), mp.mpf(stiffness), mp.mpf(damping)
        centre, root = -damping * h / 2, mp.sqrt((damping**2 / 4 - stiffness) * h * h)
        # Equal eigenvalues are moved apart by far less than the digits that count.
        root = root if abs(root) > mp.mpf(10) ** -25 else mp.mpf(10) ** -25
        f, g = exact(centre + root, k), exact(centre - root, k)
        alpha, beta = (f + g) / 2, (f - g) / (2 * root)
        return [mp.re(v) for v in (alpha - centre * beta, h * beta, -h * stiffness * beta, alpha + centre * beta)]


def rounding(z, k, unit):
    """By how much phi_k may be off where phi_k+1 = (phi_k - 1/k!) / z, and each operation rounds by one `unit`.

    The exponential is within one place in the last, two units. phi_k - 1/k! is z phi_k+1, and is rounded like it.
    """
    if k == 0:
        return 2 * unit * abs(exact(z, 0))
    off = 3 * unit * abs(exact(z, 1))
    for j in range(2, k + 1):
        off = off / abs(z) + 2 * unit * abs(exact(z, j))
    return off


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-15), (torch.float32, 4e-7)])
def test_real_numbers(dtype, tolerance):
    """To a few units of rounding; where the recurrence amplifies it, as far as it may on any processor."""
    z, info = torch.tensor(REAL, dtype=dtype), torch.finfo(dtype)
    for order in (0, 1, 3):
        for k, values in enumerate(phis(z, order)):
            for x, value in zip(z.tolist(), values.tolist(), strict=True):
                expected = exact(x, k)
                allowed = tolerance * abs(expected) + info.tiny
                if abs(x) >= 1:
                    allowed = max(allowed, rounding(x, k, info.eps / 2))
                assert abs(value - expected) <= allowed, (k, x)


def test_complex_numbers():
    z = torch.tensor(PAIRS, dtype=torch.complex128)
    for k, values in enumerate(phis(z, 3)):
        for x, value in zip(PAIRS, values.tolist(), strict=True):
            assert abs(value - exact(x, k)) <= 2e-15 * abs(exact(x, k)) + 1e-300, (k, x)


@pytest.mark.parametrize("order", [1, 3])
def test_derivatives_of_numbers(order):
    """phi_k' = phi_k - k phi_k+1, first and second, on both sides of where the ways of computing meet."""
    z = torch.tensor(REAL, dtype=F64, requires_grad=True)
    for k, values in enumerate(phis(z, order)):
        (slope,) = torch.autograd.grad(values.sum(), z, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), z, retain_graph=True)
        with mp.workdps(90):
            first = [exact(x, k) - k * exact(x, k + 1) for x in REAL]
            second = [a - k * (exact(x, k + 1) - (k + 1) * exact(x, k + 2)) for x, a in zip(REAL, first, strict=True)]
        torch.testing.assert_close(
            slope.detach(), torch.tensor([float(v) for v in first], dtype=F64), rtol=1e-12, atol=0
        )
        torch.testing.assert_close(bend, torch.tensor([float(v) for v in second], dtype=F64), rtol=1e-9, atol=1e-300)


def test_an_overflow_is_infinite_and_stays_where_it_is():
    z = torch.tensor([-1e30, 0.5, 800.0], dtype=F64, requires_grad=True)
    values = phis(z, 3)
    assert [math.isinf(v) for v in values[3].tolist()] == [False, False, True]
    (gradient,) = torch.autograd.grad(sum(f.sum() for f in values), z)
    assert torch.isfinite(gradient[:2]).all()


#: (stiffness, damping): under-, over- and critically damped, near critical, undamped, free, growing, saddle, stiff.
BLOCKS = [
    (2.0, 0.3), (1.0, 5.0), (1.0, 2.0), (1.0, 2.0 + 1e-7), (1.0, 2.0 - 1e-7), (1.0, 2.001), (1.0, 1.999), (3.0, 0.0),
    (0.0, 0.0), (0.0, 1.5), (0.01, 60.0), (1.0, -2.0), (-1.0, 0.5), (25.0, 10.0), (25.0, 10.1), (1e4, 0.1),
    (1.0, 1e4), (1e-3, 1e3), (1e6, 1e6), (0.0, 1e4),
]  # fmt: skip


@pytest.mark.parametrize(("stiffness", "damping"), BLOCKS)
def test_oscillator_blocks(stiffness, damping):
    for h in (0.0, 1e-6, 0.01, 0.3, 1.0, 2.0, 7.0, -0.5):
        if abs(h * damping) > 500 and h < 0:
            continue
        blocks = oscillator_phis(*(torch.tensor(v, dtype=F64) for v in (h, stiffness, damping)), 3)
        # The argument of an oscillation of n turns is known to n units of rounding only.
        turns = 1 + abs(h) * max(abs(stiffness) ** 0.5, 0)
        for k, values in enumerate(blocks):
            expected = block(h, stiffness, damping, k)
            scale = max(abs(expected[0]), abs(expected[3]))
            scales = (scale, max(abs(expected[1]), abs(h) * scale / turns), abs(expected[2]) + 1e-300, scale)
            for value, entry, size in zip(values, expected, scales, strict=True):
                assert abs(float(value) - entry) <= 5e-15 * turns * max(size, abs(stiffness * h * scale) / turns), (
                    h,
                    k,
                )


@pytest.mark.parametrize("order", [0, 3])
def test_gradients_of_oscillator_blocks(order):
    values = [(0.7, 2.0, 0.3), (0.7, 1.0, 5.0), (0.7, 1.0, 2.0), (0.7, 1.0, 2.0 + 1e-7), (0.7, 25.0, 10.1)]
    values += [(3.0, 1.0, 2.0), (0.5, 4.0, 4.0), (-0.4, 1.0, 2.0), (1.3, 1e-3, 1.7)]
    h, stiffness, damping = (torch.tensor(v, dtype=F64, requires_grad=True) for v in zip(*values, strict=True))

    def entries(h, stiffness, damping):
        return torch.stack([entry for phi in oscillator_phis(h, stiffness, damping, order) for entry in phi])

    assert torch.autograd.gradcheck(entries, (h, stiffness, damping), eps=1e-5, atol=1e-7, rtol=1e-6)
    assert torch.autograd.gradgradcheck(
        entries, (h, stiffness, damping), eps=1e-5, atol=1e-5, rtol=1e-4, fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_of_extreme_blocks_are_finite(dtype):
    cases = [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 1.0, 1e4), (1.0, 1e6, 0.1), (10.0, 1e4, 1e6), (3.0, 0.0, 1e5)]
    values = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in zip(*cases, strict=True)]
    total = sum(entry.sum() for phi in oscillator_phis(*values, 3) for entry in phi)
    for gradient in torch.autograd.grad(total, values):
        assert torch.isfinite(gradient).all()


def matrix_exact(m, k):
    """phi_k of a matrix: a corner of the exponential of an augmented one."""
    n = len(m)
    with mp.workdps(60):
        size = n * (k + 1)
        augmented = mp.zeros(size)
        for i in range(n):
            for j in range(n):
                augmented[i, j] = mp.mpf(float(m[i, j]))
            for level in range(k):
                augmented[level * n + i, (level + 1) * n + i] = 1
        exponential = mp.expm(augmented)
        return torch.tensor([[float(exponential[i, k * n + j]) for j in range(n)] for i in range(n)], dtype=F64)


MATRICES = {
    "zero": torch.zeros(3, 3, dtype=F64),
    "tiny": matrix(3, 1, 1e-9),
    "small": matrix(3, 7, 0.01),
    "plain": matrix(3, 2),
    "large": matrix(3, 3, 30.0) - 40 * torch.eye(3, dtype=F64),
    "skew": 25 * (matrix(3, 4) - matrix(3, 4).T),
    "nilpotent": torch.tensor([[0.0, 1e3, 0.0], [0.0, 0.0, 1e3], [0.0, 0.0, 0.0]], dtype=F64),
    "singular": torch.tensor([[-2.0, 2.0, 0.0], [2.0, -2.0, 0.0], [0.0, 0.0, -300.0]], dtype=F64),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name):
    for k, phi in enumerate(matrix_phis(MATRICES[name], 3)):
        expected = matrix_exact(MATRICES[name], k)
        assert float((phi - expected).norm() / expected.norm()) < 5e-14, k


def test_a_batch_of_matrices_is_each_alone():
    stacked = torch.stack(list(MATRICES.values()))
    together = matrix_phis(stacked, 3)
    for i, m in enumerate(MATRICES.values()):
        for batch, alone in zip(together, matrix_phis(m, 3), strict=True):
            torch.testing.assert_close(batch[i], alone, rtol=1e-14, atol=1e-14 * float(alone.abs().max()))
    assert torch.equal(together[0][0], torch.eye(3, dtype=F64))


@pytest.mark.parametrize("order", [1, 3])
def test_gradients_of_matrices(order):
    m = matrix(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: torch.stack(matrix_phis(m, order)), (m,))
    assert torch.autograd.gradgradcheck(lambda m: torch.stack(matrix_phis(m, order)), (m,))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_action_with_a_step_per_sample_equals_the_matrices(count):
    m = matrix(12, 6) - 0.5 * torch.eye(12, dtype=F64)
    generator = torch.Generator().manual_seed(1)
    terms = [torch.randn(6, 2, 12, generator=generator, dtype=F64) for _ in range(count)]
    # Several pieces, one piece, none at all, backwards, and one for which matrices are cheaper.
    h = torch.tensor([2.3, 0.4, 0.0, -1.7, 1e-9, 4.0], dtype=F64).reshape(6, 1, 1)
    for steps in (h[:5], h, torch.cat((h[:5], 100 * h[1:2]))):
        action = phi_action(m, steps, [x[: len(steps)] for x in terms])
        for i in range(len(steps)):
            functions = matrix_phis(m * steps[i, 0, 0], 3)
            expected = sum(x[i] @ f for x, f in zip(terms, functions, strict=False))
            torch.testing.assert_close(action[i], expected, rtol=1e-12, atol=1e-13 * float(expected.abs().max()))
            alone = phi_action(m, steps[i : i + 1], [x[i : i + 1] for x in terms])
            torch.testing.assert_close(action[i : i + 1], alone, rtol=1e-13, atol=1e-14 * float(expected.abs().max()))
    assert torch.equal(
        phi_action(m, torch.zeros(6, 1, 1, dtype=F64), [terms[0], *(0 * x for x in terms[1:])]), terms[0]
    )


def test_a_sample_that_is_not_a_number_stays_alone():
    m, x = matrix(3, 6), torch.ones(3, 1, 3, dtype=F64)
    for bad in (math.nan, math.inf):
        action = phi_action(m, torch.tensor([0.5, bad, 1.5], dtype=F64).reshape(3, 1, 1), [x, x])
        assert torch.isfinite(action[[0, 2]]).all() and not torch.isfinite(action[1]).all()


def test_gradients_of_the_action():
    m, h = matrix(3, 6, 2.0).requires_grad_(), torch.tensor([0.3, 2.0], dtype=F64).reshape(2, 1, 1).requires_grad_()
    terms = [torch.randn(2, 1, 3, dtype=F64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda m, h, *terms: phi_action(m, h, terms), (m, h, *terms))


def combined(operator, h, terms):
    return operator.phis(h, len(terms) - 1, terms[0])(terms)


@pytest.mark.parametrize(
    "h",
    [0.7, torch.tensor(0.7, dtype=F64), torch.tensor([[0.7], [0.2]], dtype=F64), torch.tensor([0.1, 0.5], dtype=F64)],
)
def test_operators_agree_where_they_describe_the_same(h):
    """A diagonal one and its dense matrix; an oscillator of one channel and its dense block."""
    terms = [torch.randn(2, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    values = torch.tensor([-0.8, 1.9], dtype=F64)
    diagonal, dense = DiagonalOperator(values), DenseOperator(torch.diag(values))
    for count in (1, 2, 4):
        torch.testing.assert_close(
            combined(diagonal, h, terms[:count]), combined(dense, h, terms[:count]), rtol=1e-13, atol=1e-14
        )
    torch.testing.assert_close(diagonal.apply(terms[0]), dense.apply(terms[0]))
    torch.testing.assert_close(diagonal.solve(h, terms[0]), dense.solve(h, terms[0]))
    torch.testing.assert_close(diagonal.flow(h, terms[0]), dense.flow(h, terms[0]))
    if isinstance(h, torch.Tensor) and h.dim() == 1:
        return
    oscillator, block = OscillatorOperator(3.0, 0.7), torch.tensor([[0.0, -3.0], [1.0, -0.7]], dtype=F64)
    flipped = combined(DenseOperator(block), h, [x.transpose(-1, -2) for x in terms])
    torch.testing.assert_close(combined(oscillator, h, terms), flipped.transpose(-1, -2), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("operator", [OscillatorOperator(1.5, 0.8), DiagonalOperator(-0.8)])
def test_numbers_are_computed_in_double_precision_and_tensors_in_their_own(operator):
    x = torch.randn(2, 2, 3, dtype=F64)
    terms = [x.float()] * 3
    expected = combined(operator, 0.4, [x.float().double()] * 3)
    for h in (0.4, torch.tensor([[0.4], [0.4]])):
        combination = combined(operator, h, terms)
        assert combination.dtype == torch.float32
        torch.testing.assert_close(combination.double(), expected, rtol=1e-6, atol=1e-6)


def test_operators_are_values():
    assert OscillatorOperator(1.0, 2.0) == OscillatorOperator(1.0, 2.0) != OscillatorOperator(1.0, 3.0)
    used = OscillatorOperator(1.0, 2.0)
    used.flow(0.3, torch.ones(1, 2, 1))
    assert used == OscillatorOperator(1.0, 2.0) and repr(used) == "OscillatorOperator(stiffness=1.0, damping=2.0)"
