"""Which time between two samples suits a network: from the stability of its steps and from what gradients become."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

import solvers
from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.step_probes import EXPLODES, FAILS, STANDS, STILL, UNSTABLE, VANISHES, Probe, Probing, stretch
from neuralosc.analysis.subject import continuous, precise, shown, without_solver
from neuralosc.field import VectorField
from neuralosc.layers.rnn import ContinuousRNN
from solvers.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Between these the largest singular value over a sequence is neither vanished nor exploded. A factor of a thousand
#: either way is what float32, of seven digits, and a common clipping of gradients bear with some to spare.
BOUNDS = (1e-3, 1e3)
#: Sequences, and steps of all of them together, that are looked at.
SEQUENCES, STEPS = 4, 1024


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

    Source: a heuristic for dt at initialisation is promised by Rusch, Pearson & Zygalakis, Constructing gradient
    controllable recurrent neural networks using Hamiltonian dynamics, arXiv 1911.05035 (withdrawn, since its bound was
    shown in one dimension alone); this one is measured. Hairer & Wanner, Solving Ordinary Differential Equations II,
    IV.2 (stability functions).
    """
    if isinstance(model, VectorField):
        model = ContinuousRNN(copy.deepcopy(model), solver)
    given = Samples.of(data)
    if timespans is not None:
        given = replace(given, timespans=timespans)
    _check(dts, bounds)
    rule = _rule(bounds)
    if without_solver(model):
        empty = Probing(None, given, bounds)
        return _result(empty, (), None, no_claim(without_solver(model), rule), math.nan)
    few = max(1, min(len(given) if samples is None else samples, STEPS // given.x.shape[1]))
    rnn = continuous(precise(model))
    found = shown(precise(model), given.take(few, seed).double())
    with solvers.backend("plain"):
        probing = Probing(rnn, found, bounds).informed(seed)
        probes = probing.all(dts, progress)
    chosen = stretch(probes, rnn.dts[0])
    return _result(probing, probes, chosen, _verdict(probes, chosen, rnn.dts[0], probing, rule), rnn.dts[0])


def _result(
    probing: Probing, probes: tuple[Probe, ...], chosen: tuple[Probe, Probe] | None, verdict: Verdict, own: float
) -> StepRange:
    """All of it."""
    return StepRange(
        low=chosen[0].dt if chosen else None,
        high=chosen[1].dt if chosen else None,
        own=own,
        max_dt=probing.longest(),
        probes=probes,
        eigenvalues=np.concatenate(probing.eigenvalues) if probing.eigenvalues else np.empty(0),
        path=probing.path,
        sequences=len(probing.data),
        samples=probing.data.x.shape[1],
        longest_gap=float(probing.spans.max()),
        bounds=probing.bounds,
        verdict=verdict,
        of="flow, map" if probing.eigenvalues else "map",
    )


def _rule(bounds: tuple[float, float]) -> str:
    return (
        f"a dt is taken where the largest singular value from the first state to the last is above {bounds[0]:g} "
        f"(median sequence) and at most {bounds[1]:g} (worst sequence), the derivative is further than {STILL:g} from "
        f"the identity, and no mode grows by more than {bounds[1]:g} that the equation does not let grow; of several "
        "stretches that around the network's own dt, or the widest"
    )


def _verdict(
    probes: Sequence[Probe], chosen: tuple[Probe, Probe] | None, own: float, probing: Probing, rule: str
) -> Verdict:
    numbers = {"own dt": own, "samples": probing.data.x.shape[1], "sequences": len(probing.data)}
    if chosen is None:
        numbers.update({f"{name} at": float(sum(name in p.faults for p in probes)) for name in _names(probes)})
        why = "; ".join(_spread(name, probes) for name in _names(probes))
        return Verdict(f"No dt between {probes[0].dt:.3g} and {probes[-1].dt:.3g} suits: {why}.", numbers, rule, "none")
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
        "range",
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
