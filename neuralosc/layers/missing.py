"""What a network is shown of samples of which some features are missing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuralosc.arguments import HELD
from neuralosc.fields.decay import Decay
from neuralosc.layers import inputs
from solvers.protocol import Time


@dataclass(frozen=True)
class Memory:
    """What is known of the samples so far.

    Attributes:
        last: the last value of each feature, 0 before there was one, `(batch, features)`.
        since: the time since, in units of dt; of a feature that was never seen, since the beginning.
    """

    last: Tensor
    since: Tensor

    @classmethod
    def none(cls, x: Tensor) -> Memory:
        """Of nothing, for samples like these `(batch, .., features)`."""
        empty = x.new_zeros(x.shape[0], x.shape[-1])
        return cls(empty, empty)

    def detach(self) -> Memory:
        """The same, cut off from what it came from."""
        return Memory(self.last.detach(), self.since.detach())


def filled(
    x: Tensor,
    missing: str,
    spans: Tensor | Time | None,
    memory: Memory | None,
    decay: Decay | None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Memory]:
    """What is shown of samples `(batch, time, features)` in which NaN is missing, and what is known after them.

        error   x, and NaN is refused
        hold    the last value of each feature
        mask    that, beside it 1 where it was seen now, else 0, and the time since it was last seen before this sample,
                delta_i = span_i + (1 - mask_i-1) delta_i-1 (Che et al. 2018, eq. 2)
        decay   x where it was seen, else what `Decay` makes of the last value, and the same 1 or 0 beside it

    Args:
        x: the samples.
        missing: one of these.
        spans: time before each sample, `(time,)`, `(batch, time)`, a number or None for ones.
        memory: of samples before these.
        decay: the module of "decay".
        valid: under "hold", which samples are none of the padding, `(batch, time)`; all if left out.

    Raises:
        InputError: infinite values, or NaN under "error".
    """
    known = Memory.none(x) if memory is None else memory
    if missing in HELD:
        if memory is None:
            held = inputs.filled(x, missing, valid)
        else:
            begun = None if valid is None else torch.cat((valid.new_ones(len(x), 1), valid), 1)
            held = inputs.filled(torch.cat((known.last.unsqueeze(1), x), 1), missing, begun)[:, 1:]
        return held, Memory(held[:, -1], known.since)
    seen = ~x.isnan()
    held = inputs.filled(torch.cat((known.last.unsqueeze(1), x), 1), "hold")[:, 1:]
    gaps = _gaps(spans, seen, known.since)
    since = _since(seen, gaps, known.since)
    after, mask = Memory(held[:, -1], since[:, -1]), seen.to(x.dtype)
    if missing == "mask":
        earlier = torch.cat((known.since.unsqueeze(1), since[:, :-1]), 1)
        return torch.cat((held, mask, gaps + earlier), -1), after
    assert decay is not None
    return torch.cat((torch.where(seen, held, decay(held, since)), mask), -1), after


def _gaps(spans: Tensor | Time | None, seen: Tensor, like: Tensor) -> Tensor:
    """The time before each sample, `(batch, time, features)`."""
    gaps = like.new_ones(()) if spans is None else torch.as_tensor(spans).to(like)
    return gaps.expand(seen.shape[:2]).unsqueeze(-1).expand(seen.shape)


def _since(seen: Tensor, gaps: Tensor, before: Tensor) -> Tensor:
    """The time since each feature was seen, 0 where it is seen now, `(batch, time, features)`."""
    clock = gaps.cumsum(1)
    return clock - inputs.at_last_seen(clock, seen, -before.unsqueeze(1))
