"""Whether a network has learnt an equation or a step: the one rule that decides, and the numbers it decides by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from neuralosc.analysis.results import Verdict, no_claim
from neuralosc.analysis.samples import Paired, Score

#: What of a network's gain over the best constant answer may be lost before the equation is another classifier.
SHARE = 0.05

#: Fewer sequences cannot tell a loss of that size from chance: one in a hundred is the least that they show.
FEWEST = 100

#: Answers of which fewer agree are not the same answers, though as many of them be right.
AGREEMENT = 0.9

#: A deviation of states below this is rounding and the reference's own error: there is no refinement to see.
NOTHING = 1e-7

RULE = (
    f"solved exactly, the network keeps all but {SHARE:.0%} of its gain over the best constant answer (the whole "
    "interval of 95 % of the paired difference): it has learnt the equation; it loses more (the whole interval): it "
    f"has learnt its step. No claim with fewer than {FEWEST} sequences, without a gain, without a confirmed reference, "
    f"if refined steps do not approach the exact states, or if fewer than {AGREEMENT:.0%} of the answers agree"
)


@dataclass(frozen=True)
class Evidence:
    """What the rule looks at.

    Attributes:
        own: the score of each sequence under the step it was trained with, `(batch,)`.
        exact: the same, solved exactly; None where there is no such solution.
        guess: the same of the best constant answer.
        score: how they were judged.
        agreement: share of the answers that are the same, or of numbers 1 less their relative difference (RMS).
        deviations: of the states from the exact ones, relative RMS, as the step is refined, from its own on.
        unconfirmed: why the exact solution cannot be relied on; empty if it can.
    """

    own: Tensor
    exact: Tensor | None
    guess: Tensor
    score: Score
    agreement: float
    deviations: Sequence[float]
    unconfirmed: str = ""

    @property
    def gain(self) -> float:
        """By how much the network is better than the best constant answer."""
        return self.score.better * float((self.own - self.guess).nanmean())

    @property
    def approaches(self) -> bool:
        """Whether refined steps approach the exact states."""
        found = [d for d in self.deviations if d == d]
        return len(found) == len(self.deviations) > 0 and (found[0] < NOTHING or found[-1] < 0.75 * found[0])


def missing(seen: Evidence, name: str = "the network") -> str:
    """What the evidence lacks for any claim; empty if nothing."""
    count = len(seen.own)
    if seen.exact is None or seen.unconfirmed:
        return seen.unconfirmed or "there is no exact solution"
    if count < FEWEST:
        paired = Paired.of(seen.own, seen.exact)
        return f"{count} sequences are too few: they tell {seen.score.name} to +- {(paired.high - paired.low) / 2:.2g}"
    if not (seen.gain > 0 and Paired.of(seen.guess, seen.own).apart):
        return f"{name} is no better than the best constant answer, so it has learnt neither"
    if not seen.approaches:
        shown = ", ".join(f"{d:.2g}" for d in seen.deviations)
        return f"refined steps do not approach the exact states (relative RMS {shown})"
    return ""


def numbers_of(seen: Evidence) -> dict[str, float]:
    """The numbers that the rule looks at."""
    score = seen.score.name
    numbers: dict[str, float] = {"sequences": len(seen.own), f"own {score}": float(seen.own.nanmean())}
    numbers[f"{score} of the best constant answer"] = float(seen.guess.nanmean())
    numbers |= {f"deviation {i}": value for i, value in enumerate(seen.deviations)}
    if seen.exact is not None:
        paired = Paired.of(seen.own, seen.exact)
        share = dict(zip(("share lost", "share low", "share high"), lost(paired, seen), strict=True))
        numbers |= {f"exact {score}": float(seen.exact.nanmean()), "p": paired.p, "agreement": seen.agreement, **share}
    return numbers


def lost(paired: Paired, seen: Evidence) -> tuple[float, float, float]:
    """The share of the gain that is lost by other answers, and the ends of its interval of 95 %."""
    loss, *ends = (-seen.score.better * value for value in (paired.difference, paired.low, paired.high))
    gain = seen.gain if seen.gain > 0 else math.nan
    return loss / gain, min(ends) / gain, max(ends) / gain


def verdict(seen: Evidence, name: str = "the network") -> Verdict:
    """What the rule says of the evidence."""
    numbers, why = numbers_of(seen), missing(seen, name)
    if why or seen.exact is None:
        return no_claim(why, RULE, numbers)
    share = lost(Paired.of(seen.own, seen.exact), seen)
    shown = (
        f"{seen.score.name} {float(seen.own.nanmean()):.4g} under its own step, {float(seen.exact.nanmean()):.4g} "
        f"solved exactly, which is {_shown(share)} of its gain over the best constant answer, on {len(seen.own)} "
        "sequences"
    )
    if share[1] > SHARE:
        return Verdict(f"{_capital(name)} has learnt its step: {shown}.", numbers, RULE, "step")
    if share[2] > SHARE:
        return no_claim(f"the interval holds more and less than {SHARE:.0%}: {shown}", RULE, numbers)
    if seen.agreement < AGREEMENT:
        return no_claim(f"as good, but only {seen.agreement:.0%} of the answers agree: {shown}", RULE, numbers)
    return Verdict(f"{_capital(name)} has learnt the equation: {shown}.", numbers, RULE, "equation")


def agreement(answers: Tensor, others: Tensor, classes: bool, valid: Tensor) -> float:
    """Share of equal classes, or 1 less the relative RMS difference of numbers about their mean."""
    if answers.dim() == 3:
        answers, others = answers[valid], others[valid]
    if classes:
        return float((answers.argmax(-1) == others.argmax(-1)).double().mean())
    size = (answers - answers.mean(0)).square().mean().sqrt()
    return 1 - float((answers - others).square().mean().sqrt() / size) if size > 0 else math.nan


def _shown(share: tuple[float, ...]) -> str:
    middle, low, high = share
    if abs(middle) < 5e-4 and high < 5e-3:
        return "no loss"
    return f"a loss of {middle:.1%} (95 %: {low:.1%} to {high:.1%})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
