"""The phi-functions of exponential methods: of numbers, of 2x2 oscillator blocks and of matrices.

    phi_0(z) = exp(z),    phi_k+1(z) = (phi_k(z) - 1/k!) / z,    phi_k(0) = 1/k!

Each is accurate near zero, where that recurrence cancels, and far from it, where the series converges too late, and
its gradients are finite everywhere. Wherever two ways of computing meet in one tensor, both run on all of it, each on
arguments that are harmless to it: no gradient then meets an overflow or a division by zero of the way not taken.

Source: Hochbruck & Ostermann, Exponential integrators, Acta Numerica 19 (2010), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.fx.experimental.proxy_tensor
from torch import Tensor

from solvers.base.precision import unlowered, widened
from solvers.base.values import concrete

#: Halvings of a matrix whose norm is not known, which may then be 2^23.
MOST = 24

#: Numbers alpha and beta that stand for alpha + beta N; see `oscillator_phis`.
Pair = tuple[Tensor, Tensor]

#: The entries of a 2x2 block in reading order.
TwoByTwo = tuple[Tensor, Tensor, Tensor, Tensor]


def _terms(dtype: torch.dtype, order: int, radius: float) -> int:
    """Terms of the series of phi_order that matter at |z| = radius."""
    threshold, n = torch.finfo(dtype).eps / 4, 1
    while radius**n * math.factorial(order) / math.factorial(order + n) > threshold:
        n += 1
    return n


def _constant(value: float, like: Tensor) -> Tensor:
    """A number as a tensor without axes, which `addcmul` takes in one pass over memory."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def phis(z: Tensor, order: int) -> list[Tensor]:
    """phi_0 .. phi_order of every entry of z, real or complex: a series inside a circle, else recurrence."""
    # Each step of the recurrence divides its rounding by z: one of them bears a smaller circle, with a shorter series.
    radius = 1.0 if order > 1 else 0.1
    small = z.detach().abs() < radius
    near, far = torch.where(small, z, 0.0), torch.where(small, 1.0, z)
    n = _terms(z.dtype, order, radius)
    series = [torch.full_like(z, 1 / math.factorial(n + order))]
    for k in range(n + order - 1, 0, -1):
        # Down the series of phi_order, then down the orders: the step is the same.
        head = torch.addcmul(_constant(1 / math.factorial(k), z), near, series[0])
        series = [head, *series] if k < order else [head]
    recurrence = torch.expm1(far) if not z.is_complex() else torch.exp(far) - 1
    values = [torch.exp(z)]
    for k in range(1, order + 1):
        recurrence = recurrence / far
        values.append(torch.where(small, series[k - 1], recurrence))
        recurrence = recurrence - 1 / math.factorial(k)
    return values


def oscillator_phis(h: Tensor, stiffness: Tensor, damping: Tensor, order: int) -> list[TwoByTwo]:
    """phi_0 .. phi_order of h L with L = [[0, 1], [-stiffness, -damping]], one block for every entry.

    With a = damping / 2, m = -a h and N = h L - m, whose square is y = (a^2 - stiffness) h^2, every function of h L is

        f(h L) = alpha + beta N,    alpha = (f(m + r) + f(m - r)) / 2,    beta = (f(m + r) - f(m - r)) / 2r,    r^2 = y.

    The pair (alpha, beta) is had in one of three ways. Both eigenvalues m + r and m - r are small: by the series, in
    the algebra of such pairs. They are real and well apart: from the function of each. Otherwise neither is small, and
    the recurrence is stable. Critical damping, y = 0, is inside the first and the last and passes unnoticed.
    """
    h, stiffness, damping = torch.broadcast_tensors(h, stiffness, damping)
    a = damping / 2
    m, y, product = -a * h, (a * a - stiffness) * h * h, stiffness * h * h
    real, apart = _real_eigenvalues(h, a, stiffness)
    pairs = [_exponential(m, y, h, real, apart)]
    if order:
        size = m.detach().abs() + y.detach().abs().sqrt()
        small, split = size <= 2, apart & (size > 2)
        series = _by_series(torch.where(small, m, 0.0), torch.where(small, y, 0.0), order)
        separate = _by_eigenvalues(torch.where(split, real[0], 1.0), torch.where(split, real[1], 2.0), order)
        recurrence = _by_recurrence(pairs[0], m, torch.where(small | split, 1.0, product), order)
        for ways in zip(series, separate, recurrence, strict=True):
            alpha, beta = (torch.where(small, s, torch.where(split, e, r)) for s, e, r in zip(*ways, strict=True))
            pairs.append((alpha, beta))
    return [(alpha - m * beta, h * beta, -h * stiffness * beta, alpha + m * beta) for alpha, beta in pairs]


