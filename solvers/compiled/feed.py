"""A linear input current of few features, computed inside the steps instead of being stored for all of them.

Of u = V x + b with two features, x is small and u is as large as a component of all the states: a loop that reads x and
computes u where it needs it keeps neither u nor its gradient.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from solvers.control import Held, Paths
from solvers.leaves import parameters_of
from solvers.protocol import Time
from solvers.series import Mapped, Series

if TYPE_CHECKING:
    from solvers.loop import Loop

#: Features up to which the products inside the steps cost less than the current's way through memory.
FEATURES = 8


@dataclass(frozen=True)
class Feed:
    """Makes the path of an interval from its sample; two are the same where the field calls its tensors the same.

    Attributes:
        names: of weight and bias in the field.
        weight: `(channels, features)`.
        bias: `(channels,)`, or None.
    """

    names: tuple[str | None, ...]
    weight: Tensor = field(compare=False)
    bias: Tensor | None = field(compare=False)

    def __call__(self, value: Tensor) -> Fed:
        """The path of one interval."""
        return Fed(value, self)


@dataclass(eq=False)
class Fed:
    """u(t) = sum over k of value_k weight_k + bias, with the value `(batch, features, 1)`."""

    value: Tensor
    kind: Feed

    def __call__(self, t: Time) -> Tensor:
        """The current, at any time."""
        rows = self.kind.weight.t()
        u = self.value[:, 0] * rows[0]
        for k in range(1, len(rows)):
            u = u + self.value[:, k] * rows[k]
        return u if self.kind.bias is None else u + self.kind.bias


def fed(loop: Loop) -> Loop:
    """The loop with its currents computed inside the steps, where they are linear in few features."""
    paths = loop.paths
    if not isinstance(paths, Paths) or paths.kind is not Held:
        return loop
    samples = paths.columns["value"]
    if not isinstance(samples, Mapped) or not 1 <= samples.x.shape[-1] <= FEATURES:
        return loop
    names = {id(t): key for key, t in parameters_of(loop.field).items()}
    own = tuple(names.get(id(t)) for t in (samples.weight, samples.bias) if t is not None)
    if None in own:
        return loop
    feed = Feed(own, samples.weight, samples.bias)
    return dataclasses.replace(loop, paths=Paths(feed, value=Series(samples.x.unsqueeze(-1))))
