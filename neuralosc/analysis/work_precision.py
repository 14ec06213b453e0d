"""What each solver asks for an error: states of a trained network against evaluations of its right-hand side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

import solvers as methods
from neuralosc.analysis import subject
from neuralosc.analysis.drawing import GREY, looks
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from solvers.errors import InputError, NumericalError, PairingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The solvers that are set beside the network's own.
USUAL = ("semi_implicit_euler", "imex_euler", "stormer_verlet", "rk4", "native_dopri5")
#: An error is told from that of the reference where it is this much larger; and what is above 1 is no solution.
FLOOR, CEILING = 10.0, 1.0

RULE = (
    "each solver runs the same samples at each number of substeps, or tolerance, and its error is the relative RMS of "
    "all states against a solution to many digits that a second method confirms; evaluations for the goal are read on "
    "the line between two points of the logarithmic picture, and the cheapest solver is the one with the fewest"
)


@dataclass(frozen=True)
class Work:
    """One solver at one number of substeps, or one tolerance.

    Attributes:
        solver: its name.
        choice: the substeps, or the tolerance.
        evaluations: of the right-hand side, for each sequence.
        error: relative RMS of the states of all layers; NaN where it failed.
        why: why it failed.
    """

    solver: str
    choice: str
    evaluations: float = math.nan
    error: float = math.nan
    why: str = ""


@dataclass(frozen=True)
class WorkPrecision(Result):
    """Errors and evaluations of several solvers.

    Attributes:
        own: the network's own solver at its own substeps.
        points: the others, solver by solver, from coarse to fine.
        goal: the error that is asked for.
        needed: evaluations for it, by solver; those that do not reach it are not there.
        reference_error: how far the confirming method is from the reference.
        samples: sequences that were run.
    """

    own: Work | None
    points: tuple[Work, ...]
    goal: float
    needed: dict[str, float]
    reference_error: float
    samples: int
    usable: tuple[Work, ...] = field(default=(), repr=False)

    heading: ClassVar[str] = "Work and precision"

    def rows(self) -> list[Row]:
        """A row for each run, the network's own first."""
        every = [*([self.own] if self.own else []), *self.points]
        return [
            {
                "solver": each.solver,
                "substeps or tolerance": each.choice,
                "evaluations": each.evaluations,
                "error": each.error,
                "evaluations for the goal": self.needed.get(each.solver),
                "failed": each.why,
            }
            for each in every
        ]

    def draw(self, figure: Figure) -> None:
        """A curve for each solver, the network's own as a star."""
        axes = figure.subplots()
        for name, look in looks(each.solver for each in self.usable).items():
            curve = [each for each in self.usable if each.solver == name]
            line = "--" if methods.get(name).adaptive else "-"
            axes.plot([e.evaluations for e in curve], [e.error for e in curve], label=name, linestyle=line, **look)
        if self.own and self.own.error > 0:
            label = f"its own: {self.own.solver}, {self.own.choice}"
            axes.plot([self.own.evaluations], [self.own.error], "k*", markersize=13, label=label)
        axes.axhline(self.goal, color=GREY, linestyle=":", label="goal")
        axes.axhline(max(self.reference_error, 1e-16), color=GREY, label="the reference is known to")
        axes.set(xscale="log", yscale="log", xlabel="evaluations of the right-hand side for each sequence")
        axes.set(ylabel="error of the states, relative RMS", title="fixed steps (solid), adaptive ones (dashed)")
        axes.legend(fontsize=8)


