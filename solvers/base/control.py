"""Controls: what the input current u is between the samples.

A control turns the sampled currents into one path per interval, `path(t) -> u`, which solvers ask at their stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.base import slopes
from solvers.base.clock import Clock
from solvers.base.pieces import Arc, Cubic, Lagging, Parabola, Ramp
from solvers.base.pieces import Held as Held
from solvers.base.registry import Registry
from solvers.base.series import Series
from solvers.errors import InputError
from solvers.protocol import ControlPath, Time

#: From the samples and the clock to one path per interval.
PathsOf = Callable[[Sequence[Tensor], Clock], Sequence[ControlPath]]


@dataclass(frozen=True)
class Control:
    """How samples u_i at the ends of the intervals become a path on each interval.

    Attributes:
        name: the registered name.
        paths: from the samples and the clock to one path per interval.
        memory: how many samples (and spans) before the last one the path of an interval depends on; of a causal one.
        causal: the path of an interval depends on no sample after the one that ends it.
        derivatives: the same for the derivatives du/dt, 0 before the first sample and where an interval is empty; None
            for a control whose paths jump from sample to sample, or look ahead of the first one.
    """

    name: str
    paths: PathsOf
    memory: int = 0
    causal: bool = True
    derivatives: PathsOf | None = None


def is_between(path: ControlPath) -> bool:
    """Whether a path goes from sample to sample: it is neither held nor a function of the user's own."""
    return dataclasses.is_dataclass(path) and not isinstance(path, Held)


class Paths(Sequence[ControlPath]):
    """The paths of all intervals, each made when asked for.

    Attributes:
        kind: the dataclass of a path.
        columns: the values of each of its fields, one per interval.
    """

    def __init__(self, kind: Callable[..., ControlPath], **columns: Sequence[Any]) -> None:
        self.kind, self.columns = kind, columns

    def settle(self) -> None:
        """Compute what waits to be asked for; inside a stretch that a gradient takes again it would be twice."""
        for column in self.columns.values():
            if isinstance(column, Paths):
                column.settle()
            elif isinstance(column, Series) and len(column):
                column[0]

    def __len__(self) -> int:
        return min(map(len, self.columns.values()))

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return self.kind(**{name: column[i] for name, column in self.columns.items()})