def _real_eigenvalues(h: Tensor, a: Tensor, stiffness: Tensor) -> tuple[Pair, Tensor]:
    """The eigenvalues of h L where they are real and more than 1 apart, and where that is."""
    difference = a * a - stiffness
    apart = (difference * h * h).detach() > 1 / 4
    root = torch.where(apart, difference, 1.0).sqrt()
    # The small one is the quotient of their product by the large one: as a difference it would cancel.
    large = torch.where(apart, a + torch.where(a.detach() < 0, -root, root), 1.0)
    return (torch.where(apart, -h * large, 1.0), torch.where(apart, -h * stiffness / large, 2.0)), apart


def _exponential(m: Tensor, y: Tensor, h: Tensor, real: Pair, apart: Tensor) -> Pair:
    """The pair of exp(h L): exp(m) times cosh(r) and sinh(r) / r."""
    near, turning = y.detach().abs() <= 1 / 4, y.detach() < -1 / 4
    decay = torch.exp(torch.where(apart, 0.0, m))
    close = torch.where(near, y, 0.0)
    one = _constant(1.0, y)
    even = odd = one
    for k in range(7, 0, -1):
        even = torch.addcmul(one, close, even, value=1 / (2 * k * (2 * k - 1)))
        odd = torch.addcmul(one, close, odd, value=1 / (2 * k * (2 * k + 1)))
    angle = torch.where(turning, -y, 1.0).sqrt()
    ((alpha, beta),) = _divided([(torch.exp(real[0]), torch.exp(real[1]))], real)
    return (
        torch.where(apart, alpha, decay * torch.where(turning, torch.cos(angle), even)),
        torch.where(apart, beta, decay * torch.where(turning, torch.sin(angle) / angle, odd)),
    )


def _divided(values: Sequence[Pair], real: Pair) -> list[Pair]:
    """The pairs of functions with given values at two real eigenvalues."""
    return [((f + g) / 2, (f - g) / (real[0] - real[1])) for f, g in values]


def _by_eigenvalues(first: Tensor, second: Tensor, order: int) -> list[Pair]:
    """The pairs of phi_1 .. phi_order from their values at two real eigenvalues."""
    values = phis(torch.stack((first, second)), order)[1:]
    return _divided([(f[0], f[1]) for f in values], (first, second))


def _by_series(m: Tensor, y: Tensor, order: int) -> list[Pair]:
    """The pairs of phi_1 .. phi_order where |m| + |r| <= 2."""
    n = _terms(m.dtype, order, 2.0)
    alpha, beta = torch.full_like(m, 1 / math.factorial(n + order)), torch.zeros_like(m)
    pairs: list[Pair] = []
    for k in range(n + order - 1, 0, -1):
        constant = _constant(1 / math.factorial(k), m)
        alpha, beta = torch.addcmul(torch.addcmul(constant, m, alpha), y, beta), torch.addcmul(alpha, m, beta)
        if k <= order:
            pairs.insert(0, (alpha, beta))
    return pairs


def _by_recurrence(exponential: Pair, m: Tensor, product: Tensor, order: int) -> list[Pair]:
    """The pairs of phi_1 .. phi_order, (phi_k-1 - 1/(k-1)!) (h L)^-1, with `product` that of the eigenvalues."""
    alpha, beta = exponential
    pairs = []
    for k in range(order):
        previous = beta
        beta = (m * beta - alpha + 1 / math.factorial(k)) / product
        alpha = previous - m * beta
        pairs.append((alpha, beta))
    return pairs


def matrix_phis(matrix: Tensor, order: int) -> list[Tensor]:
    """phi_0 .. phi_order of each matrix `(*batch, n, n)`, for order >= 1, by scaling and squaring.

    The matrix is halved until its norm is at most 1/2, phi_order is its series to degree 15, the others follow from
    phi_k-1(z) = z phi_k(z) + 1/(k-1)!, and all are doubled back together. Each matrix of a batch is halved as often as
    it needs by itself. Under a function transform, or while a step is recorded, norms cannot be looked at: then all go
    through `MOST` doublings, and what needs more is NaN.

    All in single precision at least, rounded to the type of the matrix at the end.

    Source: Skaflestad & Wright, The scaling and modified squaring method for matrix functions related to the
    exponential, Appl. Numer. Math. 59 (2009).
    """
    with unlowered(matrix.device.type):
        return [function.to(matrix.dtype) for function in _matrix_phis(widened(matrix), order)]


