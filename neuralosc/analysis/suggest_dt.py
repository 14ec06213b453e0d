"""Which time between two samples suits a network: from the stability of its steps and from what gradients become."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import solvers
from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import STATE_BYTES, continuous, precise, shown, watched, without_solver
from neuralosc.field import VectorField
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.solution import Solution
from solvers.base.clock import Clock
from solvers.base.drive import is_controlled
from solvers.base.substeps import step_counts
from solvers.errors import InputError, NumericalError, PairingError
from solvers.numerics.stability import RationalStability, SplittingStability
from solvers.protocol import structure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Between these the largest singular value over a sequence is neither vanished nor exploded. A factor of a thousand
#: either way is what float32, of seven digits, and a common clipping of gradients bear with some to spare.
BOUNDS = (1e-3, 1e3)
#: A derivative of the last state by the first that is this close to the identity: the sequence has passed over a
#: network that has hardly moved, so that what it gives is a sum of its inputs.
STILL = 0.1
#: How far, in factors of two from the network's own dt, others are tried, and how often the ends are then halved.
REACH, HALVINGS = 6, 3
#: Sequences, and steps of all of them together, that are looked at; states at which eigenvalues are taken.
SEQUENCES, STEPS, POINTS = 4, 1024, 16
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
class StepRange(Result):
    """The range of dt; see `suggest_dt`.

    Attributes:
        low, high: its ends; None where there is no such dt. An end at which nothing is wrong is the last that was
            tried.
        own: dt of the network.
        max_dt: the longest step, in units of its own dt, that can be taken at each sample without growing a mode by
            more than the upper bound, for `max_dt=`; infinite where none is too long, None where the method has no
            stability function.
        probes: in ascending order of dt.
        eigenvalues: of the field at states on trajectories, `time_scale` included; empty where none were taken.
        path: how stability was looked at.
        sequences, samples: how many sequences were looked at, and their samples.
        longest_gap: the longest timespan.
        bounds: between which singular values are to lie.
    """

    low: float | None
    high: float | None
    own: float
    max_dt: float | None
    probes: tuple[Probe, ...]
    eigenvalues: np.ndarray
    path: str
    sequences: int
    samples: int
    longest_gap: float
    bounds: tuple[float, float] = BOUNDS

    heading: ClassVar[str] = "Time between two samples"

    def rows(self) -> Sequence[Row]:
        """A row for each dt that was tried."""
        return [
            {
                "dt": probe.dt,
                "largest": probe.largest,
                "median": probe.middle,
                "moved": probe.moved,
                "growth of the step": probe.growth,
                "faults": ", ".join(probe.faults) or "none",
            }
            for probe in self.probes
        ]

    def draw(self, figure: Figure) -> None:
        """Singular values, the move and the growth by dt, with the range."""
        axes = figure.subplots()
        dts = np.array([probe.dt for probe in self.probes])
        lines = (
            ("largest", "largest singular value, worst sequence", "-o"),
            ("middle", "largest singular value, median sequence", "-s"),
            ("moved", "distance from the identity", "-^"),
            ("growth", "growth by the stability function", ":D"),
        )
        for color, (name, label, style) in zip(PALETTE, lines, strict=False):
            values = np.array([math.nan if v is None else v for v in (getattr(p, name) for p in self.probes)], float)
            known = np.isfinite(values) & (values > 0)
            if known.any():
                axes.loglog(dts[known], values[known].clip(1e-9, 1e9), style, label=label, color=color)
        for bound in self.bounds:
            axes.axhline(bound, color=GREY, linestyle="--", linewidth=1)
        axes.axhline(STILL, color=GREY, linestyle=":", linewidth=1)
        if self.low is not None and self.high is not None:
            axes.axvspan(self.low, self.high, color=PALETTE[2], alpha=0.12, label="suggested")
        axes.axvline(self.own, color="black", linewidth=1, label="its own dt")
        axes.set(xlabel="dt, time between two samples", ylabel=f"over {self.samples} samples", ylim=(1e-5, 1e9))
        axes.set_title("From the first state to the last")
        axes.legend(fontsize=8, loc="upper left")


def suggest_dt(
    model: nn.Module,
    data: Any,
    timespans: Tensor | None = None,
    *,
    solver: Any = "rk4",
    dts: Sequence[float] | None = None,
    bounds: tuple[float, float] = BOUNDS,
    samples: int | None = SEQUENCES,
    seed: int = 0,
    progress: bool | None = None,
) -> StepRange:
    """The range of dt over which a network can learn from a batch, at these weights: take it before training.

        M = d x_T / d x_0 = J_T .. J_1,    J_i the derivative of the step of sample i

    A dt is taken where, over the whole of the sequences,

        the largest singular value of M lies within `bounds` (it neither explodes nor vanishes),
        M is further from the identity than a tenth (rms: the network moves at all while the sequence passes),
        no mode grows under the steps by more than the upper bound that the equation does not let grow:
        sum over steps of log |R(h lambda)| - max(0, Re h lambda), over the eigenvalues lambda of the field at states on
        trajectories and the gaps of the data, where the method has a stability function R (`solvers.stability`; of a
        composition of drifts and kicks that of its oscillating modes at h |lambda|).

    The range is the one around the network's own dt, or, if that is not taken, the widest. All layers must agree. It is
    a rule of thumb for training, measured and not proved: it says nothing of accuracy, and less of the weights after
    training.

    Args:
        model: a network of fields and a solver, a `SequenceModel` with one, or a field, which then has dt 1 and
            `solver`.
        data: x `(batch, time, input)`, or what `Samples.of` takes.
        timespans: time since the sample before in units of dt, `(time,)` or `(batch, time)`, unless data has them.
        solver: of a field alone.
        dts: those to try, ascending; by factors of two around the network's own when None. At its ends a range is
            narrowed to a tenth.
        bounds: of the largest singular value.
        samples: sequences looked at, at most; fewer of long ones (1,024 steps together).
        seed: which ones.
        progress: whether there is a bar.

    Raises:
        InputError: what is no network or field, or a control that looks at other samples too.

    Source: the heuristic wanted by Rusch, Pearson & Zygalakis, Constructing gradient controllable recurrent neural
    networks using Hamiltonian dynamics, arXiv 1911.05035 (withdrawn: its bound was shown in one dimension alone), in
    its place a measurement; Hairer & Wanner, Solving Ordinary Differential Equations II, IV.2.
    """
    if isinstance(model, VectorField):
        model = ContinuousRNN(copy.deepcopy(model), solver)
    given = Samples.of(data)
    if timespans is not None:
        given = replace(given, timespans=timespans)
    _check(dts, bounds)
    rule = _rule(bounds)
    if without_solver(model):
        empty = _Probing(None, given, bounds)
        return empty.result((), None, no_claim(without_solver(model), rule), math.nan)
    few = max(1, min(len(given) if samples is None else samples, STEPS // given.x.shape[1]))
    rnn = continuous(precise(model))
    found = shown(precise(model), given.take(few, seed).double())
    with solvers.backend("plain"):
        probing = _Probing(rnn, found, bounds).informed(seed)
        probes = probing.all(dts, progress)
    chosen = _range(probes, rnn.dts[0])
    return probing.result(probes, chosen, _verdict(probes, chosen, rnn.dts[0], probing, rule), rnn.dts[0])


@dataclass(frozen=True)
class _Probing:
    """A network and sequences at which it is tried."""

    rnn: ContinuousRNN | None
    data: Samples
    bounds: tuple[float, float]
    eigenvalues: tuple[np.ndarray, ...] = ()
    stability: Any = None
    path: str = "there is no solver"

    @property
    def net(self) -> ContinuousRNN:
        assert self.rnn is not None
        return self.rnn

    @property
    def spans(self) -> np.ndarray:
        """Timespans of all samples, `(batch, time)`, 0 in the padding."""
        valid = self.data.valid
        spans = torch.ones_like(valid, dtype=torch.float64) if self.data.timespans is None else self.data.timespans
        return torch.where(valid, spans.expand(valid.shape), 0.0).detach().cpu().double().numpy()

    def informed(self, seed: int) -> _Probing:
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
            here = _range(probes, own)
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

    def result(
        self, probes: tuple[Probe, ...], chosen: tuple[Probe, Probe] | None, verdict: Verdict, own: float
    ) -> StepRange:
        """All of it."""
        return StepRange(
            low=chosen[0].dt if chosen else None,
            high=chosen[1].dt if chosen else None,
            own=own,
            max_dt=self.longest(),
            probes=probes,
            eigenvalues=np.concatenate(self.eigenvalues) if self.eigenvalues else np.empty(0),
            path=self.path,
            sequences=len(self.data),
            samples=self.data.x.shape[1],
            longest_gap=float(self.spans.max()),
            bounds=self.bounds,
            verdict=verdict,
            of="flow, map" if self.eigenvalues else "map",
        )


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
        size = np.abs(np.linalg.eigvals(stability(np.abs(z)))).max(-1)
        size = np.where(np.abs(z.imag) > 1e-9 * np.abs(z), size, 0.0)
    else:
        size = np.abs(stability(z))
    with np.errstate(divide="ignore"):
        excess: np.ndarray = np.maximum(np.log(size) - np.maximum(z.real, 0.0), 0.0)
    return excess


def _range(probes: Sequence[Probe], own: float) -> tuple[Probe, Probe] | None:
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


def _rule(bounds: tuple[float, float]) -> str:
    return (
        f"a dt is taken where the largest singular value from the first state to the last is above {bounds[0]:g} "
        f"(median sequence) and at most {bounds[1]:g} (worst sequence), the derivative is further than {STILL:g} from "
        f"the identity, and no mode grows by more than {bounds[1]:g} that the equation does not let grow; of several "
        "stretches that around the network's own dt, or the widest"
    )


def _verdict(
    probes: Sequence[Probe], chosen: tuple[Probe, Probe] | None, own: float, probing: _Probing, rule: str
) -> Verdict:
    numbers = {"own dt": own, "samples": probing.data.x.shape[1], "sequences": len(probing.data)}
    if chosen is None:
        numbers.update({f"{name} at": float(sum(name in p.faults for p in probes)) for name in _names(probes)})
        why = "; ".join(_spread(name, probes) for name in _names(probes))
        return Verdict(f"No dt between {probes[0].dt:.3g} and {probes[-1].dt:.3g} suits: {why}.", numbers, rule)
    low, high = chosen
    longest = probing.longest()
    numbers |= {} if longest is None else {"max_dt": longest}
    numbers |= {"low": low.dt, "high": high.dt, "largest at high": high.largest, "moved at low": low.moved}
    place = "inside" if low.dt <= own <= high.dt else "below" if own < low.dt else "above"
    ends = list(probes)
    first, last = ends.index(low), ends.index(high)
    below = (
        f"at {ends[first - 1].dt:.3g} {_fault(ends[first - 1])}"
        if first
        else f"none shorter than {low.dt:.3g} was tried"
    )
    above = (
        f"at {ends[last + 1].dt:.3g} {_fault(ends[last + 1])}"
        if last + 1 < len(ends)
        else f"none longer than {high.dt:.3g} was tried"
    )
    return Verdict(
        f"At these weights dt from {low.dt:.3g} to {high.dt:.3g} suits sequences of {probing.data.x.shape[1]} samples "
        f"(its own, {own:.3g}, is {place}): {below}, {above}.{probing.bound(own)}",
        numbers,
        rule,
    )


def _names(probes: Sequence[Probe]) -> list[str]:
    return list(dict.fromkeys(name for probe in probes for name in probe.faults))


def _spread(name: str, probes: Sequence[Probe]) -> str:
    dts = [probe.dt for probe in probes if name in probe.faults]
    return f"{name} from {dts[0]:.3g} to {dts[-1]:.3g}" if len(dts) > 1 else f"{name} at {dts[0]:.3g}"


def _fault(probe: Probe) -> str:
    """What is wrong with a probe, with its number."""
    numbers = {
        EXPLODES: f" (largest singular value {probe.largest:.2g})",
        VANISHES: f" (largest singular value {probe.middle:.2g})",
        STANDS: f" ({probe.moved:.2g} from the identity)",
        UNSTABLE: f" (a mode grows by {probe.growth or 0:.2g})",
        FAILS: "",
    }
    return " and ".join(name + numbers[name] for name in probe.faults)


def _check(dts: Any, bounds: Any) -> None:
    """Refuse what are no dts or bounds."""
    if dts is not None and (not len(dts) or any(not dt > 0 for dt in dts) or sorted(dts) != list(dts)):
        raise InputError(f"dts is {dts!r}, expected numbers above 0 in ascending order, or None")
    if len(bounds) != 2 or not 0 < bounds[0] < 1 < bounds[1]:
        raise InputError(f"bounds is {bounds!r}, expected a number below 1 and one above, such as {BOUNDS}")
