"""The equation that steps really solve: the field with its first corrections in the step, and whether it was learnt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.func import jvp

import solvers
from neuralosc.analysis import subject
from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.dynamics import Dynamics
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.sequence_model import SequenceModel
from solvers.base.solver import Paired
from solvers.base.state import increment, over_state
from solvers.errors import InputError
from solvers.methods.implicit import ImplicitRungeKutta
from solvers.protocol import bind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Terms beyond the field: forward over forward differentiation takes twice the time with each.
MOST_TERMS = 4
#: Halvings of the step at which the series is compared with the steps.
HALVINGS = 4
#: Iterates of the step in the modified field that the series is compared with: h^12 is left out of it.
ITERATES = 12
#: A difference below this, relative to the field, is rounding.
ROUNDING = 1e-11
#: How much less than expected the power of the defect in h may be.
SLACK = 0.5
#: Share of the difference to the truth that the corrections explain where they are its reason, and where they are not.
EXPLAINED, UNEXPLAINED = 0.9, 0.1
#: States that a comparison with a truth needs.
FEWEST = 8

RULE = (
    f"the truncated series is compared with the logarithm of the steps from {ITERATES} iterates at h, h/2, h/4, ..; "
    f"the terms are confirmed where the power of the defect is at least that of the first term left out less {SLACK}, "
    "or the defect is rounding, and say something where they leave less than half of what it differs from "
    "the field. A learnt field is the inverse "
    "modified field of a truth where its own corrections explain at least "
    f"{EXPLAINED:.0%} of the square of its difference to the truth, and is not where they explain at most "
    f"{UNEXPLAINED:.0%}, at {FEWEST} states at least"
)


@dataclass(frozen=True)
class ModifiedEquation(Result):
    """The first terms of f + h f_1 + h^2 f_2 + ...

    Attributes:
        solver: whose steps.
        h: their size.
        terms: f, f_1, f_2, .. at the states, `(order + 1, batch, components, hidden)`, per unit of time.
        steps: h, h/2, ...
        defects: of the series after each term (rows) at each step (columns), RMS, relative to the modified field.
        floors: how well that is known at each step, likewise.
        residuals: of the truth less the series after each term, RMS, relative to that of the truth; empty without.
        factor, error: of the corrections in truth - learnt, by least squares, and its error over states; 1 of a learnt
            field that makes the steps follow the truth.
        explained: share of the square of that difference that the corrections explain.
    """

    solver: str
    h: float
    terms: Tensor = field(repr=False)
    steps: tuple[float, ...]
    defects: tuple[tuple[float, ...], ...]
    floors: tuple[float, ...]
    residuals: tuple[float, ...] = ()
    factor: float = math.nan
    error: float = math.nan
    explained: float = math.nan

    heading: ClassVar[str] = "The modified equation"

    def field(self, count: int | None = None) -> Tensor:
        """The sum of the first so many corrections and the field, at the states; all when left out."""
        count = len(self.terms) - 1 if count is None else count
        powers = self.h ** torch.arange(count + 1, dtype=self.terms.dtype)
        return torch.einsum("k,k...->...", powers, self.terms[: count + 1])

    def rows(self) -> list[Row]:
        """A row for each term."""
        base = _rms(self.terms[0]) if len(self.terms) else 1.0
        rows: list[Row] = []
        for k, term in enumerate(self.terms):
            powers = powers_of(self.defects[k], self.floors)
            rows.append(
                {
                    "term": _name(k),
                    "size": self.h**k * _rms(term) / max(base, 1e-300),
                    "defect after it": self.defects[k][0],
                    "power of h": powers[-1] if powers else None,
                    "difference to the truth after it": self.residuals[k] if self.residuals else None,
                }
            )
        return rows

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return (9.5, 4.2)

    def draw(self, figure: Figure) -> None:
        """Defects against the step, and what each term leaves of the difference to the truth, or its size."""
        left, right = figure.subplots(1, 2)
        for k, (defect, color) in enumerate(zip(self.defects, PALETTE, strict=False)):
            label = "f alone" if k == 0 else f"to {_name(k)}"
            left.plot(self.steps, [max(each, 1e-18) for each in defect], "o-", color=color, label=label)
        left.plot(self.steps, self.floors, "--", color=GREY, label="known to")
        left.set(xscale="log", yscale="log", xlabel="step h", ylabel="modified field less series, relative RMS")
        left.set_title(f"what {self.solver} solves")
        left.legend(fontsize=8)
        rows = self.rows()
        key = "difference to the truth after it" if self.residuals else "size"
        right.bar([str(row["term"]) for row in rows], [row[key] for row in rows], color=PALETTE[: len(rows)])
        right.set(yscale="log", ylabel=f"{key}, relative RMS", title=f"terms at h = {self.h:g}")


def modified_equation(
    model: Any,
    states: Tensor,
    order: int = 2,
    *,
    x: Tensor | None = None,
    solver: str | solvers.Solver | None = None,
    dt: float | None = None,
    substeps: int | None = None,
    layer: int | None = None,
    truth: Any = None,
    samples: int = 64,
    seed: int = 0,
) -> ModifiedEquation:
    """Which equation the steps of a solver solve better than the one they are meant for.

    The step of size h, M_h, is the flow over h of the series f + h f_1 + h^2 f_2 + ..., whose terms are the powers of h
    in its logarithm,

        h f + h^2 f_1 + ... = log(M_h) x = sum over j of (-1)^(j-1) (M_h - 1)^j x / j,

    M_h^i x being the state after i steps. The powers are derivatives by h at h = 0, by automatic differentiation,
    forward over forward, with no difference quotient; stages of an implicit method are iterated as often as the order
    asks for. A field that was trained through such steps to follow a truth tends to learn g with g + h g_1 + ... =
    truth, the inverse modified field.

    Args:
        model: a network, a model, or a field: the learnt one where there is a truth.
        states: where the terms are wanted, `(batch, components, hidden)`.
        order: the last power of h, up to `MOST_TERMS`; a method of order p has f_p as its first correction.
        x: the input that is held, `(features,)` or `(batch, features)`; zero when left out.
        solver, substeps: the map; those of the network when left out.
        dt: of a field, the time of its map.
        layer: which layer, of a network of several.
        truth: the field that was to be learnt, in the same units of time, under the same input.
        samples: how many of the states, drawn by `seed`.
        seed: of the drawing.

    The verdict's rule is `RULE`.

    Raises:
        InputError: an order or shapes that do not fit, a field without solver.

    Source: Hairer, Lubich & Wanner, Geometric Numerical Integration, IX.1; Zhu, Jin, Zhu & Tang, ICML 2022, of the
    inverse; David & Mehats, J. Comput. Phys. 494 (2023).
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= MOST_TERMS:
        raise InputError(f"order is {order!r}, expected a whole number from 1 to {MOST_TERMS}")
    states = states.detach().double()
    if isinstance(model, SequenceModel | RecurrentLayer) and (why := subject.without_solver(model)):
        return _nothing("none", math.nan, why)
    rows: slice | Tensor = slice(None)
    if len(states) > samples:
        rows = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))[:samples].sort().values
    moved = Dynamics.of(model, states, x, solver, dt, substeps, layer).pick(rows)
    states = states[rows]
    if moved.solver is None:
        raise InputError("a field alone takes no steps: give solver and dt")
    if why := moved.flow_why or _unfit(moved):
        return _nothing(moved.name, moved.h, why)
    with torch.no_grad():
        series = Series(moved, states)
        terms = series.terms(states, order)
        steps = tuple(moved.h / 2**j for j in range(HALVINGS))
        known = [series.at(h) for h in steps]
        left = [
            [_left(terms[: k + 1], h, value) for h, (value, _) in zip(steps, known, strict=True)]
            for k in range(order + 1)
        ]
        defects, floors = tuple(map(tuple, left)), tuple(floor for _, floor in known)
        compared = _compared(moved, terms, states, truth) if truth is not None else {}
    verdict = _verdict(moved, order, defects, floors, compared, len(states))
    return ModifiedEquation(moved.name, moved.h, terms, steps, defects, floors, **compared, verdict=verdict, of="map")