def work_precision(
    model: nn.Module,
    data: Any,
    solvers: Sequence[str] = USUAL,
    *,
    substeps: Sequence[int] = (1, 2, 4, 8, 16),
    tolerances: Sequence[float] = (1e-3, 1e-5, 1e-7, 1e-9),
    goal: float = 1e-3,
    samples: int = 16,
    seed: int = 0,
    progress: bool | None = None,
) -> WorkPrecision:
    """Which solver brings the states of a network to an error with the fewest evaluations of its right-hand side.

    Args:
        model: a model, or a network.
        data: sequences, as `Samples.of` takes them.
        solvers: names; of those that the fields do not fit the result says so.
        substeps: of the methods with equal steps.
        tolerances: of the others, relative; the absolute one is a hundredth.
        goal: the error that is asked for, relative RMS of all states.
        samples: how many sequences, drawn by `seed`.
        seed: of the drawing.
        progress: show how far it is; None for where somebody reads along.

    The verdict's rule is `RULE`.

    Raises:
        InputError: data, names or numbers that do not fit.

    Source: Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, II.10, of the diagram.
    """
    if not 0 < goal < CEILING:
        raise InputError(f"goal is {goal!r}, expected a relative error between 0 and 1")
    if not solvers or not substeps or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in substeps):
        raise InputError(f"substeps are {substeps!r}, expected whole numbers of at least 1, and one solver at least")
    names = [methods.get(name).name for name in solvers]
    seen = Samples.of(data).double().take(samples, seed)
    why = subject.without_solver(model)
    copy = subject.precise(model)
    if not why:
        exact = subject.exact(copy, seen)
        why = exact.why
    if why:
        return WorkPrecision(None, (), goal, {}, math.nan, len(seen), verdict=no_claim(why, RULE), of="map")
    assert exact.run is not None
    rnn = subject.continuous(copy, one_way=False)
    choice = f"{rnn.substeps} substep{'s' if rnn.substeps > 1 else ''}"
    own = _measured(copy, rnn.solver.name, choice, seen, exact.run)
    runs: list[tuple[str, str, dict[str, Any]]] = []
    for name in dict.fromkeys(names):
        if methods.get(name).adaptive:
            runs += [(name, f"rtol {t:g}", {"rtol": t, "atol": t / 100}) for t in sorted(tolerances, reverse=True)]
        else:
            runs += [(name, str(count), {"substeps": count}) for count in sorted(substeps)]
    points = []
    for name, shown, options in subject.watched(runs, "work and precision", progress):
        try:
            points.append(_measured(subject.under(copy, name, **options), name, shown, seen, exact.run))
        except (PairingError, NumericalError) as failure:
            # One solver that cannot run is a line of the table.
            points.append(Work(name, shown, why=str(failure)))
    usable = tuple(each for each in points if FLOOR * exact.error <= each.error <= CEILING)
    needed = {}
    for name in dict.fromkeys(names):
        curve = [(each.evaluations, each.error) for each in usable if each.solver == name]
        found = evaluations_for(curve, goal)
        if found is not None:
            needed[name] = found
    verdict = _verdict(own, needed, goal, exact.error)
    return WorkPrecision(own, tuple(points), goal, needed, exact.error, len(seen), usable, verdict=verdict, of="map")


def _measured(model: nn.Module, name: str, choice: str, seen: Samples, reference: subject.Run) -> Work:
    found = subject.run(model, seen)
    pairs = list(zip(found.states, reference.states, strict=True))
    squares = [subject.relative_rms(one, other, seen.valid) ** 2 for one, other in pairs]
    return Work(name, choice, found.evaluations, math.sqrt(sum(squares) / len(squares)))


def evaluations_for(points: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Evaluations at which a curve comes down to an error, on the line between two points of the logarithmic diagram.

    Args:
        points: (evaluations, error), from coarse to fine.
        goal: the error.

    Returns:
        None where it does not come down to it.
    """
    before: tuple[float, float] | None = None
    for evaluations, error in points:
        if error <= goal:
            if before is None:
                return evaluations
            part = math.log(before[1] / goal) / math.log(before[1] / error)
            return math.exp(math.log(before[0]) * (1 - part) + math.log(evaluations) * part)
        before = evaluations, error
    return None


def _verdict(own: Work, needed: dict[str, float], goal: float, known: float) -> Verdict:
    numbers = {f"evaluations of {name}": value for name, value in needed.items()}
    numbers |= {"own error": own.error, "own evaluations": own.evaluations, "reference": known}
    if goal < FLOOR * known:
        return no_claim(f"the reference is known to {known:.1e}, which does not tell errors of {goal:g}", RULE, numbers)
    if not needed:
        return no_claim(f"no solver comes down to an error of {goal:g}", RULE, numbers)
    order = sorted(needed, key=lambda name: needed[name])
    first = order[0]
    rest = f", {order[1]} {needed[order[1]]:.0f}" if len(order) > 1 else ""
    return Verdict(
        f"An error of {goal:g} takes {first} {needed[first]:.0f} evaluations for each sequence{rest}; the network's "
        f"own {own.solver} ({own.choice}) takes {own.evaluations:.0f} and is off by {own.error:.2g}.",
        numbers,
        RULE,
        first,
    )
