"""Linear operators L of semilinear fields: product L x, solve (1 - h L)^-1 x and flow exp(h L) x.

Each acts on a state `(*batch, components, hidden)`; h is a number, or a tensor that broadcasts against
`(*batch, hidden)`, so every sample and channel may have its own step size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from solvers.protocol import Time


class LinearOperator(Protocol):
    """What a semilinear field hands to a solver as its linear part."""

    def apply(self, state: Tensor) -> Tensor:
        """L x."""
        ...

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """(1 - h L)^-1 x."""
        ...

    def flow(self, h: Time, state: Tensor) -> Tensor:
        """exp(h L) x."""
        ...


@dataclass(frozen=True)
class OscillatorOperator:
    """One 2x2 block per channel, L = [[0, 1], [-stiffness, -damping]] on (q, p).

    Attributes:
        stiffness: A, a number or `(hidden,)`.
        damping: G, a number or `(hidden,)`.
    """

    stiffness: float | Tensor
    damping: float | Tensor

    def apply(self, state: Tensor) -> Tensor:
        """(p, -A q - G p)."""
        q, p = state.unbind(-2)
        return torch.stack((p, -self.stiffness * q - self.damping * p), dim=-2)

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """Closed form: p+ = (p - h A q) / (1 + h G + h^2 A), q+ = q + h p+."""
        q, p = state.unbind(-2)
        p = (p - h * self.stiffness * q) / (1 + h * self.damping + h * h * self.stiffness)
        return torch.stack((q + h * p, p), dim=-2)

    def flow(self, h: Time, state: Tensor) -> Tensor:
        """Closed form of the damped oscillator, smooth across critical damping.

        With a = G/2 and d = A - a^2: q(h) = (C + a S) q + S p and p(h) = -A S q + (C - a S) p, where
        C = exp(-a h) cos(sqrt(d) h) and S = exp(-a h) sin(sqrt(d) h) / sqrt(d), continued analytically to d <= 0.
        """
        q, p = state.unbind(-2)
        a = torch.as_tensor(self.damping, dtype=q.dtype, device=q.device) / 2
        stiffness = torch.as_tensor(self.stiffness, dtype=q.dtype, device=q.device)
        c, s = _damped_cosine_sine(torch.as_tensor(h, dtype=q.dtype, device=q.device), a, stiffness - a * a)
        return torch.stack(((c + a * s) * q + s * p, -stiffness * s * q + (c - a * s) * p), dim=-2)


def _damped_cosine_sine(h: Tensor, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-a h) (cos(w h), sin(w h) / w) for w^2 = d of either sign, with finite gradients at d = 0."""
    x = d * h * h
    # Below the first threshold the series is exact to rounding; the guarded square root keeps gradients finite there.
    small = x.abs() < 1e-4
    w = torch.where(small, torch.ones_like(x), d.abs() * torch.ones_like(x)).sqrt()
    decay = torch.exp(-a * h)
    # cosh and sinh are written with the decay inside the exponentials: cosh alone overflows for strong damping.
    grow, fade = torch.exp((w - a) * h), torch.exp(-(w + a) * h)
    grow, fade = (torch.where((d < 0) & ~small, e, decay) for e in (grow, fade))
    cosine = torch.where(d < 0, (grow + fade) / 2, decay * torch.cos(w * h))
    sine = torch.where(d < 0, (grow - fade) / (2 * w), decay * torch.sin(w * h) / w)
    series_c = decay * (1 - x / 2 + x**2 / 24 - x**3 / 720)
    series_s = decay * h * (1 - x / 6 + x**2 / 120 - x**3 / 5040)
    return torch.where(small, series_c, cosine), torch.where(small, series_s, sine)


@dataclass(frozen=True)
class DenseOperator:
    """A matrix that acts from the right on every component, L x = x M.

    Attributes:
        matrix: M, `(hidden, hidden)`.
    """

    matrix: Tensor

    def apply(self, state: Tensor) -> Tensor:
        """X M."""
        return state @ self.matrix

    def _scaled(self, h: Time) -> Tensor:
        """H M, one matrix per sample where h has one value per sample; h per channel scales the columns."""
        return self.matrix * (h.unsqueeze(-2) if isinstance(h, Tensor) and h.dim() > 0 else h)

    def solve(self, h: Time, state: Tensor) -> Tensor:
        """X (1 - h M)^-1."""
        system = torch.diag(torch.ones_like(self.matrix[0])) - self._scaled(h)
        solved: Tensor = torch.linalg.solve(system, state, left=False)
        return solved

    def flow(self, h: Time, state: Tensor) -> Tensor:
        """X exp(h M)."""
        exponential: Tensor = torch.linalg.matrix_exp(self._scaled(h))
        return state @ exponential
