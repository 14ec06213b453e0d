"""A linear input current, computed inside the steps instead of being stored for all of them.

u = V x + b is as large as a component of all the states: a loop that reads x and computes u where it needs it keeps
neither u nor its gradient.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from torch import Tensor

from solvers.base.control import Held, Paths
from solvers.base.loop import Loop
from solvers.base.modules import parameters_of
from solvers.base.series import Mapped, Series
from solvers.methods.brownian import Driven
from solvers.methods.impulsive import Arriving
from solvers.protocol import Time

#: Features up to which the map is arithmetic between the products of a step; that of more is a product of its own.
FEATURES = 8


@dataclass(frozen=True)
class InputMap:
    """Makes the path of an interval from its sample; two are the same where the field calls its tensors the same.

    Attributes:
        names: of weight and bias in the field.
        weight: `(channels, features)`.
        bias: `(channels,)`, or None.
    """

    names: tuple[str | None, ...]
    weight: Tensor = field(compare=False)
    bias: Tensor | None = field(compare=False)

    def __call__(self, value: Tensor) -> MappedPath:
        """The path of one interval."""
        return MappedPath(value, self)


@dataclass(eq=False)
class MappedPath:
    """u(t) = V x + b; the value is x, `(batch, features)`, or `(batch, features, 1)` to add feature by feature."""

    value: Tensor
    kind: InputMap

    def __call__(self, t: Time) -> Tensor:
        """The current, at any time."""
        rows = self.kind.weight.t()
        if self.value.dim() == 2:
            u = self.value @ rows
        else:
            u = self.value[:, 0] * rows[0]
            for k in range(1, len(rows)):
                u = u + self.value[:, k] * rows[k]
        return u if self.kind.bias is None else u + self.kind.bias


def with_input_map(loop: Loop, many: bool) -> Loop:
    """The loop with its currents computed inside the steps where they are linear; in `many` features too, if wanted."""
    paths = loop.paths
    if isinstance(paths, Paths) and paths.kind in (Arriving, Driven):
        inner = with_input_map(dataclasses.replace(loop, paths=paths.columns["path"]), many)
        return dataclasses.replace(loop, paths=Paths(paths.kind, **{**paths.columns, "path": inner.paths}))
    if not isinstance(paths, Paths) or paths.kind is not Held:
        return loop
    samples = paths.columns["value"]
    features = samples.x.shape[-1] if isinstance(samples, Mapped) else 0
    if not isinstance(samples, Mapped) or not features or (features > FEATURES and not many):
        return loop
    names = {id(t): key for key, t in parameters_of(loop.field).items()}
    own = tuple(names.get(id(t)) for t in (samples.weight, samples.bias) if t is not None)
    if None in own:
        return loop
    input_map = InputMap(own, samples.weight, samples.bias)
    x = samples.x if features > FEATURES else samples.x.unsqueeze(-1)
    return dataclasses.replace(loop, paths=Paths(input_map, value=Series(x)))
