"""The clock of a sampled input: when each interval starts and how long it lasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.base.series import Series
from solvers.protocol import Time


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
        starts = (exact.cumsum(-1) - exact).to(spans.dtype)
        if spans.dim() == 1 and not spans.requires_grad and not torch.compiler.is_compiling():
            return cls(tuple(starts.tolist()), tuple(spans.tolist()))
        if spans.dim() == 1:
            return cls(starts.unbind(0), spans.unbind(0))
        return cls(Series(starts.unsqueeze(-1)), Series(spans.unsqueeze(-1)))

    def time_at(self, interval: int, sample: int | None = None) -> float:
        """The time at which an interval starts, of one sample where clocks differ (the first one when not given)."""
        start = self.starts[interval]
        if not isinstance(start, Tensor):
            return float(start)
        return float(start.detach().reshape(-1)[(sample or 0) if start.dim() else 0])
