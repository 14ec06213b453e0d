"""Finer steps and coarser ones: whether a trained network gets better, stays or gets worse away from its own step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from neuralosc.analysis.drawing import GREY, INK, PALETTE
from neuralosc.analysis.learned import FEWEST, NOTHING, SHARE, Evidence, agreement, lost, missing, numbers_of
from neuralosc.analysis.learned import verdict as rule_on
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Paired, Samples, Score
from neuralosc.analysis.subject import continuous, distance, exact, precise, run, under, watched, without_solver
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.sequence_model import SequenceModel
from solvers.errors import InputError, NumericalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Steps, or tolerances, as parts of those of the training.
FACTORS = (Fraction(4), Fraction(2), Fraction(1), Fraction(1, 2), Fraction(1, 4), Fraction(1, 8), Fraction(1, 16))

#: How far an observed order may be from the declared one where the asymptotic range is said to have begun.
NEAR = 0.25

RULE = (
    "the test of Krishnapriyan et al.: steps finer than that of the training must not make the answers worse, and the "
    "states must converge. It fails if at a finer step, or solved exactly, the whole interval of 95 % of the paired "
    f"loss is above {SHARE:.0%} of the gain over the best constant answer, and passes if at all of them it is below. "
    f"No claim with fewer than {FEWEST} sequences, without a gain, without a confirmed reference or in between"
)


@dataclass(frozen=True)
class Level:
    """One size of the step.

    Attributes:
        factor: of the step the network was trained with, or of its tolerance.
        substeps: steps per interval; None of a method that chooses them.
        score: mean over the sequences; None where the solver failed.
        paired: against the step of the training.
        error: of the states from the exact ones, relative RMS.
        order: observed between this step and the coarser one before it; None where there is none to see.
        agreement: of the answers with the exact ones.
        why: why there are no figures; empty if there are.
    """

    factor: float
    substeps: int | None
    score: float | None = None
    paired: Paired | None = None
    error: float | None = None
    order: float | None = None
    agreement: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Convergence(Result):
    """What `convergence` found.

    Attributes:
        levels: from the coarsest step to the finest.
        solver: the method, and `declared` its order.
        declared: as said.
        dt: step of the training, in units of time; None where it differs between layers or is chosen by the method.
        score: what is judged, and `exact_score` that of the equation solved exactly; None without it.
        exact_score: as said.
        passes: whether the test is passed; None where nothing is claimed.
        asymptotic: the largest factor from which on the observed order stays near the declared one; None where it never
            does.
        critical: the largest factor at which the answers are not worse; None where that is not known.
        samples: how many sequences.
    """

    levels: tuple[Level, ...]
    solver: str
    declared: float
    dt: float | None
    score: str
    exact_score: float | None
    passes: bool | None
    asymptotic: float | None
    critical: float | None
    samples: int

    heading: ClassVar[str] = "Convergence under finer steps"
    inches: ClassVar[tuple[float, float]] = (10.0, 4.4)

    def rows(self) -> Sequence[Row]:
        """A row for each step."""
        return [
            {
                "step": level.factor,
                "substeps": level.substeps,
                self.score: level.score,
                "against own": None if level.paired is None else level.paired.difference,
                "low": None if level.paired is None else level.paired.low,
                "high": None if level.paired is None else level.paired.high,
                "states off by": level.error,
                "order": level.order,
                "agreement": level.agreement,
                "why not": level.why,
            }
            for level in self.levels
        ]

    def draw(self, figure: Figure) -> None:
        """Answers and states against the step."""
        answers, states = figure.subplots(1, 2)
        unit = self.dt or 1.0
        known = [level for level in self.levels if level.score is not None]
        steps = [level.factor * unit for level in known]
        middle = [level.score for level in known]
        base = next((level.score for level in known if level.factor == 1), None)
        if base is not None:
            bars = [
                [level.paired.difference - level.paired.low for level in known if level.paired],
                [level.paired.high - level.paired.difference for level in known if level.paired],
            ]
            answers.errorbar(
                steps, middle, bars, color=PALETTE[0], marker="o", capsize=3, label="with 95 % of the difference"
            )
        if self.exact_score is not None:
            answers.axhline(self.exact_score, color=GREY, linewidth=4, zorder=0.9, label="solved exactly")
        errors = [(s, level.error) for s, level in zip(steps, known, strict=True) if level.error]
        if errors:
            states.plot(*zip(*errors, strict=True), color=PALETTE[0], marker="o", label=self.solver)
            last = errors[-1]
            line = [(s, 0.6 * last[1] * (s / last[0]) ** self.declared) for s, _ in errors]
            states.plot(*zip(*line, strict=True), color=GREY, linestyle=":", label=f"order {self.declared:g}")
        for axes, name in ((answers, self.score), (states, "states off the exact ones (relative RMS)")):
            axes.axvline(unit, color=INK, linewidth=0.8, linestyle=":")
            axes.annotate("as trained", (unit, 1), xycoords=("data", "axes fraction"), xytext=(-3, -3),
                          textcoords="offset points", fontsize=8, ha="right", va="top", rotation=90)  # fmt: skip
            unit_name = "units of time" if self.dt else "parts of that of the training"
            axes.set(xscale="log", xlabel=f"step ({unit_name})", ylabel=name)
            axes.set_xticks(steps, [f"{step:.3g}" for step in steps])
            axes.set_xticks([], minor=True)
            axes.legend(loc="best", fontsize=8)
        states.set(yscale="log")


def convergence(
    model: SequenceModel,
    data: Any,
    factors: Sequence[float] = tuple(map(float, FACTORS)),
    *,
    score: str | Score | None = None,
    samples: int | None = 512,
    seed: int = 0,
    progress: bool | None = None,
) -> Convergence:
    """Is what a network learnt better, the same or worse when its steps are made finer, and from which step on?

        order between h and h/2 = log2(e(h) / e(h/2)),    e = the states' relative RMS distance from the exact ones

    The verdict is the test of Krishnapriyan et al. with paired intervals; see `RULE` in the module. A network that was
    fitted to the map of its step is best at that step, and worse on both sides of it.

    Args:
        model: network and read-out.
        data: samples with targets, as `Samples.of` takes them.
        factors: steps as parts of that of the training; those that do not divide an interval are left out. Of a method
            that chooses its steps they are factors of its tolerances.
        score: "accuracy", "mse" or a `Score`; None for that of the targets.
        samples: how many sequences, drawn by `seed`; None for all.
        seed: draws them.
        progress: show a bar; None where somebody reads along.

    Raises:
        InputError: data without targets, or a model without a read-out.

    Source: Krishnapriyan, Queiruga, Erichson & Mahoney, Communications Physics 6 (2023); critical step: Ott et al.,
    ICLR 2021; orders: Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, II.4.
    """
    if not isinstance(model, SequenceModel):
        raise InputError(f"model is a {type(model).__name__}, expected a neuralosc.SequenceModel, which answers")
    chosen = Samples.of(data).double().take(samples, seed)
    judged = Score.of(score, chosen.targets)
    why = without_solver(model) or _no_step(model)
    if why:
        name = getattr(getattr(model.rnn, "solver", None), "name", type(model.rnn).__name__)
        said = no_claim(why, RULE)
        return Convergence(
            (), name, 0.0, None, judged.name, None, None, None, None, len(chosen), verdict=said, of="map"
        )
    return _Study(precise(model), chosen, judged).result(sorted(set(factors), reverse=True), progress)


def _no_step(model: SequenceModel) -> str:
    rnn = continuous(model, one_way=False)
    if all(rnn.solver.exact(rnn.layer(index)) for index in range(len(rnn.fields))):
        return f"solver {rnn.solver.name!r} is exact on this field, so that no step is finer than another"
    return ""


class _Study:
    """One network at all its steps."""

    def __init__(self, model: SequenceModel, samples: Samples, score: Score) -> None:
        self.model, self.samples, self.score = model, samples, score
        self.rnn: ContinuousRNN = continuous(model, one_way=False)
        self.reference = exact(model, samples)
        self.own = run(model, samples)
        self.scores = self._scored(self.own.answers)

    def result(self, factors: Sequence[float], progress: bool | None) -> Convergence:
        """All of it."""
        levels: list[Level] = []
        for factor in watched([f for f in factors if self._possible(f)], "steps", progress):
            levels.append(self._level(factor, levels[-1] if levels else None))
        reference, solver = self.reference, self.rnn.solver
        scores = None if reference.run is None else self._scored(reference.run.answers)
        said, critical = self._verdict(levels, scores)
        return Convergence(
            tuple(levels),
            solver.name,
            float(solver.order),
            None if solver.adaptive or not isinstance(self.rnn.dt, float) else self.rnn.dt / self.rnn.substeps,
            self.score.name,
            None if scores is None else float(scores.nanmean()),
            {"equation": True, "step": False}.get(said.answer),
            None if solver.adaptive else _asymptotic(levels, float(solver.order)),
            critical,
            len(self.samples),
            verdict=said,
            of="map",
        )

    def _possible(self, factor: float) -> bool:
        steps = self.rnn.substeps / factor
        return self.rnn.solver.adaptive or (steps >= 1 and abs(steps - round(steps)) < 1e-9)

    def _at(self, factor: float) -> SequenceModel:
        """The network at another step."""
        solver = self.rnn.solver
        if not solver.adaptive:
            return under(self.model, solver.name, round(self.rnn.substeps / factor), **solver.options)
        tolerances: dict[str, Any] = {
            name: solver.options[name] * factor for name in ("rtol", "atol") if name in solver.options
        }
        options: dict[str, Any] = {**solver.options, **tolerances}
        return under(self.model, solver.name, 1, **options)

    def _level(self, factor: float, coarser: Level | None) -> Level:
        substeps = None if self.rnn.solver.adaptive else round(self.rnn.substeps / factor)
        try:
            found = self.own if factor == 1 else run(self._at(factor), self.samples)
        except (NumericalError, InputError) as error:
            return Level(factor, substeps, why=str(error))
        scores = self._scored(found.answers)
        apart = agreed = order = None
        if self.reference.run is not None:
            apart = distance(found, self.reference.run, self.samples)
            agreed = self._agreement(found.answers, self.reference.run.answers)
            order = _order(coarser, factor, apart)
        paired = Paired.of(self.scores, scores)
        return Level(factor, substeps, float(scores.nanmean()), paired, apart, order, agreed)

    def _verdict(self, levels: Sequence[Level], exact_scores: Tensor | None) -> tuple[Verdict, float | None]:
        assert self.own.answers is not None
        finer = [level for level in levels if level.factor <= 1]
        errors = [math.nan if level.error is None else level.error for level in finer]
        guess = self.score.guess(self.own.answers, self.samples.targets, self.samples.valid)
        agreed, run_ = math.nan, self.reference.run
        if run_ is not None:
            agreed = self._agreement(self.own.answers, run_.answers)
        seen = Evidence(self.scores, exact_scores, guess, self.score, agreed, errors, self.reference.why)
        numbers, why = numbers_of(seen), missing(seen)
        if why:
            return no_claim(why, RULE, numbers), None
        shares: dict[float, tuple[float, float]] = {
            level.factor: _ends(level.paired, seen) for level in levels if level.paired is not None
        }
        numbers |= {f"share lost at {factor:g}, at least": low for factor, (low, _) in shares.items()}
        critical = max((factor for factor, (_, high) in shares.items() if high <= SHARE), default=None)
        base = rule_on(seen)
        worse = [factor for factor, (low, _) in shares.items() if factor < 1 and low > SHARE]
        if worse or base.answer == "step":
            at = f"at {max(worse):g} of its step" if worse else "solved exactly"
            return Verdict(f"The test of convergence fails {at}. {base.sentence}", numbers, RULE, "step"), critical
        if base.claim and all(high <= SHARE for factor, (_, high) in shares.items() if factor < 1):
            last = next((level.order for level in reversed(finer) if level.order is not None), None)
            order = "" if last is None else f", and its states converge with order {last:.2f}"
            passed = f"The test of convergence is passed: no finer step makes the answers worse{order}."
            return Verdict(f"{passed} {base.sentence}", numbers, RULE, "equation"), critical
        return no_claim("at some finer step more and less than the allowed loss is possible", RULE, numbers), critical

    def _scored(self, answers: Tensor | None) -> Tensor:
        assert answers is not None
        return self.score.each(answers, self.samples.targets, self.samples.valid)

    def _agreement(self, answers: Tensor | None, others: Tensor | None) -> float:
        assert answers is not None and others is not None
        return agreement(others, answers, self.score.name == "accuracy", self.samples.valid)


def _ends(paired: Paired, seen: Evidence) -> tuple[float, float]:
    _, low, high = lost(paired, seen)
    return low, high


def _order(coarser: Level | None, factor: float, error: float) -> float | None:
    """Observed order; none where rounding, or the reference's own error, is all that is seen."""
    if coarser is None or coarser.error is None or min(error, coarser.error) < NOTHING:
        return None
    return math.log(coarser.error / error) / math.log(coarser.factor / factor)


def _asymptotic(levels: Sequence[Level], declared: float) -> float | None:
    """The largest step from which on every observed order is near the declared one."""
    start = None
    for coarser, level in zip(reversed(levels[:-1]), reversed(levels[1:]), strict=True):
        if level.order is None:
            continue
        if abs(level.order - declared) > NEAR * declared:
            break
        start = coarser.factor
    return start
