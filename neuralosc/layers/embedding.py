"""Tokens as vectors that are trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralosc import arguments
from solvers.base.values import concrete
from solvers.errors import InputError


class Embedding(nn.Embedding):
    """A trained vector for each token, by its number n; NaN, which is not observed, stays.

        z = E[n],    in training  z = m[n] E[n] / (1 - p),  m[n] 0 with probability p, else 1

    Dropout takes away whole tokens: m is drawn for each of them anew in every call, and a token that is dropped is
    dropped wherever it stands in the batch.

    Args:
        tokens: how many there are, with the numbers 0 to tokens - 1.
        features: of a vector.
        dropout: p.

    Attributes:
        weight: E, `(tokens, features)`, drawn as in `torch.nn.Embedding`.

    Raises:
        InputError: sizes or a probability that are none.

    Source: Gal & Ghahramani, A theoretically grounded application of dropout in recurrent neural networks, NeurIPS 2016
    (the mask); Merity, Keskar & Socher, Regularizing and optimizing LSTM language models, ICLR 2018 (one for a batch).
    """

    def __init__(self, tokens: int, features: int, dropout: float = 0.0) -> None:
        super().__init__(arguments.count("tokens", tokens), arguments.count("features", features))
        self.tokens, self.features = tokens, features
        self.dropout = arguments.probability("dropout", dropout)

    def forward(self, input: Tensor, valid: Tensor | None = None) -> Tensor:
        """The vectors `(.., features)` of tokens `(.., 1)`; 0 in the padding, to which no gradient goes.

        Where values cannot be looked at, as in an exported program, the vector of a number that is no token is NaN.

        Args:
            input: numbers of tokens, of any type that holds them exactly.
            valid: which are none of the padding, where anything may stand, `(..)`; None for all.

        Raises:
            InputError: shapes that do not fit, or numbers that are no tokens.
        """
        self._check(input)
        numbers = input.squeeze(-1)
        # Small integers would be compared in their own type, which may not hold the number of tokens.
        numbers = numbers if numbers.is_floating_point() else numbers.long()
        inside = (numbers >= 0) & (numbers < self.tokens)
        rows = torch.where(inside, numbers, 0).long()
        lost = ~(inside & (rows == numbers))
        lost = lost if valid is None else lost & valid
        vectors = functional.embedding(rows, self.weight)
        if self.training and self.dropout:
            kept = functional.dropout(torch.ones_like(self.weight[:, :1]), self.dropout)
            vectors = vectors * functional.embedding(rows, kept)
        if not concrete(lost) or bool(lost.any()):
            self._require_missing(numbers, lost)
            vectors = torch.where(lost.unsqueeze(-1), math.nan, vectors)
        return vectors if valid is None else torch.where(valid.unsqueeze(-1), vectors, 0.0)

    def _require_missing(self, numbers: Tensor, lost: Tensor) -> None:
        """Refuse what is no token, unless it is NaN."""
        wrong = lost & ~numbers.isnan()
        if concrete(wrong) and bool(wrong.any()):
            place = tuple(int(i) for i in wrong.nonzero()[0])
            raise InputError(
                f"x is {numbers[place].item():g} at {place}, expected the number of a token, 0 to {self.tokens - 1}"
            )

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
            given = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"the tokens are {given}, expected a tensor of whole numbers")
        if x.dim() < 2 or x.shape[-1] != 1:
            raise InputError(f"the tokens have shape {tuple(x.shape)}, expected (.., 1)")
        if x.is_floating_point():
            largest = round(2 / torch.finfo(x.dtype).eps)
            if self.tokens > largest:
                raise InputError(
                    f"x has dtype {x.dtype}, which holds whole numbers up to {largest} alone exactly, and there are "
                    f"{self.tokens} tokens: give integers"
                )

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return f"tokens={self.tokens}, features={self.features}, dropout={self.dropout:g}"
