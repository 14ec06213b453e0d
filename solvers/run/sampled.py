"""Inputs of a one-call solve: known samples at given times, and the intervals between which they are smooth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.base.clock import Clock, is_late
from solvers.base.control import Control, get_control, mixed
from solvers.base.solver import Solver
from solvers.base.values import exact, followed, host, working
from solvers.errors import InputError
from solvers.protocol import ControlPath, Time


@dataclass(frozen=True)
class Sampled:
    """An input current known at sample times.

    Between two samples it follows the control; before the first and after the last that sample is repeated. No step
    goes across a sample, where a path may jump or bend.

    Attributes:
        samples: u, `(batch, samples, channels)`.
        times: when each was taken, `(samples,)` or `(batch, samples)`, not decreasing.
        control: a name of `solvers.CONTROLS` or a value. "hold" is u_i on the interval that ends at sample i.
    """

    samples: Tensor
    times: Tensor
    control: str | Control = "hold"

    def __post_init__(self) -> None:
        u, times = self.samples, self.times
        if not isinstance(u, Tensor) or u.dim() != 3 or not u.shape[1]:
            got = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            raise InputError(f"samples of an input are {got}, expected (batch, samples, channels)")
        if not isinstance(times, Tensor) or tuple(times.shape) not in (u.shape[1:2], u.shape[:2]):
            got = tuple(times.shape) if isinstance(times, Tensor) else type(times).__name__
            raise InputError(
                f"times of an input are {got}, expected {tuple(u.shape[1:2])} or {tuple(u.shape[:2])}: one per sample"
            )
        if not bool(torch.isfinite(times).all()) or bool((times.diff(dim=-1) < 0).any()):
            raise InputError("times of an input must be finite and not decrease: sort the samples by time")
        get_control(self.control)

    def paths(self, per_sample: bool) -> Sequence[ControlPath]:
        """The path before the first sample, those between two, and the one after the last."""
        return self.paths_on(self.samples.dtype, per_sample)

    def paths_on(self, clock: torch.dtype, per_sample: bool) -> Sequence[ControlPath]:
        """The same, to be asked at times of type `clock`."""
        times = self.times.to(exact(self.times.device, self.times.dtype))
        # After the last sample no time passes for a path, which is there at its end: it neither bends nor goes on.
        spans = torch.nn.functional.pad(torch.nn.functional.pad(times.diff(dim=-1), (1, 0), value=1.0), (0, 1))
        starts = torch.cat((times[..., :1] - 1, times), -1)
        samples = self.samples.unbind(1)
        if per_sample or times.requires_grad or times.dim() == 2:
            starts, spans = starts.to(clock), spans.to(self.samples.dtype)
            t, dt = (x.expand(len(self.samples), -1).unsqueeze(-1).unbind(1) for x in (starts, spans))
        else:
            t, dt = (tuple(host(x).tolist()) for x in (starts, spans))
        return get_control(self.control).paths([*samples, samples[-1]], Clock(tuple(t), tuple(dt)))


def spans_of(bounds: Tensor) -> Tensor:
    """Lengths of intervals, of which none ends beyond its bound by the rounding of start + length."""
    spans = bounds.diff(dim=-1)
    fixed, length = bounds.detach(), spans.detach()
    beyond = (fixed[..., :-1] + length - fixed[..., 1:]) * length.sign() > 0
    if not bool(beyond.any()):
        return spans
    return spans - torch.where(beyond, length - torch.nextafter(length, torch.zeros_like(length)), 0.0)


@dataclass(frozen=True)
class Segments:
    """Intervals on each of which the input is smooth, for a list of times that are ends of intervals.

    Attributes:
        bounds: ends of the intervals, `(count + 1,)` or `(batch, count + 1)`, in the direction of the times.
        paths: the input on each interval.
        clock: the type of the times at which the paths are asked for, where these are tensors.
        places: index of each time among the bounds, `(times,)` or `(batch, times)`; None where they are the bounds.
    """

    bounds: Tensor
    paths: Sequence[ControlPath]
    clock: torch.dtype
    places: Tensor | None = None

    @classmethod
    def of(cls, times: Tensor, control: ControlPath | Sampled, dtype: torch.dtype) -> Segments:
        """The intervals between times, cut where a sampled input may jump.

        Their clock is of type `dtype`, or of the type of the times where `dtype` does not tell apart those within an
        interval.
        """
        count = max(1, times.shape[-1] - 1, control.times.shape[-1] - 1 if isinstance(control, Sampled) else 0)
        span = (times[..., -1] - times[..., 0]) / count
        clock = times.dtype if working(dtype) != dtype or is_late(times[..., 0], span, dtype) else dtype
        if not isinstance(control, Sampled):
            return cls(times, [control] * (times.shape[-1] - 1), clock)
        knots = control.times.to(times)
        if times.dim() == knots.dim() == 1:
            low, high = times.detach().min(), times.detach().max()
            knots = knots[(knots > low) & (knots < high)]
        shape = torch.broadcast_shapes(times.shape[:-1], knots.shape[:-1])
        times, knots = times.expand(*shape, -1), knots.expand(*shape, -1)
        # A sample outside of the times is moved to their ends, where it makes an interval of length zero.
        ends = times[..., [0, -1]].sort(-1).values
        merged = torch.cat((times, torch.minimum(torch.maximum(knots, ends[..., :1]), ends[..., 1:])), -1)
        backward = times[..., -1:] < times[..., :1]
        order = torch.where(backward, -merged, merged).detach().argsort(dim=-1, stable=True)
        bounds = merged.gather(-1, order)
        middle = ((bounds[..., 1:] + bounds[..., :-1]) / 2).detach()
        index = torch.searchsorted(
            control.times.detach().to(times).expand(*shape, -1).contiguous(), middle.contiguous()
        )
        paths = control.paths_on(clock, len(shape) > 0)
        chosen = [_chosen(paths, i) for i in index.unbind(-1)]
        return cls(bounds, chosen, clock, order.argsort(dim=-1)[..., : times.shape[-1]])

    def driven(self, solver: Solver, dtype: torch.dtype) -> Segments:
        """The segments with the noise that a solver wants: what a later cut into steps leaves the same."""
        starts, spans = zip(*self.columns(dtype), strict=True) if self.count else ((), ())
        return dataclasses.replace(self, paths=solver.driven(self.paths, Clock(starts, spans)))

    @property
    def count(self) -> int:
        """Number of intervals."""
        return len(self.paths)

    def columns(self, dtype: torch.dtype) -> Iterator[tuple[Time, Time]]:
        """Start and span of each interval: numbers where they are shared and fixed, else tensors that broadcast."""
        spans = spans_of(self.bounds)
        if self.bounds.dim() == 1 and not followed(self.bounds):
            return zip(host(self.bounds).tolist(), host(spans).tolist(), strict=False)
        starts, spans = self.bounds.to(self.clock), spans.to(dtype)
        if self.bounds.dim() == 2:
            starts, spans = starts.unsqueeze(-1), spans.unsqueeze(-1)
        axis = self.bounds.dim() - 1
        return zip(starts.unbind(axis), spans.unbind(axis), strict=False)


def _chosen(paths: Sequence[ControlPath], index: Tensor) -> ControlPath:
    """The path of one index, or one path made of a different one for each sample."""
    first = int(index.reshape(-1)[0]) if index.numel() else 0
    if bool((index == first).all()):
        return paths[first]
    return mixed(paths, index, torch.arange(len(index), device=index.device))
