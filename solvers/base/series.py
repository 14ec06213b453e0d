"""A tensor seen as a sequence over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


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
        self._recorded = torch.is_grad_enabled()

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The slices."""
        if self._parts is None:
            # Whoever asks first may look at values alone; the next one may need their graph.
            with torch.set_grad_enabled(self._recorded):
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


class Mapped(Series):
    """The slices of x W^T + b, computed when first asked for: who can take x as it is may do without the product.

    Attributes:
        x: `(batch, time, features)`.
        weight: W, `(channels, features)`.
        bias: b, `(channels,)`, or None.
    """

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        self._whole: Tensor | None = None
        self._parts = None
        self._recorded = torch.is_grad_enabled()

    @property
    def whole(self) -> Tensor:  # type: ignore[override]
        """`(batch, time, channels)`."""
        if self._whole is None:
            with torch.set_grad_enabled(self._recorded):
                self._whole = functional.linear(self.x, self.weight, self.bias)
        return self._whole

    def __len__(self) -> int:
        return self.x.shape[1]
