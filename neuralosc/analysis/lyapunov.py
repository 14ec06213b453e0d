"""Lyapunov exponents: how fast neighbouring states part or meet, along the samples or by themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

import solvers
from neuralosc.analysis.along import walk
from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import continuous, precise, under, watched
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.sequence_model import SequenceModel
from solvers.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Blocks of time that a run is divided into: their exponents, of all sequences, give the standard error.
BLOCKS = 4

#: Standard errors that an exponent must be from 0 for its sign to be claimed.
APART = 3.0

#: The flow of a network: Runge-Kutta steps in each of its own, and how far half of them may be from that.
FINE, AGREE = 16, 1e-3

#: Jacobians of one chunk of time at most, so that a long run fits the memory.
CHUNK = 4096


@dataclass(frozen=True)
class Lyapunov(Result):
    """What `lyapunov` found.

    Attributes:
        exponents: per unit of time, from the largest, `(k,)`.
        errors: their standard errors, over sequences and blocks of time.
        trace: the running estimates, `(points, k)`, and `times` of them, `(points,)`.
        times: as said.
        divergence: the mean logarithm of the change of volume per unit of time, which all exponents add up to.
        width: numbers of a state.
        steps: of each sequence, without the transient.
        samples: how many sequences.
        step: mean length of a step, in units of time.
        refined: largest change of an exponent when the flow is solved with half as many steps; None of the map.
    """

    exponents: Tensor
    errors: Tensor
    trace: Tensor
    times: Tensor
    divergence: float
    width: int
    steps: int
    samples: int
    step: float
    refined: float | None = None

    heading: ClassVar[str] = "Lyapunov exponents"
    inches: ClassVar[tuple[float, float]] = (10.0, 4.2)

    @property
    def dimension(self) -> float | None:
        """The dimension of Kaplan and Yorke; None where too few exponents are known to tell."""
        sums = self.exponents.cumsum(0)
        if float(self.exponents[0]) < 0:
            return 0.0
        below = (sums < 0).nonzero()
        if not len(below):
            return float(self.width) if len(self.exponents) == self.width else None
        j = int(below[0])
        return j + float(sums[j - 1]) / abs(float(self.exponents[j]))

    @property
    def entropy(self) -> float:
        """The sum of the positive ones, an upper bound of the Kolmogorov-Sinai entropy (Pesin), per unit of time."""
        return float(self.exponents.clamp_min(0).sum())

    def rows(self) -> Sequence[Row]:
        """A row for each exponent."""
        pairs = zip(self.exponents.tolist(), self.errors.tolist(), strict=True)
        return [
            {"number": i, "exponent": value, "+-": error, "per step": value * self.step, "of": self.of}
            for i, (value, error) in enumerate(pairs, 1)
        ]

    def draw(self, figure: Figure) -> None:
        """The spectrum, and how its estimates converge."""
        spectrum, trace = figure.subplots(1, 2)
        numbers = range(1, len(self.exponents) + 1)
        spectrum.axhline(0, color=GREY, linewidth=3, zorder=0.9)
        spectrum.errorbar(numbers, self.exponents, APART * self.errors, fmt="o", color=PALETTE[0], capsize=3)
        spectrum.set(xlabel="number", ylabel="exponent per unit of time", title=f"of the {self.of} ({APART:g} s.e.)")
        spectrum.xaxis.get_major_locator().set_params(integer=True)
        for i in range(min(len(self.exponents), len(PALETTE))):
            trace.plot(self.times, self.trace[:, i], color=PALETTE[i], label=str(i + 1))
        trace.set(xlabel="time averaged over", ylabel="exponent per unit of time", title="as the average grows")
        trace.legend(title="number", fontsize=8)


def lyapunov(
    subject: Any,
    data: Any,
    k: int | None = 8,
    *,
    flow: bool = False,
    layer: int = -1,
    solver: str = "rk4",
    dt: float = 0.01,
    steps: int = 1000,
    transient: float = 0.1,
    samples: int = 8,
    seed: int = 0,
    progress: bool | None = None,
) -> Lyapunov:
    """At which rates do neighbouring states part (positive) or meet (negative)?

        lambda_i = lim 1/t log r_ii(t),    J_n Q_(n-1) = Q_n R_n

    along the run of a network that is driven by its samples, all of them seeing the same input, or along orbits of a
    field alone. The first share of a run, which turns to the directions, does not count.

    The verdict: neighbouring states part if the largest exponent is above 0 by 3 standard errors, and meet if it is
    below by as many; else no claim. Of a field without input a state that parts means chaos; a driven network's
    samples end, and its exponent is that over their length.

    Args:
        subject: a `SequenceModel` or a `ContinuousRNN`, or a field, whose orbits are followed.
        data: samples, as `Samples.of` takes them, for a network; a first state of each orbit, `(batch, components,
            hidden)`, for a field.
        k: how many exponents; None for all.
        flow: of a network: exponents of the equation solved exactly, and not of the steps that are taken.
        layer: of a network: which layer; the last when left out.
        solver, dt, steps: of a field: how its orbits are stepped.
        transient: share of the run that does not count.
        samples: of a network: how many sequences, drawn by `seed`.
        seed: draws them, and the first directions.
        progress: show a bar; None where somebody reads along.

    Raises:
        InputError: a network with noise or in two directions, or one without a solver of several layers or with flow;
            arguments that do not fit.
        NumericalError: the run itself fails.

    Source: Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15 (1980); of driven networks Engelken, Wolf & Abbott,
    Phys. Rev. Research 5 (2023), and Vogt et al., Front. Appl. Math. Stat. 8 (2022).
    """
    if not 0 <= transient < 1:
        raise InputError(f"transient is {transient}, expected a share of the run from 0 to below 1")
    if isinstance(subject, SequenceModel | RecurrentLayer):
        chosen = Samples.of(data).double().take(samples, seed)
        return _of_network(subject, chosen, k, flow, layer, transient, seed, progress)
    if flow:
        raise InputError(
            "flow is asked of a field, whose orbits are steps of `solver`: leave it out, and make dt small"
        )
    orbit = _Orbit(subject, data, solver, dt, steps)
    return _spectrum(orbit.jacobians(progress), orbit.spans, k, transient, seed, of="map")


def _of_network(
    model: nn.Module,
    samples: Samples,
    k: int | None,
    flow: bool,
    layer: int,
    transient: float,
    seed: int,
    progress: bool | None,
) -> Lyapunov:
    exact = precise(model)
    shortest = samples.x.shape[1] if samples.lengths is None else int(samples.lengths.min())
    if shortest < BLOCKS:
        raise InputError(f"the shortest sequence has {shortest} samples, expected {BLOCKS} at least")
    # An average over one time needs sequences of one length.
    spans = None if samples.timespans is None else samples.timespans[..., :shortest]
    cut = Samples(samples.x[:, :shortest], None, spans)

    def found(chosen: nn.Module) -> Lyapunov:
        way = walk(chosen, cut, layer)
        jacobians, _ = way.jacobians(progress=progress)
        return _spectrum([jacobians], way.spans, k, transient, seed, of="flow" if flow else "map")

    if not flow:
        return found(exact)
    continuous(model)
    per_step = continuous(exact).substeps
    fine, half = (found(under(exact, "rk4", per_step * count)) for count in (FINE, FINE // 2))
    refined = float((fine.exponents - half.exponents).abs().max())
    return _refined(fine, refined)


def _refined(fine: Lyapunov, refined: float) -> Lyapunov:
    """The exponents, and whether the flow was solved finely enough for them to be its own."""
    allowed, said = AGREE * max(1.0, float(fine.exponents.abs().max())), fine.verdict
    if refined > allowed:
        why = f"half as many steps change an exponent by {refined:.2g}, more than {allowed:.2g}: it is not the flow's"
        said = no_claim(why, said.rule, {**said.numbers, "refined": refined})
    return dataclasses.replace(fine, refined=refined, verdict=said)


class _Orbit:
    """Orbits of a field, and the Jacobians of their steps."""

    def __init__(self, field: Any, state: Any, solver: str, dt: float, steps: int) -> None:
        if not isinstance(state, Tensor) or state.dim() != 3:
            given = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise InputError(f"data is {given}, expected states (batch, components, hidden) of a field to start from")
        if not dt > 0 or steps < BLOCKS:
            raise InputError(f"dt is {dt} and steps {steps}, expected a positive number, and {BLOCKS} steps at least")
        self.field = precise(field) if isinstance(field, nn.Module) else field
        self.state, self.solver, self.dt, self.steps = state.detach().double(), solver, dt, steps
        self.spans = torch.full((len(state), steps), dt, dtype=torch.float64)

    def jacobians(self, progress: bool | None) -> Any:
        """Those of some steps `(batch, some, n, n)`, and of the next ones."""
        count, n = len(self.state), self.state[0].numel()
        size = max(1, CHUNK // count)
        chunks = [size] * (self.steps // size) + ([self.steps % size] if self.steps % size else [])
        step = solvers.transition(self.field, self.solver, self.dt)
        for some in watched(chunks, "steps along the orbits", progress):
            times = torch.arange(some + 1, dtype=torch.float64) * self.dt
            with torch.no_grad():
                found = solvers.integrate(self.field, self.state, times, method=self.solver)
            states = found.states[:, :-1].flatten(0, 1)
            self.state = found.states[:, -1]
            yield step.jacobian(states).reshape(count, some, n, n)


def _spectrum(chunks: Any, spans: Tensor, k: int | None, transient: float, seed: int, of: str) -> Lyapunov:
    """Exponents from the Jacobians of consecutive steps, by QR."""
    frame, logarithms, volumes = None, [], []
    generator = torch.Generator().manual_seed(seed)
    n = 0
    for jacobians in chunks:
        count, some, n, _ = jacobians.shape
        if frame is None:
            if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
                raise InputError(f"k is {k!r}, expected a positive number of exponents, or None for all")
            wanted = n if k is None else min(k, n)
            frame = torch.linalg.qr(torch.randn(count, n, wanted, dtype=torch.float64, generator=generator))[0]
        volumes.append(torch.linalg.slogdet(jacobians).logabsdet)
        for i in range(some):
            frame, upper = torch.linalg.qr(jacobians[:, i] @ frame)
            logarithms.append(upper.diagonal(dim1=-2, dim2=-1).abs().log())
    grown, volume = torch.stack(logarithms, 1), torch.cat(volumes, 1)
    first = int(transient * grown.shape[1])
    return _averaged(grown[:, first:], volume[:, first:], spans[:, first:], n, of)


def _averaged(grown: Tensor, volume: Tensor, spans: Tensor, n: int, of: str) -> Lyapunov:
    """Means over time and sequences; grown `(batch, steps, k)`."""
    time = spans.sum()
    exponents = grown.sum((0, 1)) / time
    order = exponents.argsort(descending=True)
    blocks = grown.shape[1] // BLOCKS * BLOCKS
    pieces = grown[:, :blocks].unflatten(1, (BLOCKS, -1)).sum(2)
    lengths = spans[:, :blocks].unflatten(1, (BLOCKS, -1)).sum(2)
    rates = (pieces / lengths.unsqueeze(-1)).flatten(0, 1)
    errors = rates.std(0) / math.sqrt(len(rates))
    points = torch.linspace(1, grown.shape[1], min(100, grown.shape[1])).round().long().unique() - 1
    passed = spans.sum(0).cumsum(0)[points]
    trace = grown.sum(0).cumsum(0)[points] / passed.unsqueeze(-1)
    made = {
        "exponents": exponents[order],
        "errors": errors[order],
        "trace": trace[:, order],
        "times": passed / len(grown),
        "divergence": float(volume.sum() / time),
        "width": n,
        "steps": grown.shape[1],
        "samples": len(grown),
        "step": float(time / grown.shape[0] / grown.shape[1]),
    }
    return Lyapunov(**made, verdict=_verdict(exponents[order], errors[order], len(grown), grown.shape[1], of), of=of)


def _verdict(exponents: Tensor, errors: Tensor, samples: int, steps: int, of: str) -> Verdict:
    rule = (
        f"the largest exponent against {APART:g} standard errors, from {BLOCKS} blocks of time of each sequence: above "
        "them states part, below them they meet"
    )
    largest, error = float(exponents[0]), float(errors[0])
    numbers = {"largest": largest, "error": error, "samples": samples, "steps": steps}
    shown = f"the largest exponent of the {of} is {largest:.4g} +- {error:.2g} per unit of time"
    over = f"({samples} sequences of {steps} steps)"
    if not math.isfinite(largest) or not math.isfinite(error):
        return no_claim(f"{shown}, which is no number to rely on {over}", rule, numbers)
    if abs(largest) <= APART * error:
        return no_claim(f"{shown}, and its sign cannot be told {over}", rule, numbers)
    fate = "part" if largest > 0 else "meet"
    return Verdict(f"Neighbouring states {fate}: {shown} {over}.", numbers, rule, fate)
