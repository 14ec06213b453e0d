"""A tensor seen as a sequence over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Series(Sequence[Tensor]):
    """The slices of a tensor along its second axis, taken when first asked for.

    All at once then: indexing `x[:, i]` again and again makes the backward pass quadratic in time. Who wants the whole
    tensor takes it as it is.

    Attributes:
        whole: `(batch, time, ...)`.
    """

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole
        self._parts: tuple[Tensor, ...] | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The slices."""
        if self._parts is None:
            self._parts = self.whole.unbind(1)
        return self._parts

    def delayed(self) -> Series:
        """Each slice one place later, the first one twice."""
        return Series(torch.cat((self.whole[:, :1], self.whole[:, :-1]), dim=1))

    def advanced(self) -> Series:
        """Each slice one place earlier, the last one twice."""
        return Series(torch.cat((self.whole[:, 1:], self.whole[:, -1:]), dim=1))

    def __len__(self) -> int:
        return self.whole.shape[1]

    def __getitem__(self, i: Any) -> Any:
        return self.parts[i]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parts)
