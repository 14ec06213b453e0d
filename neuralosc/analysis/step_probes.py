"""What becomes of the sequences of a network at one time between two samples, measured and by stability functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import solvers
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import STATE_BYTES, watched
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.solution import Solution
from solvers.base.clock import Clock
from solvers.base.drive import is_controlled
from solvers.base.substeps import step_counts
from solvers.errors import NumericalError, PairingError
from solvers.numerics.stability import RationalStability, SplittingStability
from solvers.protocol import structure

#: A derivative of the last state by the first that is this close to the identity: the sequence has passed over a
#: network that has hardly moved, so that what it gives is a sum of its inputs.
STILL = 0.1
#: How far, in factors of two from the network's own dt, others are tried, and how often the ends are then halved.
REACH, HALVINGS = 6, 3
#: States at which eigenvalues are taken.
POINTS = 16
#: Steps times the largest eigenvalue at which the first unstable one is looked for.
LENGTHS = (1e-3, 1e3, 601)

EXPLODES, VANISHES, STANDS, UNSTABLE, FAILS = (
    "the gradient explodes",
    "the gradient vanishes",
    "the network hardly moves",
    "the step is unstable",
    "the state leaves the numbers",
)


@dataclass(frozen=True)
class Probe:
    """What becomes of a sequence at one dt.

    Attributes:
        dt: time between two samples whose timespan is 1.
        largest: largest singular value of the derivative of the last state by the first, of the sequence with the most.
        middle: the same of the median sequence.
        moved: how far that derivative is from the identity, root mean square over directions, of the median sequence.
        growth: by what factor the steps let a mode grow over a sequence that the equation does not, the largest over
            eigenvalues; None where the method has no stability function.
        faults: what is wrong with it; empty where nothing is.
    """

    dt: float
    largest: float
    middle: float
    moved: float
    growth: float | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Probing:
    """A network and sequences at which it is tried."""

    rnn: ContinuousRNN | None
    data: Samples
    bounds: tuple[float, float]
    eigenvalues: tuple[np.ndarray, ...] = ()
    stability: Any = None
    path: str = "there is no solver"

    @property
    def net(self) -> ContinuousRNN:
        """The network, where there is one."""
        assert self.rnn is not None
        return self.rnn

    @property
    def spans(self) -> np.ndarray:
        """Timespans of all samples, `(batch, time)`, 0 in the padding."""
        valid = self.data.valid
        spans = torch.ones_like(valid, dtype=torch.float64) if self.data.timespans is None else self.data.timespans
        return torch.where(valid, spans.expand(valid.shape), 0.0).detach().cpu().double().numpy()

    def informed(self, seed: int) -> Probing:
        """With eigenvalues and a stability function, where there are any."""
        net = self.net
        fields = [net.layer(i) for i in range(net.num_layers)]
        if net.solver.adaptive:
            return replace(self, path=f"{net.solver.name} chooses its steps: measured alone")
        try:
            stability = solvers.stability(net.solver)
        except PairingError:
            return replace(self, path=f"{net.solver.name} has no stability function: measured alone")
        if not isinstance(stability, RationalStability | SplittingStability):
            return replace(self, path=f"the stability of {net.solver.name} has two parts: measured alone")
        if any("differential" not in structure(field) or is_controlled(field) for field in fields):
            return replace(self, path="the field has no eigenvalues of its own: measured alone")
        for halving in range(2 * REACH):
            try:
                solution = self._solved(net.dts[0] / 2**halving)
            except NumericalError:
                continue
            values = tuple(self._eigenvalues(solution, layer, seed) for layer in range(net.num_layers))
            if all(np.isfinite(v).all() for v in values):
                path = f"R(h lambda) of {net.solver.name} at {POINTS} states, and measured"
                return replace(self, eigenvalues=values, stability=stability, path=path)
        return replace(self, path="no trajectory at which to take eigenvalues: measured alone")

    def all(self, dts: Sequence[float] | None, progress: bool | None) -> tuple[Probe, ...]:
        """Probes of all dts, and of some between the ends of the range and the next."""
        own = self.net.dts[0]
        wanted = [own * 2.0**k for k in range(-REACH, REACH + 1)] if dts is None else [float(dt) for dt in dts]
        probes = [self.probe(dt) for dt in watched(wanted, "dt", progress)]
        for _ in range(HALVINGS):
            probes.sort(key=lambda probe: probe.dt)
            here = stretch(probes, own)
            if here is None:
                break
            first, last = (probes.index(end) for end in here)
            edges = [(i, i + 1) for i in (first - 1, last) if 0 <= i < len(probes) - 1]
            probes += [self.probe(math.sqrt(probes[a].dt * probes[b].dt)) for a, b in edges]
        return tuple(sorted(probes, key=lambda probe: probe.dt))

    def probe(self, dt: float) -> Probe:
        """What becomes of the sequences at this dt."""
        lowest, highest = self.bounds
        growth = self._growth(dt) if self.eigenvalues else None
        faults = [UNSTABLE] if growth is not None and growth > highest else []
        try:
            solution = self._solved(dt)
            measured = [self._measured(dt, solution, layer) for layer in range(self.net.num_layers)]
        except NumericalError:
            return Probe(dt, math.inf, math.inf, math.inf, growth, (FAILS, *faults))
        largest, middle = max(m[0] for m in measured), min(m[1] for m in measured)
        moved = min(m[2] for m in measured)
        checks = ((largest > highest, EXPLODES), (middle < lowest, VANISHES), (moved < STILL, STANDS))
        return Probe(dt, largest, middle, moved, growth, (*(name for wrong, name in checks if wrong), *faults))

    def _at(self, dt: float) -> ContinuousRNN:
        # Layers of steps of their own keep their proportions.
        steps = [dt * each / self.net.dts[0] for each in self.net.dts]
        return self.net.with_solver(self.net.solver, dt=steps, gradient="backprop")

    @torch.no_grad()
    def _solved(self, dt: float) -> Solution:
        return self._at(dt).solve(**self.data.inputs)  # type: ignore[arg-type]

    def _measured(self, dt: float, solution: Solution, layer: int) -> tuple[float, float, float]:
        """Largest singular value of the worst and of the median sequence, and the median distance from the identity."""
        product = self._product(self._at(dt), solution, layer)
        # What has overflowed is as large as anything.
        if not bool(torch.isfinite(product).all()):
            return math.inf, math.inf, math.inf
        norms = torch.linalg.matrix_norm(product, 2)
        moved = (product - torch.eye(product.shape[-1]).to(product)).norm(dim=(1, 2))
        return float(norms.max()), float(norms.median()), float(moved.median()) / math.sqrt(product.shape[-1])

    def _product(self, rnn: ContinuousRNN, solution: Solution, layer: int) -> Tensor:
        """The derivative of the last state by the first, `(batch, n, n)`, many steps of all sequences at once."""
        before, x, spans, times = _steps(solution, layer)
        batch, time = x.shape[:2]
        size = before[0, 0].numel()
        product = torch.eye(size).to(before).expand(batch, -1, -1)
        valid = self.data.valid[..., None, None]
        length = max(1, STATE_BYTES // (8 * 4 * size**2 * batch))
        clocked = self.data.timespans is not None
        for start in range(0, time, length):
            rows = slice(start, start + length)
            step = _step(
                rnn, x[:, rows].flatten(0, 1), spans[:, rows].flatten(), layer, times[:, rows].flatten(), clocked
            )
            jacobians = solvers.Transition(step).jacobian(before[:, rows].flatten(0, 1)).unflatten(0, (batch, -1))
            # In the padding nothing happens.
            jacobians = torch.where(valid[:, rows], jacobians, torch.eye(size).to(before))
            for jacobian in jacobians.unbind(1):
                product = jacobian @ product
        return product

    def _eigenvalues(self, solution: Solution, layer: int, seed: int) -> np.ndarray:
        """Of the field at some states on the trajectories."""
        field = self.net.layer(layer)
        before, x, _, times = _steps(solution, layer)
        (places,) = self.data.valid.flatten().nonzero(as_tuple=True)
        chosen = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:POINTS]]
        states, u = before.flatten(0, 1)[chosen], field.drive(x.flatten(0, 1)[chosen].unsqueeze(1)).squeeze(1)
        t = times.flatten()[chosen].unsqueeze(-1) * self.net.dts[layer]
        jacobians = solvers.slope(field, u.detach(), t).jacobian(states)
        if not bool(torch.isfinite(jacobians).all()):
            return np.array([math.nan])
        values: np.ndarray = torch.linalg.eigvals(jacobians).flatten().cpu().numpy()
        return values

    def _growth(self, dt: float) -> float:
        """By what factor the steps let a mode grow over a sequence that the equation does not, at most."""
        worst = 0.0
        for layer, values in enumerate(self.eigenvalues):
            pace = dt * self.net.dts[layer] / self.net.dts[0]
            spans, total = self.spans * pace, 0.0
            clock = Clock.of_spans(torch.from_numpy(spans)) if self.data.timespans is not None else None
            longest = self._at(dt)._longest(layer, clock)
            counts = step_counts(spans, self.net.substeps, longest, torch.float64)
            lengths, places = np.unique(spans / counts, return_inverse=True)
            steps = np.bincount(places.reshape(-1), counts.reshape(-1), len(lengths)) / len(spans)
            for length, count in zip(lengths, steps, strict=True):
                total = total + count * _excess(self.stability, length * values)
            worst = max(worst, float(np.max(total)))
        return math.exp(min(worst, 700.0))

    def longest(self) -> float | None:
        """The longest step in units of the network's own dt that can be taken as often as there are samples."""
        if not self.eigenvalues:
            return None
        limits, allowed = [], math.log(self.bounds[1]) / float(self.data.valid.sum(1).max())
        for layer, values in enumerate(self.eigenvalues):
            fastest = float(np.abs(values).max())
            steps = np.geomspace(*LENGTHS) / max(fastest, 1e-300)
            first = next((i for i, h in enumerate(steps) if self._largest(h * values) > allowed), None)
            if first is None or not fastest:
                continue
            low, high = steps[max(first - 1, 0)], steps[first]
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (low, middle) if self._largest(middle * values) > allowed else (middle, high)
            limits.append(low / self.net.dts[layer])
        return min(limits, default=math.inf)

    def _largest(self, z: np.ndarray) -> float:
        return float(np.max(_excess(self.stability, z)))

    def bound(self, own: float) -> str:
        """What is said of the longest step."""
        longest = self.longest()
        if longest is None or not math.isfinite(longest):
            return ""
        gap = float(self.spans.max())
        return f" A step is stable up to {longest:.3g} times its own dt (max_dt), the longest gap is {gap:.3g} long."