def _nothing(name: str, h: float, why: str) -> ModifiedEquation:
    return ModifiedEquation(name, h, torch.empty(0), (), (), (), verdict=no_claim(why, RULE), of="map")


def _unfit(moved: Dynamics) -> str:
    solver = moved.solver
    assert solver is not None
    if solver.adaptive:
        return f"{solver.name} chooses its steps, which are those of no one equation"
    if isinstance(solver, Paired):
        return f"{solver.name} carries more than the state, so that its steps are no map of states"
    return ""


class Series:
    """The modified field of a method at some states, term by term."""

    def __init__(self, moved: Dynamics, states: Tensor) -> None:
        assert moved.solver is not None
        self.solver, self.field, self.u = moved.solver, bind(moved.field), moved.expanded(len(states))
        if moved.rnn is not None:
            self.solver = self.solver.paced(moved.h)
        self.states = states

    def step(self, h: Tensor, state: Tensor, order: int) -> Tensor:
        """A step of h, a number without dimensions; of an implicit method exact up to h^order."""
        if isinstance(self.solver, ImplicitRungeKutta):
            return self._iterated(h, state, order)
        opened = state if self.solver.split else self.solver.open(state)
        return self.solver.close(self.solver.step(self.field, 0.0, h, opened, lambda t: self.u))

    def _iterated(self, h: Tensor, state: Tensor, order: int) -> Tensor:
        assert isinstance(self.solver, ImplicitRungeKutta)
        tableau, pace = self.solver.tableau, over_state(increment(self.field, h))
        # Each iteration of k_i = f(x + h sum_j a_ij k_j) is right to one more power of h.
        slopes = [torch.zeros_like(state)] * len(tableau.b)
        for _ in range(order):
            inner = [sum((a * k for a, k in zip(row, slopes, strict=True)), start=0.0) for row in tableau.a]
            slopes = [self.field(0.0, state + pace * each, self.u) for each in inner]
        return state + pace * sum((b * k for b, k in zip(tableau.b, slopes, strict=True)), start=0.0)

    def terms(self, state: Tensor, order: int) -> Tensor:
        """f, f_1, .., f_order, `(order + 1, batch, components, hidden)`."""
        weights = logarithm(order + 1)

        def series(h: Tensor) -> Tensor:
            total, place = weights[0] * state, state
            for weight in weights[1:]:
                place = self.step(h, place, order + 1)
                total = total + weight * place
            return total

        zero, terms = torch.zeros((), dtype=state.dtype), []
        function: Callable[[Tensor], Tensor] = series
        for k in range(1, order + 2):
            function = _by_h(function)
            terms.append(function(zero) / math.factorial(k))
        return torch.stack(terms)

    def at(self, h: float) -> tuple[Tensor, float]:
        """The modified field of steps of h, from more of their iterates, and how well it is known (relative RMS)."""
        size, places = torch.tensor(h, dtype=self.states.dtype), [self.states]
        for _ in range(ITERATES):
            places.append(self.taken(size, places[-1]))
        whole = torch.stack(places)
        value = torch.einsum("k,k...->...", torch.tensor(logarithm(ITERATES), dtype=whole.dtype), whole) / h
        # What the last power adds, and the rounding of the sum.
        last = whole
        for _ in range(ITERATES):
            last = last.diff(dim=0)
        rounding = 2.0**-52 * sum(map(abs, logarithm(ITERATES))) * _rms(whole) / h
        return value, (_rms(last[0]) / ITERATES / h + rounding) / max(_rms(value), 1e-300)

    def taken(self, h: Tensor, state: Tensor) -> Tensor:
        """A step as it is taken; of an implicit method by Newton's, to rounding."""
        if isinstance(self.solver, ImplicitRungeKutta):
            sharp = self.solver.with_options(tol=2.0**-48)
            return sharp.step(self.field, 0.0, float(h), state, lambda t: self.u)
        return self.step(h, state, 0)


