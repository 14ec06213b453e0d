"""States at which an input that is held moves nothing: of the flow and of the steps, with their stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

import solvers
from neuralosc.analysis import subject
from neuralosc.analysis.drawing import GREY, MARKERS, PALETTE
from neuralosc.analysis.dynamics import Dynamics
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.sequence_model import SequenceModel
from solvers.errors import InputError, NumericalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Points further from the mean of the starts than so many mean distances are left out, as in FixedPointFinder.
OUTLIER = 10.0
#: q up to which a local minimum that is no fixed point is a slow point: 1.4e-3 an interval.
SLOW = 1e-6
#: Real parts that are 0 to rounding, relative to the largest eigenvalue, times n and the condition of the eigenvectors.
NEUTRAL = 4 * 2.0**-52
#: An eigenvalue below this per interval is 0: there Newton's method finds half the digits alone.
DEGENERATE = 1e-6
#: Damping of the first step, relative to the mean diagonal of J^T J, the least and the most; and trials a step.
DAMPING, LEAST, MOST, TRIALS = 1e-3, 1e-15, 1e8, 8
#: A start is given up when q has not fallen by this factor in so many steps: Newton's method near a root takes five.
FALLEN, PATIENCE = 0.5, 8

KINDS = ("stable", "centre", "saddle", "unstable", "neutral", "degenerate", "slow point")

RULE = (
    "a fixed point has q = abs(displacement in one interval)^2 / 2 of at most tol_q (of the flow the slope times dt), "
    "points closer than `unique` are one, and those far from the starts are left out; each point of the map is a start "
    "for the flow and the other way round; a pair is closer than `unique`; stability is that of the signs of the real "
    "parts, of a multiplier of its logarithm, 0 within rounding times the condition of the eigenvectors"
)


@dataclass(frozen=True)
class FixedPoint:
    """A state that stays.

    Attributes:
        of: "flow" or "map".
        state: `(components, hidden)`.
        q: half the squared displacement in one interval.
        starts: from how many starts it was reached.
        rates: eigenvalues per unit of time, `(n,)` complex, the largest real part first; of a map the logarithms of
            its multipliers over dt.
        condition: of the eigenvectors: what an error of the Jacobian is multiplied by.
        kind: one of `KINDS`.
        unstable: eigenvalues that grow.
        partner: the distance of the nearest point of the other kind, infinity without any.
    """

    of: str
    state: Tensor
    q: float
    starts: int
    rates: Tensor
    condition: float
    kind: str
    unstable: int
    partner: float = math.inf

    def row(self) -> Row:
        """What a table says of it."""
        return {
            "of": self.of,
            "kind": self.kind,
            "q": self.q,
            "starts": self.starts,
            "largest rate": complex(self.rates[0]),
            "growing": self.unstable,
            "condition": self.condition,
            "distance of the other's": self.partner if math.isfinite(self.partner) else None,
            "norm of the state": float(self.state.norm()),
        }


@dataclass(frozen=True)
class FixedPoints(Result):
    """The fixed points that were found.

    Attributes:
        points: those of the flow, then those of the map, most often reached first.
        slow: local minima of q that are no fixed points.
        starts: how many starts, and how many of them ended at a fixed point, by "flow" and "map".
        reached: likewise.
        name: whose map.
        dt: the time of an interval.
        begun: the starts, `(starts, components, hidden)`.
    """

    points: tuple[FixedPoint, ...]
    slow: tuple[FixedPoint, ...]
    starts: int
    reached: dict[str, int]
    name: str
    dt: float
    begun: Tensor = field(repr=False)

    heading: ClassVar[str] = "Fixed points"

    def rows(self) -> list[Row]:
        """A row for each point, slow ones last."""
        return [point.row() for point in (*self.points, *self.slow)]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return (10.0, 4.4)

    def draw(self, figure: Figure) -> None:
        """States and points in a plane, and the rates of the points."""
        left, right = figure.subplots(1, 2)
        flat, names = self.begun.flatten(1), ("first number of the state", "second number of the state")
        center, axes = torch.zeros_like(flat[:1]), torch.eye(flat.shape[1], 2, dtype=flat.dtype)
        if flat.shape[1] > 2:
            center = flat.mean(0, keepdim=True)
            axes = torch.linalg.svd(flat - center, full_matrices=False).Vh[:2].mT
            names = ("first principal component", "second principal component")
        left.plot(*((flat - center) @ axes).T, ".", color=GREY, markersize=3, label="starts")
        for point in (*self.points, *self.slow):
            place = (point.state.flatten() - center[0]) @ axes
            color, mark = PALETTE[KINDS.index(point.kind)], MARKERS[KINDS.index(point.kind)]
            flow = point.of == "flow"
            look: dict[str, Any] = {"marker": mark if flow else "o", "markersize": 7 if flow else 12, "color": color}
            look |= {"linestyle": "none"} if flow else {"linestyle": "none", "markerfacecolor": "none"}
            left.plot(float(place[0]), float(place[1] if len(place) > 1 else 0.0), **look)
            right.plot(point.rates.real, point.rates.imag, **{**look, "markersize": 5 if flow else 9})
        for number, kind in enumerate(KINDS):
            if any(point.kind == kind for point in (*self.points, *self.slow)):
                left.plot([], [], MARKERS[number], color=PALETTE[number], label=kind)
        left.plot([], [], "o", color="black", markerfacecolor="none", markersize=10, label="ring: of the map")
        left.set(xlabel=names[0], ylabel=names[1], title="fixed points among the starts")
        left.legend(fontsize=8)
        right.axvline(0.0, color=GREY, linewidth=1.5, zorder=0)
        right.set(xlabel="real part of the rate (1 / time)", ylabel="imaginary part", title=f"rates; map: {self.name}")


def fixed_points(
    model: Any,
    x: Tensor | None,
    start: Tensor,
    *,
    of: str = "flow, map",
    solver: str | solvers.Solver | None = None,
    dt: float | None = None,
    substeps: int | None = None,
    layer: int | None = None,
    tol_q: float = 1e-12,
    unique: float = 1e-3,
    iterations: int = 100,
    samples: int = 32,
    seed: int = 0,
    progress: bool | None = None,
) -> FixedPoints:
    """Where a held input leaves the state as it is, how stable that is, and whether flow and steps agree on it.

    Minimises q(state) = abs(F(state, u) - state)^2 / 2 of the map F, and abs(dt f(state, u))^2 / 2 of the flow, from
    all starts at once, by damped Newton steps (Levenberg and Marquardt) that are taken where q falls.

    Args:
        model: a network, a model, or a field.
        x: the input that is held, `(features,)`, as measured; zero if None.
        start: states to start from, such as those of trajectories, `(batch, [time,] components, hidden)`.
        of: "flow", "map" or "flow, map".
        solver, substeps: the map; those of the network when left out.
        dt: of a field, the time of its map; without one the field has a flow alone, whose interval is 1.
        layer: which layer, of a network of several.
        tol_q: q of a fixed point at most.
        unique: distance below which two points are one.
        iterations: of Newton's method.
        samples: how many of the starts, drawn by `seed`.
        seed: of the drawing.
        progress: show how far it is; None for where somebody reads along.

    The verdict's rule is `RULE`. Points that no start leads to are not found, so that it speaks of those found.

    Raises:
        InputError: shapes or options that do not fit, or a flow or a map that there is none of.

    Source: Sussillo & Barak, Neural Computation 25 (2013); Golub & Sussillo, FixedPointFinder, JOSS 2018; Katz &
    Reggia, IEEE Trans. Neural Netw. Learn. Syst. 29 (2018).
    """
    wanted = tuple(part.strip() for part in of.split(","))
    if not set(wanted) <= {"flow", "map"} or len(set(wanted)) != len(wanted):
        raise InputError(f"of is {of!r}, expected 'flow', 'map' or 'flow, map'")
    for name, value in (("tol_q", tol_q), ("unique", unique)):
        if not value > 0:
            raise InputError(f"{name} is {value!r}, expected a positive number")
    if isinstance(start, Tensor) and start.dim() == 4:
        start = start.flatten(0, 1)
    start = start.detach().double()
    if len(start) > samples:
        start = start[torch.randperm(len(start), generator=torch.Generator().manual_seed(seed))[:samples].sort().values]
    if isinstance(model, SequenceModel | RecurrentLayer) and (why := subject.without_solver(model)):
        return FixedPoints((), (), 0, {}, "none", math.nan, start, verdict=no_claim(why, RULE), of="")
    moved = Dynamics.of(model, start, x, solver, dt, substeps, layer)
    if moved.x is not None and len(moved.x) > 1:
        raise InputError(f"x has {len(moved.x)} rows, expected one input that is held at all starts")
    if moved.solver is None and "map" in wanted:
        if "flow" not in wanted:
            raise InputError("a field alone is no map: give solver and dt, or of='flow'")
        wanted = ("flow",)
    if "flow" in wanted and (why := moved.flow_why):
        if "map" not in wanted:
            raise InputError(f"{why}: of='map'")
        wanted = ("map",)
    order: list[str] = [each for each in ("flow", "map") if each in wanted]
    searches = {each: _Search(moved, each, start, tol_q, unique, iterations) for each in order}
    return _found(searches, moved, start, progress)


def _found(searches: dict[str, _Search], moved: Dynamics, start: Tensor, progress: bool | None) -> FixedPoints:
    for search in subject.watched(searches.values(), "fixed points", progress):
        search.run(start)
    for each, other in (("flow", "map"), ("map", "flow")):
        if each in searches and other in searches and searches[other].fixed:
            searches[each].run(torch.stack([state for state, *_ in searches[other].fixed]), extra=True)
    points = {each: search.points(search.fixed) for each, search in searches.items()}
    slow = tuple(point for search in searches.values() for point in search.points(search.slow, "slow point"))
    paired = []
    for each, other in (("flow", "map"), ("map", "flow")):
        for point in points.get(each, ()):
            apart = [float((point.state - twin.state).norm()) for twin in points.get(other, ())]
            paired.append(replace(point, partner=min(apart, default=math.inf)))
    reached = {each: search.reached for each, search in searches.items()}
    verdict = _verdict(paired, len(slow), searches, len(start), moved.name)
    dt = moved.dt or 1.0
    return FixedPoints(
        tuple(paired), slow, len(start), reached, moved.name, dt, start, verdict=verdict, of=", ".join(searches)
    )


class _Search:
    """The zeros of one displacement."""

    def __init__(self, moved: Dynamics, of: str, start: Tensor, tol_q: float, unique: float, iterations: int) -> None:
        self.of, self.dt, self.tol_q, self.unique, self.iterations = of, moved.dt or 1.0, tol_q, unique, iterations

        def displacement(state: Tensor) -> Tensor:
            return moved.step(state) - state if of == "map" else self.dt * moved.slope(state)

        self.displacement = solvers.Transition(displacement, f"the displacement of the {of}")
        center = start.mean(0)
        distance = float((start - center).flatten(1).norm(dim=1).mean())
        self.center, self.radius = center, OUTLIER * distance if distance > 0 else math.inf
        self.fixed: list[tuple[Tensor, float, int]] = []
        self.slow: list[tuple[Tensor, float, int]] = []
        self.reached = 0

    def run(self, starts: Tensor, extra: bool = False) -> None:
        """Go on from all starts; of `extra` ones none is counted."""
        numbers = starts[0].numel()
        # The Jacobian of a part, its square and factors.
        size = max(1, subject.STATE_BYTES // (32 * numbers**2))
        for part in starts.split(size):
            ends, q = self.descend(part)
            inside = (ends - self.center).flatten(1).norm(dim=1) <= self.radius
            fixed = q <= self.tol_q
            self.reached += 0 if extra else int((fixed & inside).sum())
            for i in (inside & (q <= max(SLOW, self.tol_q))).nonzero().flatten().tolist():
                if fixed[i] or not extra:
                    self._keep(self.fixed if fixed[i] else self.slow, ends[i], float(q[i]), 0 if extra else 1)

    def _keep(self, kept: list[tuple[Tensor, float, int]], state: Tensor, q: float, count: int) -> None:
        for i, (other, least, starts) in enumerate(kept):
            if float((other - state).norm()) <= self.unique:
                kept[i] = (state, q, starts + count) if q < least else (other, least, starts + count)
                return
        kept.append((state, q, count))

    @torch.no_grad()
    def descend(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Where q falls no more, and q there."""
        state, damping = state.clone(), torch.full((len(state),), DAMPING, dtype=state.dtype)
        size = torch.full_like(damping, 1.0)
        moved = self.displacement(state).flatten(1)
        q, active = moved.square().sum(1) / 2, torch.ones(len(state), dtype=torch.bool)
        before = q.clone()
        for count in range(1, self.iterations + 1):
            # Nothing is below what rounding of the state makes of a displacement.
            floor = 2.0**-104 * (1 + state.flatten(1).square().sum(1)) / 2
            rows = (active & (q > floor)).nonzero().flatten()
            if not len(rows):
                break
            matrix = self.displacement.jacobian(state[rows])
            square, slope = matrix.mT @ matrix, (matrix.mT @ moved[rows].unsqueeze(-1)).squeeze(-1)
            size[rows] = square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
            left = torch.ones(len(rows), dtype=torch.bool)
            for _ in range(TRIALS):
                now = rows[left]
                if not len(now):
                    break
                eye = torch.eye(slope.shape[1], dtype=state.dtype) * (damping[now] * size[now])[:, None, None]
                step, _ = torch.linalg.solve_ex(square[left] + eye, -slope[left])
                length = step.norm(dim=1, keepdim=True)
                step = torch.where(length > self.radius, step * (self.radius / length), step)
                trial = state[now] + step.unflatten(1, state.shape[1:])
                there, value = self._tried(trial)
                better = value < q[now]
                taken, kept = now[better], now[~better]
                state[taken], moved[taken], q[taken] = trial[better], there[better], value[better]
                damping[taken] = (damping[taken] / 10).clamp_min(LEAST)
                damping[kept] = (damping[kept] * 100).clamp_max(MOST)
                left[left.clone()] = ~better
            # No damping helps: a minimum of q, or rounding.
            active[rows[left]] = False
            if count % PATIENCE == 0:
                active &= q < FALLEN * before
                before = q.clone()
        return state, q

    def _tried(self, trial: Tensor) -> tuple[Tensor, Tensor]:
        finite = torch.isfinite(trial).flatten(1).all(1)
        try:
            there = self.displacement(torch.where(finite[:, None, None], trial, 0.0)).flatten(1)
        except NumericalError:
            # One state that a solver cannot follow stops all: shorter steps for each.
            return torch.zeros_like(trial).flatten(1), torch.full((len(trial),), math.inf, dtype=trial.dtype)
        value = there.square().sum(1) / 2
        return there, torch.where(finite & torch.isfinite(value), value, math.inf)

    def points(self, found: Sequence[tuple[Tensor, float, int]], kind: str | None = None) -> list[FixedPoint]:
        """Points with their eigenvalues, most often reached first."""
        found = sorted(found, key=lambda each: -each[2])
        points = []
        for state, q, starts in found:
            matrix = self.displacement.jacobian(state.unsqueeze(0))[0]
            if self.of == "map":
                matrix = matrix + torch.eye(len(matrix), dtype=matrix.dtype)
            values, vectors = torch.linalg.eig(matrix)
            rates = (values.log() if self.of == "map" else values) / self.dt
            rates = rates[rates.real.argsort(descending=True)]
            condition = float(torch.linalg.cond(vectors))
            which, growing = stability(rates, condition, self.dt)
            points.append(FixedPoint(self.of, state, q, starts, rates, condition, kind or which, growing))
        return points