def _matrix_phis(matrix: Tensor, order: int) -> list[Tensor]:
    # Not detached, which a recorded step could not be differentiated through; ceil has no derivative anyway.
    norm = torch.nan_to_num(matrix.abs().sum(-2).amax(-1), nan=0.0, posinf=0.0) + torch.finfo(matrix.dtype).tiny
    halvings = torch.ceil(torch.log2(2 * norm)).clamp(min=0)[..., None, None]
    x = matrix * torch.exp2(-halvings)
    identity = torch.diag_embed(torch.ones_like(matrix[..., 0, :]))
    square = x @ x
    powers = (identity, x, square, square @ x)
    fourth = square @ square

    def chunk(first: int) -> Tensor:
        terms = (power / math.factorial(order + first + i) for i, power in enumerate(powers))
        return sum(terms, torch.zeros_like(identity))

    top = chunk(12)
    for first in (8, 4, 0):
        top = top @ fourth + chunk(first)
    values = [top]
    for k in range(order - 1, -1, -1):
        values.insert(0, x @ values[0] + identity / math.factorial(k))
    recorded = torch.fx.experimental.proxy_tensor.get_proxy_mode() is not None
    known = concrete(halvings) and not recorded
    for i in range(int(halvings.max()) if known else MOST):
        values = [torch.where(i < halvings, new, old) for new, old in zip(_doubled(values), values, strict=True)]
    return values if known else [torch.where(halvings > MOST, torch.nan, f) for f in values]


def _doubled(values: list[Tensor]) -> list[Tensor]:
    """phi_k(2 z) from phi_k(z): 2^-k (phi_0 phi_k + sum_j phi_j / (k - j)!), j = 1 .. k."""
    products = (values[0] @ torch.cat(values, dim=-1)).chunk(len(values), dim=-1)
    return [
        sum((values[j] / math.factorial(k - j) for j in range(1, k + 1)), product) / 2**k
        for k, product in enumerate(products)
    ]


def phi_action(matrix: Tensor, h: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """sum_k phi_k(h L) x_k for the `terms` x_0, x_1, .. with L x = x M, without a matrix for each step size.

    `h` broadcasts against the terms. The sum solves w' = h L w + sum_k s^(k-1) / (k-1)! x_k from w(0) = x_0 at s = 1:
    it is taken in as many pieces as keep h L below 1 in each, every sample in its own number of them, each piece by
    its series. Where that takes more products than the matrices would, or nobody can know, they are used.

    Source: Al-Mohy & Higham, Computing the action of the matrix exponential, SIAM J. Sci. Comput. 33 (2011).
    """
    with unlowered(matrix.device.type):
        moved = _phi_action(widened(matrix), widened(h), [widened(x) for x in terms])
    return moved.to(terms[0].dtype)


def _phi_action(matrix: Tensor, h: Tensor, terms: Sequence[Tensor]) -> Tensor:
    norm = (h.detach().abs() * matrix.detach().abs().sum(-2)).amax(-1, keepdim=True)
    norm = torch.nan_to_num(norm, nan=0.0, posinf=0.0)
    pieces = torch.ceil(norm).clamp(min=1)
    count = int(pieces.max()) if concrete(pieces) else None
    if count is None or count > matrix.shape[-1]:
        functions = _matrix_phis(matrix * h, max(len(terms) - 1, 1))
        return sum((x @ f for x, f in zip(terms[1:], functions[1:], strict=False)), terms[0] @ functions[0])
    n = max(_terms(matrix.dtype, 0, float((norm / pieces).max())), len(terms))
    part, w = 1 / pieces, terms[0]
    for i in range(count):
        total = u = w
        for k in range(1, n + 1):
            u = (u @ matrix) * (h * part / k)
            if k < len(terms):
                u = u + part**k / math.factorial(k) * _shifted(terms[k:], i * part)
            total = total + u
        w = torch.where(i < pieces, total, w) if i else total
    return w


def _shifted(terms: Sequence[Tensor], s: Tensor) -> Tensor:
    """sum_j s^j / j! x_j."""
    return sum((s**j / math.factorial(j) * x for j, x in enumerate(terms[1:], 1)), terms[0])
