"""The clock of a sampled input: when each interval starts and how long it lasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.base.series import Series
from solvers.base.values import concrete, working
from solvers.protocol import Time

#: How finely times must be told apart, as a part of the time in question.
RESOLUTION = 2**-10


def is_late(first: Time, span: Time, dtype: torch.dtype) -> bool:
    """Whether `dtype` cannot tell times from `first` on apart: they lie further from zero than it has digits for.

    So are stamps in seconds since 1970 in float32, whose neighbours are 128 seconds apart. Of half precision, which
    resolves no time to a thousandth, a few of its own units are asked.
    """
    if torch.compiler.is_compiling():
        # No value is known then.
        return False
    eps = torch.finfo(dtype).eps
    needed = max(RESOLUTION, 4 * eps)
    if not isinstance(first, Tensor) and not isinstance(span, Tensor):
        return span != 0 and eps * abs(first) > needed * abs(span)
    first, span = (torch.as_tensor(value).detach().double() for value in (first, span))
    return bool(((eps * first.abs() > needed * span.abs()) & (span != 0)).any())


@dataclass(frozen=True)
class Clock:
    """Intervals between samples; interval i ends at sample i.

    Attributes:
        starts: time at which each interval starts: numbers, or tensors `(batch, 1)` for clocks that differ per sample.
        spans: length of each interval, likewise.
    """

    starts: Sequence[Time]
    spans: Sequence[Time]

    def __len__(self) -> int:
        return len(self.spans)

    @classmethod
    def uniform(cls, length: int, dt: float | Tensor) -> Clock:
        """`length` intervals of `dt`."""
        return cls(tuple(i * dt for i in range(length)), (dt,) * length)

    @classmethod
    def of_spans(cls, spans: Tensor) -> Clock:
        """Intervals of given lengths: `(time,)` shared by all samples, or `(batch, time)`."""
        # Times are summed in float64 so that the clock of a long sequence does not drift in float32.
        exact = spans.double() if spans.device.type != "mps" else spans
        starts = exact.cumsum(-1) - exact
        if spans.dim() == 1 and not spans.requires_grad and not torch.compiler.is_compiling():
            return cls(tuple(starts.tolist()), tuple(spans.tolist()))
        # Half precision has not the digits for some hundred intervals.
        starts = starts.to(working(spans.dtype))
        if spans.dim() == 1:
            return cls(starts.unbind(0), spans.unbind(0))
        return cls(Series(starts.unsqueeze(-1)), Series(spans.unsqueeze(-1)))

    def from_first(self) -> Clock:
        """The same, where no time passes before the first sample."""
        if not len(self):
            return self
        if isinstance(self.spans, Series):
            whole = self.spans.whole
            return Clock(self.starts, Series(torch.cat((torch.zeros_like(whole[:, :1]), whole[:, 1:]), dim=1)))
        first = self.spans[0]
        still = torch.zeros_like(first) if isinstance(first, Tensor) else 0.0
        return Clock(self.starts, (still, *self.spans[1:]))

    @property
    def tensors(self) -> bool:
        """Whether its times are tensors."""
        return len(self) > 0 and isinstance(self.starts[0], Tensor)

    def finer(self, dtype: torch.dtype) -> bool:
        """Whether its times are tensors of a type that has digits which `dtype` has not."""
        return self.tensors and torch.promote_types(self.starts[0].dtype, dtype) != dtype  # type: ignore[union-attr]

    def late(self, dtype: torch.dtype, parts: int = 1) -> bool:
        """Whether `dtype` cannot tell the times of a clock apart; see `is_late`."""
        if not len(self):
            return False
        first, last, span = self.starts[0], self.starts[-1], self.spans[-1]
        if isinstance(first, Tensor) and not concrete(first):
            return False
        return is_late(first, (last + span - first) / parts, dtype)

    def time_at(self, interval: int, sample: int | None = None) -> float:
        """The time at which an interval starts, of one sample where clocks differ (the first one when not given)."""
        start = self.starts[interval]
        if not isinstance(start, Tensor):
            return float(start)
        return float(start.detach().reshape(-1)[(sample or 0) if start.dim() else 0])