def _step(
    rnn: ContinuousRNN, x: Tensor, spans: Tensor, layer: int, times: Tensor, clocked: bool
) -> Callable[[Tensor], Tensor]:
    """One sample as a map of states."""
    return lambda state: rnn.transition(state, x, spans if clocked else None, layer, times)


def _steps(solution: Solution, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The state before each sample, what goes in, the timespan and the time before it, `(batch, time, ..)` each."""
    states, x = solution.layers[layer], solution.inputs[layer]
    before = torch.cat((solution.start[layer].unsqueeze(1).to(states), states[:, :-1]), 1)
    spans = solution.spans(layer).expand(x.shape[:2]).to(x)
    return before, x.detach(), spans, spans.cumsum(1) - spans


def _excess(stability: Any, z: np.ndarray) -> np.ndarray:
    """How much a step at z = h lambda adds to the logarithm of a mode beyond what the equation does, at least 0."""
    if isinstance(stability, SplittingStability):
        # Drifts and kicks are stable, or not, on oscillations; modes that only decay are no matter of theirs.
        # Of determinant 1, the matrix has eigenvalues t +- sqrt(t^2 - 1), t half its trace.
        half = np.abs(np.trace(stability(np.abs(z)), axis1=-2, axis2=-1)) / 2
        size = np.where(half > 1, half + np.sqrt(np.maximum(half**2 - 1, 0.0)), 1.0)
        size = np.where(np.abs(z.imag) > 1e-9 * np.abs(z), size, 0.0)
    else:
        size = np.abs(stability(z))
    with np.errstate(divide="ignore"):
        excess: np.ndarray = np.maximum(np.log(size) - np.maximum(z.real, 0.0), 0.0)
    return excess


def stretch(probes: Sequence[Probe], own: float) -> tuple[Probe, Probe] | None:
    """The first and last probe of the stretch around the network's own dt, or else of the widest."""
    stretches: list[list[Probe]] = [[]]
    for probe in probes:
        if probe.faults:
            stretches.append([])
        else:
            stretches[-1].append(probe)
    found = [(stretch[0], stretch[-1]) for stretch in stretches if stretch]
    around = [ends for ends in found if ends[0].dt <= own <= ends[1].dt]
    return max(around or found, key=lambda ends: ends[1].dt / ends[0].dt, default=None)
