"""Scalar functions that appear in energies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

#: Terms of the series below, enough for double precision where they are used.
TERMS = 12


def log_cosh(x: Tensor) -> Tensor:
    """log(cosh(x)) to full relative precision, without overflow for large x; its derivative is tanh(x)."""
    small = x.detach().abs() < 1
    near, far = torch.where(small, x, 0.0), torch.where(small, 1.0, x).abs()
    return torch.where(
        small, torch.log1p(2 * torch.sinh(near / 2).square()), far + functional.softplus(-2 * far) - math.log(2)
    )


def mean_tanh(u: Tensor, d: Tensor) -> Tensor:
    """The mean of tanh from u to u + d: (log cosh(u + d) - log cosh(u)) / d, and tanh(u) where d is 0.

    Where d is small, cosh(u + d) / cosh(u) = 1 + d g with g = tanh(u) sinh(d) / d + 2 sinh(d / 2)^2 / d has its digits,
    and those of the quotient are the ones of log(1 + d g) / (d g) and of g, which have series.
    """
    small = d.detach().abs() < 1
    near, far = torch.where(small, d, 0.0), torch.where(small, 1.0, d)
    g = torch.tanh(u) * _sinhc(near) + near / 2 * _sinhc(near / 2).square()
    return torch.where(small, g * _log1p_quotient(near * g), (log_cosh(u + far) - log_cosh(u)) / far)


def _sinhc(x: Tensor) -> Tensor:
    """sinh(x) / x for |x| <= 1."""
    total, square = torch.ones_like(x), x.square()
    for k in range(TERMS, 0, -1):
        total = 1 + square / (2 * k * (2 * k + 1)) * total
    return total


def _log1p_quotient(y: Tensor) -> Tensor:
    """log(1 + y) / y."""
    small = y.detach().abs() < 0.05
    near, far = torch.where(small, y, 0.0), torch.where(small, 1.0, y)
    total = torch.zeros_like(y)
    for k in range(TERMS, 0, -1):
        total = 1 / k - near * total
    return torch.where(small, total, torch.log1p(far) / far)
