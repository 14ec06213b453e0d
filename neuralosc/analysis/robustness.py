"""What is left of a model's score when its samples are disturbed, under each of several solvers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from neuralosc.analysis.drawing import GREY, looks
from neuralosc.analysis.losses import Loss, parted
from neuralosc.analysis.perturbations import KINDS, Victim
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Paired, Samples, Score
from neuralosc.analysis.subject import network, precise, watched
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.sequence_model import SequenceModel
from solvers.errors import InputError, NumericalError, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Probability of a change by chance, over all that are looked at together (Bonferroni's share for each).
CHANCE = 0.01
RULE = (
    f"a score gets worse from a strength on where at it and all above its paired change is for the worse and has a "
    f"probability by chance below {CHANCE:g} over the number of changes looked at; solvers differ where the scores of "
    "the same sequences do by the same rule; nothing is said of a model that is not better, by that rule, than the "
    "best constant answer"
)


@dataclass(frozen=True)
class Point:
    """A score under a perturbation.

    Attributes:
        solver: under which it was run.
        kind: of the perturbation, "none" without one.
        strength: of it.
        score: the mean over sequences; None where it could not be run.
        change: from the same solver without it.
        between: from the first solver under the same perturbation; None of that one.
        note: why it could not be run, or empty.
    """

    solver: str
    kind: str
    strength: float
    score: float | None
    change: Paired | None = None
    between: Paired | None = None
    note: str = ""


@dataclass(frozen=True)
class Robustness(Result):
    """Scores by perturbation; see `robustness`.

    Attributes:
        points: one without a perturbation for each solver, and then all perturbations of it.
        score: its name.
        better: 1 where more of it is better, -1 where less is.
        guess: the score of the best constant answer.
        scale: what a strength of 1 is of each feature.
        sequences: how many were looked at.
    """

    points: tuple[Point, ...]
    score: str
    better: int
    guess: float
    scale: Tensor
    sequences: int

    heading: ClassVar[str] = "Disturbed samples"

    def rows(self) -> Sequence[Row]:
        """A row for each solver and perturbation."""
        return [
            {
                "solver": point.solver,
                "kind": point.kind,
                "strength": point.strength,
                self.score: point.score,
                **_columns("change", point.change),
                **_columns("between", point.between),
                "note": point.note,
            }
            for point in self.points
        ]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return (3.0 * min(4, len(self._kinds)) + 0.6, 2.9 * math.ceil(len(self._kinds) / 4) + 0.4)

    @property
    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(point.kind for point in self.points if point.kind != "none")) or ["none"]

    def draw(self, figure: Figure) -> None:
        """The score by strength, a panel for each kind."""
        kinds = self._kinds
        wide = min(4, len(kinds))
        panels = figure.subplots(math.ceil(len(kinds) / wide), wide, squeeze=False, sharey=True).ravel()
        styles = looks(point.solver for point in self.points)
        for axes, kind in zip(panels, kinds, strict=False):
            for solver, style in styles.items():
                clean = next(p for p in self.points if p.solver == solver and p.kind == "none")
                line = [p for p in self.points if p.solver == solver and p.kind == kind and p.score is not None]
                spread = [(p.change.high - p.change.low) / 2 if p.change else 0.0 for p in line]
                places, values = [0.0, *(p.strength for p in line)], [clean.score, *(p.score for p in line)]
                axes.errorbar(places, values, [0.0, *spread], label=solver, capsize=2, linewidth=1.3, **style)
            axes.axhline(self.guess, color=GREY, linestyle="--", label="best constant answer")
            what, _, unit = KINDS[kind].what.partition(", ") if kind in KINDS else (kind, "", "")
            axes.set_title(what, fontsize=10)
            axes.set_xlabel(unit or "strength", fontsize=8)
        for axes in panels[::wide]:
            axes.set_ylabel(self.score)
        for axes in panels[len(kinds) :]:
            axes.set_visible(False)
        panels[0].legend(fontsize=7)


def robustness(
    model: nn.Module,
    data: Any,
    kinds: Sequence[str] | Mapping[str, Sequence[float]] | None = None,
    solvers: Sequence[Any] | None = None,
    *,
    score: str | Score | None = None,
    loss: Any = None,
    scale: float | Tensor | None = None,
    samples: int | None = 256,
    seed: int = 0,
    progress: bool | None = None,
) -> Robustness:
    """The score of a model on disturbed samples, by strength, with paired intervals, under each of several solvers.

        white           x + a s n,              n standard normal, s the scale of a feature
        multiplicative  x (1 + a n)
        salt_pepper     the smallest or largest value of the feature instead of x, with probability a
        fgsm            x + a s sign(dL/dx)
        pgd             ten such steps within |x' - x| <= a s, from a random place in there
        dropped         a sample is lost with probability a, and its timespan is added to the next one
        jitter          timespans times exp(a n - a^2 / 2), of mean 1: the clock of the samples is off

    The noise is the same for every solver and strength; an attack is made anew against each solver.

    Args:
        model: a trained `SequenceModel` or network; one without a solver is run as it is.
        data: what `Samples.of` takes, with targets.
        kinds: names, or for each its strengths a; all of `KINDS` when None.
        solvers: those it is run under, names or values; the first is what others are compared with. The model's own
            when None.
        score: "accuracy" or "mse", or a `Score`; the usual one when None.
        loss: what an attack raises, loss(answers, targets); None for the usual one, see `Loss.of`.
        scale: s, a number or one for each feature; the standard deviation of the values that are known when None.
        samples: sequences looked at, at most.
        seed: which ones, and the noise.
        progress: whether there is a bar.

    The verdict says from which strength on the score falls for each kind, and where solvers differ. That no fall is
    seen does not say that there is none.

    Raises:
        InputError: no such kind, strengths that make no sense, solvers for a network that has none, no targets, or a
            model of tokens, which no noise can be added to.

    Source: Lim, Erichson, Hodgkinson & Mahoney, Noisy Recurrent Neural Networks, NeurIPS 2021 (noise and attacks).
    """
    if isinstance(model, SequenceModel) and model.embedding is not None:
        raise InputError(
            "the inputs of this model are tokens, whose numbers cannot be disturbed: there is no robustness"
        )
    found = Samples.of(data).take(samples, seed).double()
    chosen, wanted = Score.of(score, found.targets), _strengths(kinds)
    measured = Loss.of(loss, model, found)
    plain = precise(model).requires_grad_(False)
    unit = _scale(scale, found)
    points: list[Point] = []
    columns: dict[tuple[str, float], Tensor] = {}
    guess = math.nan
    better: Paired | None = None
    for name, under in watched(_under(plain, solvers), "solvers", progress):
        try:
            answers = answered(under, found, seed)
        except NumericalError as error:
            points.append(Point(name, "none", 0.0, None, note=str(error)))
            continue
        clean = chosen.each(answers, found.targets, found.valid)
        constant = chosen.guess(answers, found.targets, found.valid)
        first = columns.setdefault(("none", 0.0), clean)
        if first is clean:
            guess, better = float(constant.nanmean()), Paired.of(constant, clean)
        between = None if first is clean else Paired.of(first, clean)
        points.append(Point(name, "none", 0.0, float(clean.nanmean()), None, between))
        for place, (kind, strengths) in enumerate(wanted.items()):
            for strength in strengths:
                drawn = torch.Generator().manual_seed(seed + 1000 * place)
                victim = Victim(under, found, measured, unit, drawn, seed)
                points.append(_point(victim, chosen, name, kind, strength, clean, columns))
    result = Robustness(
        tuple(points),
        chosen.name,
        chosen.better,
        guess,
        unit,
        len(found),
        verdict=no_claim("not judged", RULE),
        of="map",
    )
    return replace(result, verdict=_verdict(result, better))


def _point(
    victim: Victim,
    score: Score,
    name: str,
    kind: str,
    strength: float,
    clean: Tensor,
    columns: dict[tuple[str, float], Tensor],
) -> Point:
    """The score under one perturbation; that of the first solver is kept in `columns`."""
    clockless = getattr(network(victim.model), "timespans", "") == "refuse"
    if clockless and KINDS[kind].timed:
        return Point(name, kind, strength, None, note="the network has no clock")
    try:
        seen = KINDS[kind].perturb(victim, strength)
        if clockless:
            seen = replace(seen, timespans=None)
        each = score.each(answered(victim.model, seen, victim.seed), seen.targets, seen.valid)
    except NumericalError as error:
        return Point(name, kind, strength, None, note=str(error))
    first = columns.setdefault((kind, strength), each)
    between = None if first is each else Paired.of(first, each)
    return Point(name, kind, strength, float(each.nanmean()), Paired.of(clean, each), between)


@torch.no_grad()
def answered(model: Any, samples: Samples, seed: int) -> Tensor:
    """The answers, in the units of the targets, in parts that fit the memory; of a network alone what it gives."""
    pieces = []
    for part, _ in parted(model, samples, recorded=False):
        # A solver with noise draws the same whatever has happened to the samples.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            answers = model(**part.inputs)
        pieces.append(model.unscaled(answers) if isinstance(model, SequenceModel) else answers[0])
    return torch.cat(pieces)


def _under(model: Any, solvers: Sequence[Any] | None) -> list[tuple[str, Any]]:
    """The model under each solver, by name; differentiated by backprop."""
    rnn = network(model)
    if not isinstance(rnn, ContinuousRNN):
        if solvers is not None:
            raise InputError(f"a {type(rnn).__name__} has no solver: leave solvers out")
        return [(type(rnn).__name__, model)]
    chosen = [rnn.solver] if solvers is None else list(solvers)
    if not chosen:
        raise InputError("solvers is empty, expected one at least, or None for the network's own")
    swapped = [model.with_solver(solver, gradient="backprop") for solver in chosen]
    nets: list[Any] = [network(each) for each in swapped]
    return [(net.solver.name, each) for net, each in zip(nets, swapped, strict=True)]


def _strengths(kinds: Any) -> dict[str, tuple[float, ...]]:
    """The strengths of each kind.

    Raises:
        InputError: no such kind, or strengths that make no sense.
    """
    given = {name: None for name in (KINDS if kinds is None else kinds)} if not isinstance(kinds, Mapping) else kinds
    wanted = {}
    for name, strengths in given.items():
        if name not in KINDS:
            raise unknown("kind", name, KINDS)
        chosen = KINDS[name].strengths if strengths is None else tuple(float(s) for s in strengths)
        most = 1.0 if name in ("salt_pepper", "dropped") else math.inf
        if not chosen or not all(0 <= s <= most and math.isfinite(s) for s in chosen):
            limit = " and at most 1" if most == 1.0 else ""
            raise InputError(f"the strengths of {name!r} are {strengths!r}, expected numbers of at least 0{limit}")
        wanted[name] = chosen
    return wanted


def _scale(scale: Any, samples: Samples) -> Tensor:
    """What a strength of 1 is, `(input,)`."""
    x, features = samples.x, samples.x.shape[-1]
    if scale is not None:
        given = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
        if given.dim() > 1 or (given.dim() == 1 and len(given) != features) or not bool((given >= 0).all()):
            raise InputError(f"scale is {scale!r}, expected a number of at least 0, or {features} of them")
        return given.expand(features)
    rows = x[samples.valid]
    known = ~rows.isnan()
    count = known.sum(0).clamp_min(1)
    mean = torch.where(known, rows, 0).sum(0) / count
    return (torch.where(known, rows - mean, 0).square().sum(0) / count).sqrt()


def _worse(point: Point, better: int, limit: float) -> bool:
    """Whether a score is worse than without the perturbation by more than chance."""
    change = point.change
    return change is not None and change.difference * better < 0 and change.p < limit


def _columns(name: str, paired: Paired | None) -> dict[str, float | None]:
    return {
        name: None if paired is None else paired.difference,
        f"{name} low": None if paired is None else paired.low,
        f"{name} high": None if paired is None else paired.high,
        f"{name} p": None if paired is None else paired.p,
    }


def _verdict(found: Robustness, better: Paired | None) -> Verdict:
    looked = [p for p in found.points if p.change is not None] + [p for p in found.points if p.between is not None]
    limit = CHANCE / (len(looked) + 1)
    own = next((p for p in found.points if p.kind == "none"), None)
    if own is None or own.score is None or better is None:
        return no_claim("the model cannot be run on these samples", RULE)
    numbers: dict[str, float] = {"sequences": found.sequences, found.score: own.score, "constant answer": found.guess}
    if not (better.difference * found.better > 0 and better.p < limit):
        why = f"{found.score} {own.score:.3g} is not told from that of the best constant answer, {found.guess:.3g}"
        return no_claim(f"{why}, on {found.sequences} sequences", RULE, numbers)
    falls, stays = [], []
    for kind in found._kinds:
        line = [p for p in found.points if p.solver == own.solver and p.kind == kind and p.change is not None]
        ordered = sorted(line, key=lambda p: -p.strength)
        fallen = list(itertools.takewhile(lambda p: _worse(p, found.better, limit), ordered))
        for point in line:
            numbers[f"change under {kind} {point.strength:g}"] = point.change.difference if point.change else math.nan
        if fallen:
            point, change = fallen[-1], fallen[-1].change
            assert change is not None
            falls.append(
                f"{kind} of {point.strength:g} (to {point.score:.3g}, {change.low:+.2g} to {change.high:+.2g})"
            )
        elif line:
            stays.append(f"{kind} up to {max(p.strength for p in line):g}")
    parts = [f"Under {own.solver} {found.score} is {own.score:.3g} on {found.sequences} sequences as they are"]
    parts += [f"it gets worse from {', '.join(falls)} on"] if falls else []
    parts += [f"no change for the worse is told from chance under {', '.join(stays)}"] if stays else []
    apart = [p for p in found.points if p.between is not None and p.between.p < limit]
    if apart:
        most = max(apart, key=lambda p: abs(p.between.difference) if p.between else 0.0)
        assert most.between is not None
        what = "without a disturbance" if most.kind == "none" else f"under {most.kind} of {most.strength:g}"
        parts.append(
            f"solvers differ in {len(apart)} places, most {most.solver} {what} ({most.between.difference:+.2g} to "
            f"{own.solver})"
        )
    elif any(p.between is not None for p in found.points):
        parts.append("no two solvers are told apart")
    return Verdict("; ".join(parts) + ".", numbers, RULE, "worse" if falls else "unchanged")