def _hold(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    return Paths(Held, value=samples)


def _rectilinear(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    return Paths(Held, value=_before(samples))


def _before(samples: Sequence[Tensor]) -> Sequence[Tensor]:
    """The sample before each; the first one stands for what was before it, so that no path looks ahead."""
    return samples.delayed() if isinstance(samples, Series) else [*samples[:1], *samples[:-1]]


def _linear(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    return Paths(Ramp, start=clock.starts, span=clock.spans, first=_before(samples), last=samples)


def _ahead(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    after = samples.advanced() if isinstance(samples, Series) else [*samples[1:], *samples[-1:]]
    return Paths(Ramp, start=clock.starts, span=clock.spans, first=samples, last=after)


def _cubic(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    turns = []
    for i, (span, first, last) in enumerate(zip(clock.spans, _before(samples), samples, strict=True)):
        # Behind the first interval with samples at both ends there is no difference: that one is its chord.
        turns.append(last - first if i < 2 else _slope_behind(samples[i - 2], clock.spans[i - 1], first, span, last))
    return Paths(Cubic, start=clock.starts, span=clock.spans, first=_before(samples), last=samples, slope=turns)


def _slope_behind(earlier: Tensor, before: Time, first: Tensor, span: Time, last: Tensor) -> Tensor:
    """The slope of the interval behind in units of this one; that of this one where the interval behind is empty."""
    if not isinstance(before, Tensor):
        return (first - earlier) * (span / before) if before else last - first
    empty = before == 0
    return torch.where(empty, last - first, (first - earlier) * (span / torch.where(empty, 1.0, before)))


def _natural(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    bends = slopes.bends(slopes.rates(samples, clock.spans), clock.spans)
    return Paths(
        Arc,
        start=clock.starts,
        span=clock.spans,
        first=_before(samples),
        last=samples,
        bend=_before(bends),
        bend_last=bends,
    )


def _steady(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    """The derivatives of ramps."""
    return Paths(Held, value=slopes.rates(samples, clock.spans))


def _lagging(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    rates = slopes.rates(samples, clock.spans)
    return Paths(Lagging, start=clock.starts, before=slopes.behind(rates, clock.spans), value=rates)


def _cubic_slopes(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    rates = slopes.rates(samples, clock.spans)
    left = slopes.behind(rates, clock.spans)
    turns = [rate - first for rate, first in zip(rates, left, strict=True)]
    return Paths(
        Parabola,
        start=clock.starts,
        span=clock.spans,
        first=left,
        linear=[4 * turn for turn in turns],
        square=[-3 * turn for turn in turns],
    )


def _natural_slopes(samples: Sequence[Tensor], clock: Clock) -> Sequence[ControlPath]:
    rates = slopes.rates(samples, clock.spans)
    bends = slopes.bends(rates, clock.spans)
    knots = list(zip(clock.spans, _before(bends), bends, strict=True))
    return Paths(
        Parabola,
        start=clock.starts,
        span=clock.spans,
        first=[rate - (2 * m + n) * (h / 6) for rate, (h, m, n) in zip(rates, knots, strict=True)],
        linear=[m * h for h, m, _ in knots],
        square=[(n - m) * (h / 2) for h, m, n in knots],
    )


def part(path: ControlPath, j: int, n: int) -> ControlPath:
    """The path during step j of n equal ones: a piece of its noise, where it has some, else the path itself."""
    cut: Callable[[int, int], ControlPath] | None = getattr(path, "part", None)
    return path if cut is None or n == 1 else cut(j, n)


def entries(path: Any) -> list[str]:
    """Names of the values a path is made of: the fields of its dataclass, but for `kind`, which makes it of them."""
    return [field.name for field in dataclasses.fields(path) if field.name != "kind"]


def path_tensors(path: ControlPath) -> dict[str, Tensor]:
    """The tensors a path is made of, by name: what a gradient of the input flows to. A function names none."""
    if not dataclasses.is_dataclass(path):
        return {}
    tensors: dict[str, Tensor] = {}
    for name, value in ((name, getattr(path, name)) for name in entries(path)):
        if isinstance(value, Tensor):
            tensors[name] = value
        elif callable(value):
            tensors.update({f"{name}.{inner}": tensor for inner, tensor in path_tensors(value).items()})
    return tensors


def with_path_tensors(path: ControlPath, tensors: dict[str, Tensor]) -> ControlPath:
    """The same path made of other tensors."""
    if not tensors:
        return path
    changes: dict[str, Any] = {name: value for name, value in tensors.items() if "." not in name}
    nested: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        outer, _, inner = name.partition(".")
        if inner:
            nested.setdefault(outer, {})[inner] = value
    changes.update({name: with_path_tensors(getattr(path, name), values) for name, values in nested.items()})
    replaced: ControlPath = dataclasses.replace(path, **changes)  # type: ignore[type-var]
    return replaced


def mixed(paths: Sequence[ControlPath], index: Tensor, rows: Tensor) -> ControlPath:
    """One path that is, for its sample r, sample `rows[r]` of `paths[index[r]]`.

    Raises:
        InputError: the paths are not of one dataclass, so that they cannot be mixed.
    """
    kind = paths[0]
    if not dataclasses.is_dataclass(kind) or len({type(path) for path in paths}) > 1:
        raise InputError(
            "samples that are in different intervals of their input need a control whose paths are of one dataclass: "
            "use one of solvers.CONTROLS, or times shared by all samples"
        )
    values = {}
    for name in entries(kind):
        parts = [getattr(path, name) for path in paths]
        if isinstance(parts[0], Tensor):
            values[name] = torch.stack(torch.broadcast_tensors(*parts))[index, rows]
    chosen: ControlPath = dataclasses.replace(kind, **values)  # type: ignore[type-var]
    return chosen


CONTROLS: Registry[Control] = Registry("control")
#: u = u_i on the whole interval that ends at sample i: what a recurrent network does.
CONTROLS.add("hold", Control("hold", _hold))
#: From u_{i-1} to u_i on the interval that ends at sample i.
CONTROLS.add("linear", Control("linear", _linear, memory=1, derivatives=_steady))
#: The same path. Its derivative at a sample, where it jumps, is the one before the sample: a method that asks for it
#: at the start of a step is told the slope of the interval behind, as by torchcde.
CONTROLS.add("linear_lagging", Control("linear_lagging", _linear, memory=2, derivatives=_lagging))
#: From u_i to u_{i+1} on the interval that ends at sample i, which stands for the value at its start: the first-order
#: hold of signal processing. The last sample is held.
CONTROLS.add("linear_noncausal", Control("linear_noncausal", _ahead, causal=False))
#: Hermite cubics with backward differences: as smooth as a path can be that knows no later sample.
#: Source: Morrill, Kidger, Yang, Lyons, Neural Controlled Differential Equations for Online Prediction Tasks, 2021.
CONTROLS.add("cubic", Control("cubic", _cubic, memory=2, derivatives=_cubic_slopes))
#: The natural cubic spline through all samples, twice differentiable: each piece knows all of them.
#: Source: Kidger, Morrill, Foster, Lyons, Neural Controlled Differential Equations for Irregular Time Series, 2020.
CONTROLS.add("natural", Control("natural", _natural, causal=False, derivatives=_natural_slopes))
#: u_{i-1} on the interval that ends at sample i: at no time does the state know a sample not taken yet. The path of
#: Morrill et al. moves along time and input in turn; its moves along the input take no time.
CONTROLS.add("rectilinear", Control("rectilinear", _rectilinear, memory=1))


def get_control(control: str | Control) -> Control:
    """The control of a name; a Control value is returned as it is."""
    if isinstance(control, Control):
        return control
    if not isinstance(control, str):
        raise InputError(f"control is {control!r}, expected a name or a Control: choose among {', '.join(CONTROLS)}")
    return CONTROLS[control]
