"""How good a forecast is that says how sure it is: scores of normal distributions and of samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from solvers.errors import InputError


def gaussian_nll(mean: Tensor, log_std: Tensor, targets: Tensor) -> Tensor:
    """-log N(y | m, s^2) of each target, with l = log s.

        ((y - m) e^-l)^2 / 2 + l + log(2 pi) / 2

    Args:
        mean, log_std: m and l, of one shape, or of shapes that go together.
        targets: y; where it is NaN the score is, too.

    Returns:
        in the units of log y.
    """
    z = (targets - mean) * torch.exp(-log_std)
    return z.square() / 2 + log_std + math.log(2 * math.pi) / 2


def gaussian_crps(mean: Tensor, std: Tensor, targets: Tensor) -> Tensor:
    """The continuous ranked probability score of N(m, s^2) at each target, in the units of y; less is better.

        integral of (F(x) - [x >= y])^2 dx = (y - m) erf(z / sqrt 2) + s (2 phi(z) - 1 / sqrt pi),    z = (y - m) / s

    F is the distribution function, phi the standard normal density. With s = 0, a forecast that says one number, it is
    |y - m|; its slope in s is not defined there.

    Source: T. Gneiting, A. E. Raftery, Strictly proper scoring rules, prediction, and estimation, JASA 102 (2007).

    Args:
        mean, std: m and s, of one shape, or of shapes that go together.
        targets: y; where it is NaN the score is, too.

    Raises:
        InputError: a standard deviation below 0.
    """
    if bool((std < 0).any()):
        raise InputError(f"std goes down to {float(std.min()):g}: expected standard deviations, at least 0")
    error = targets - mean
    z = error / std.clamp_min(torch.finfo(error.dtype).tiny)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return error * torch.erf(z / math.sqrt(2)) + std * (2 * density - 1 / math.sqrt(math.pi))


def sample_crps(samples: Tensor, targets: Tensor) -> Tensor:
    """The continuous ranked probability score of what samples were drawn from, at each target, without bias.

        mean over i of |x_i - y|  -  sum over i < j of |x_i - x_j| / (m (m - 1))

    Its mean over many draws of m samples is the score of their distribution, whatever m. (With m^2 in the place of
    m (m - 1), which makes it the score of the m samples themselves, few samples look worse than many.) Of few samples
    it may be negative.

    Source: C. A. T. Ferro, Fair scores for ensemble forecasts, Q. J. R. Meteorol. Soc. 140 (2014).

    Args:
        samples: x, `(m, ..)`, at least two, as `ContinuousRNN.sample_paths` draws them.
        targets: y, `(..)`; where it is NaN the score is, too.

    Raises:
        InputError: less than two samples, or shapes that do not fit.
    """
    count = len(samples) if samples.dim() else 0
    if count < 2 or samples.shape[1:] != targets.shape:
        raise InputError(
            f"samples have shape {tuple(samples.shape)}, and targets {tuple(targets.shape)}: expected two samples at "
            "least, of the shape of the targets each"
        )
    # The distances of samples from the target, which are smaller than they: sums of them keep more digits.
    away = (samples - targets).sort(0).values
    # Of the differences x_j - x_i of sorted ones each comes in j - 1 times, and goes out m - j times.
    rank = torch.arange(1 - count, count, 2, dtype=away.dtype, device=away.device) / (count * (count - 1))
    score: Tensor = away.abs().mean(0) - torch.tensordot(rank, away, 1)
    return score