def _by_h(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def derivative(h: Tensor) -> Tensor:
        slope: Tensor = jvp(function, (h,), (torch.ones_like(h),))[1]
        return slope

    return derivative


def logarithm(length: int) -> list[float]:
    """Weights of the iterates of a map in the logarithm of it, up to powers of so many factors (map - 1).

    log M = sum over j of (-1)^(j-1) (M - 1)^j / j, each power by the binomial theorem.
    """
    weights = [0.0] * (length + 1)
    for j in range(1, length + 1):
        for i in range(j + 1):
            weights[i] += (-1) ** (j - 1) / j * (-1) ** (j - i) * math.comb(j, i)
    return weights


def _compared(moved: Dynamics, terms: Tensor, states: Tensor, truth: Any) -> dict[str, Any]:
    """The learnt series against the truth."""
    other = Dynamics.of(truth, states, moved.x if getattr(truth, "input_size", None) else None)
    target = other.slope(states).detach()
    if target.shape != states.shape:
        raise InputError(f"the truth gives {tuple(target.shape)} at states {tuple(states.shape)}: return their shape")
    powers = moved.h ** torch.arange(len(terms), dtype=terms.dtype)
    sums = torch.cumsum(powers.view(-1, 1, 1, 1) * terms, 0)
    size = max(_rms(target), 1e-300)
    residuals = tuple(_rms(target - each) / size for each in sums)
    gap, correction = (target - terms[0]).flatten(1), (sums[-1] - terms[0]).flatten(1)
    square = float(correction.square().sum())
    if square == 0:
        return {"residuals": residuals, "factor": 0.0, "error": math.inf, "explained": 0.0}
    factor = float((gap * correction).sum()) / square
    # States are what was drawn: their own contributions say how sure the factor is.
    parts = ((gap - factor * correction) * correction).sum(1)
    error = float(parts.square().sum().sqrt()) / square
    explained = 1 - (residuals[-1] / residuals[0]) ** 2 if residuals[0] else 0.0
    return {"residuals": residuals, "factor": factor, "error": error, "explained": explained}


def _verdict(
    moved: Dynamics,
    order: int,
    defects: Sequence[Sequence[float]],
    floors: Sequence[float],
    compared: dict[str, Any],
    states: int,
) -> Verdict:
    assert moved.solver is not None
    name, h, method = moved.name, moved.h, moved.solver.order
    last, bare = defects[-1], defects[0]
    powers = powers_of(last, floors)
    left = last[0] / bare[0] if bare[0] > ROUNDING else 0.0
    numbers = {"defect": last[0], "defect of the field alone": bare[0], "left": left, "states": float(states)}
    numbers |= {"power": max(powers, default=math.nan)}
    if order < method and not bare[0] <= ROUNDING:
        why = f"{name} has order {method:g}, so that its first correction is the term h^{method:g}: order={method:g}"
        return no_claim(why, RULE, numbers)
    if not floors[0] < 0.1 * max(bare[0], ROUNDING):
        why = f"at h = {h:g} the step is too long for a series, its logarithm is known to {floors[0]:.1g} alone"
        return no_claim(why, RULE, numbers)
    if powers and max(powers) < order + 1 - SLACK:
        why = (
            f"the steps differ from the series to h^{order} by a power {max(powers):.2f} of h, {order + 1} was "
            "expected: the step is too long for a series, or the field not smooth"
        )
        return no_claim(why, RULE, numbers)
    if not left < 0.5:
        return no_claim(f"at h = {h:g} the series to h^{order} leaves {left:.0%} of the difference", RULE, numbers)
    if not compared:
        said = f"{name} at h = {h:g} follows the field with its corrections to h^{order}: its own differs by "
        if bare[0] <= ROUNDING:
            return Verdict(f"{name} at h = {h:g} follows the field itself, to rounding.", numbers, RULE, "field")
        said += f"{bare[0]:.1e} (relative RMS) from the field alone, and by {last[0]:.1e} from that."
        return Verdict(said, numbers, RULE, "modified")
    before, after = compared["residuals"][0], compared["residuals"][-1]
    explained, factor, error = compared["explained"], compared["factor"], compared["error"]
    numbers |= {"difference before": before, "difference after": after, "explained": explained, "factor": factor}
    numbers |= {"error of the factor": error}
    if states < FEWEST:
        return no_claim(f"{states} states are too few, {FEWEST} are asked for", RULE, numbers)
    if before <= ROUNDING:
        return Verdict(f"The learnt field is the truth itself (to {before:.1e}).", numbers, RULE, "truth")
    said = (
        f"the learnt field differs from the truth by {before:.2g} (relative RMS), and by {after:.2g} with the "
        f"corrections of {name} at h = {h:g}, which explain {explained:.1%} of its square (times "
        f"{factor:.3g} +- {error:.1g} they fit best; 1 is expected, but for the terms left out)"
    )
    if explained >= EXPLAINED:
        sentence = f"The field that was learnt is the inverse modified field of the truth: {said}."
        return Verdict(sentence, numbers, RULE, "inverse")
    if explained <= UNEXPLAINED:
        return Verdict(f"The difference to the truth does not come from the steps: {said}.", numbers, RULE, "other")
    return no_claim(f"the steps are a part of it: {said}", RULE, numbers)


def powers_of(defects: Sequence[float], floors: Sequence[float]) -> list[float]:
    """The power of h between each two steps at which a defect is more than what it is known to."""
    pairs = itertools.pairwise(zip(defects, floors, strict=True))
    return [math.log2(a / b) for (a, _), (b, floor) in pairs if b > 10 * floor]


def _left(terms: Tensor, h: float, value: Tensor) -> float:
    powers = h ** torch.arange(len(terms), dtype=terms.dtype)
    return _rms(value - torch.einsum("k,k...->...", powers, terms)) / max(_rms(value), 1e-300)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _name(k: int) -> str:
    return "f" if k == 0 else f"h f_{k}" if k == 1 else f"h^{k} f_{k}"