def stability(rates: Tensor, condition: float, dt: float) -> tuple[str, int]:
    """What the eigenvalues (per unit of time) of a point say, and how many of them grow."""
    finite = rates[torch.isfinite(rates.real)]
    largest = float(finite.abs().max()) if len(finite) else 0.0
    zero = NEUTRAL * len(rates) * condition * max(largest, 1.0 / dt)
    growing, falling = int((rates.real > zero).sum()), int((rates.real < -zero).sum())
    if bool((finite.abs() * dt <= DEGENERATE).any()):
        return "degenerate", growing
    if growing:
        return ("saddle" if falling else "unstable"), growing
    if falling == len(rates):
        return "stable", 0
    return ("neutral" if falling else "centre"), 0


def _verdict(points: list[FixedPoint], slow: int, searches: dict[str, _Search], starts: int, name: str) -> Verdict:
    numbers = {"starts": float(starts), "slow points": float(slow)}
    for each, search in searches.items():
        numbers |= {f"points of the {each}": float(len(search.fixed)), f"reached of the {each}": float(search.reached)}
    counts = {each: [point for point in points if point.of == each] for each in searches}
    if not points:
        return no_claim(f"no start of {starts} led to a fixed point ({slow} slow points)", RULE, numbers)
    if len(searches) == 1:
        ((each, found),) = counts.items()
        kinds = ", ".join(f"{sum(p.kind == kind for p in found)} {kind}" for kind in KINDS if _any(found, kind))
        said = f"The {each} has {len(found)} fixed points that {starts} starts led to: {kinds}."
        return Verdict(said, numbers, RULE, "found")
    unique = searches["map"].unique
    pairs = [point for point in counts["map"] if point.partner <= unique]
    alone = {each: sum(point.partner > unique for point in found) for each, found in counts.items()}
    other = []
    for point in pairs:
        twin = min(counts["flow"], key=lambda each: float((each.state - point.state).norm()))
        if twin.kind != point.kind:
            other.append((twin.kind, point.kind))
    distance = max((point.partner for point in pairs), default=0.0)
    numbers |= {
        "pairs": float(len(pairs)),
        "largest distance of a pair": distance,
        "other stability": float(len(other)),
    }
    numbers |= {f"alone of the {each}": float(count) for each, count in alone.items()}
    if any(alone.values()):
        said = (
            f"Flow and map ({name}) do not have the same fixed points: {len(pairs)} are of both, {alone['flow']} of "
            f"the flow alone and {alone['map']} of the map alone"
        )
    else:
        said = (
            f"The {len(pairs)} fixed points that {starts} starts led to are of flow and map ({name}) alike (to "
            f"{distance:.1e})"
        )
    if other:
        changes = ", ".join(sorted({f"{a} becomes {b}" for a, b in other}))
        return Verdict(
            f"{said}; {len(other)} of them have another stability under the map ({changes}).", numbers, RULE, "differ"
        )
    answer = "differ" if any(alone.values()) else "agree"
    return Verdict(f"{said}{', with the same stability' if pairs else ''}.", numbers, RULE, answer)


def _any(points: Sequence[FixedPoint], kind: str) -> bool:
    return any(point.kind == kind for point in points)
