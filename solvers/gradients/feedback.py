"""Direct feedback alignment: the error reaches every step through a fixed random matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solvers.base.gradient import GRADIENTS
from solvers.errors import InputError
from solvers.gradients.local import Error, Local, Piece, added, some


@dataclass(frozen=True)
class FeedbackAlignment(Local):
    """Direct feedback alignment: later errors reach each state through a fixed random matrix, not through the steps.

    With x_i the state after interval i and e_i = dL/dx_i the error that the loss has there by itself (not by way of
    later states), the state receives

        delta_i = e_i + B sum_{t > i} e_t,    where backprop has    e_i + sum_{t > i} (dx_t/dx_i)^T e_t,

    and the parameters, the input and the times of the interval get their derivatives of it through that interval alone.
    It is the gradient of no function: a direction, which training may come to align with the gradient. For a single
    interval it is backprop.

    B acts on all components of the state of a sample together, in the form in which the solver carries it, and is the
    same at every step, for every sample, and in every layer whose state has that size. Errors pass between layers, and
    to what makes the input, by backprop. It cannot be differentiated again.

    Attributes:
        seed: of the entries, which are normal and independent. No other generator is touched.
        scale: how large B e is, compared with e, in the mean square over such matrices; positive.
        density: the share of entries of each row that are not zero, at most 1; each row has one at least.

    Source: Nokland, Direct Feedback Alignment Provides Learning in Deep Neural Networks, NeurIPS 2016; for recurrent
    networks Han et al., arXiv:2006.12830 (2020); sparse matrices: Crafton et al., Frontiers in Neuroscience 13 (2019).
    """

    seed: int = 0
    scale: float = 1.0
    density: float = 1.0

    transports: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(
                f"seed of gradient 'feedback_alignment' is {self.seed!r}, expected an integer from 0 to 2^63 - 1"
            )
        for name, most in (("scale", math.inf), ("density", 1.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value <= most or math.isinf(value):
                bound = "" if math.isinf(most) else " of at most 1"
                raise InputError(
                    f"{name} of gradient 'feedback_alignment' is {value!r}, expected a positive number{bound}"
                )

    def matrix(self, size: int) -> Tensor:
        """B for a state of so many entries, in double precision."""
        return _matrix(self.seed, float(self.scale), float(self.density), size).clone()

    def received(self, pieces: Sequence[Piece], errors: Sequence[Error], lead: int) -> Sequence[Error]:
        """Each state's own error, and B times all later ones."""
        found: list[Error] = []
        later: Error | None = None
        fed: Error | None = None
        for piece, error in zip(reversed(pieces), reversed(errors), strict=True):
            found.append(added(fed, error))
            if some(error):
                later = added(later, error)
                fed = self._fed(later, piece.end, lead)
        return found[::-1]

    def _fed(self, error: Error, like: Sequence[Tensor], lead: int) -> Error:
        """B times an error."""
        rows = torch.cat(
            [(torch.zeros_like(x) if e is None else e).flatten(lead) for e, x in zip(error, like, strict=True)], -1
        )
        matrix = _matrix(self.seed, float(self.scale), float(self.density), rows.shape[-1])
        fed = (rows @ matrix.to(rows).T).split([x[(0,) * lead].numel() for x in like], -1)
        return tuple(part.unflatten(-1, x.shape[lead:]) for part, x in zip(fed, like, strict=True))


@functools.lru_cache(maxsize=8)
def _matrix(seed: int, scale: float, density: float, size: int) -> Tensor:
    """Normal entries, so many in each row, whose variance makes up for the others."""
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(size, size, dtype=torch.float64, generator=generator)
    count = max(1, round(density * size))
    places = torch.rand(size, size, dtype=torch.float64, generator=generator).argsort(1)[:, :count]
    return entries.new_zeros(size, size).scatter(1, places, entries.gather(1, places) * (scale / math.sqrt(count)))


GRADIENTS.add("feedback_alignment", FeedbackAlignment("feedback_alignment"))
