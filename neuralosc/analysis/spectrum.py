"""Eigenvalues of a field along its run, where they lie in the stability region of the solver, and the largest step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import solvers
from neuralosc.analysis.along import Walk, walk
from neuralosc.analysis.drawing import GREY, INK, PALETTE
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import continuous, precise, watched
from solvers.errors import InputError, NumericalError, PairingError
from solvers.numerics.stability import RationalStability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What rounding may make of an eigenvalue on the boundary of the stability region.
SLACK = 1e-9

#: Beyond this many times its own step a method is called stable for any: each further one would be an extrapolation.
FURTHEST = 2.0**10

#: Bisections of the largest stable step (to 4 digits), and the ratio of the steps that are tried before.
BISECTIONS, RATIO = 14, 2.0

#: Where the flow itself grows, how much faster a step may: the rest is accuracy, which is another question.
PACE = 1.5

#: Condition numbers of the eigenvectors beyond which eigenvalues say little of what a step does (Trefethen & Embree).
NORMAL = 1e3


@dataclass(frozen=True)
class Spectrum(Result):
    """What `spectrum` found, at each point along the run.

    Attributes:
        eigenvalues: of the derivative of the field, time scale included, `(points, n)`, complex, per unit of time.
        steps: length of a step of the solver there, `(points,)`.
        radii: spectral radius of the step itself there, `(points,)`.
        growth: of the flow over the same time, the largest abs(exp(h lambda)), `(points,)`.
        stable: the largest stable step, `(points,)`: 0 where the smallest tried is not, infinite where all are, NaN
            where the method chooses its steps.
        conditions: condition number of the eigenvectors, `(points,)`.
        inside: share of the eigenvalues where abs(R(h lambda)) <= 1; None where the method has no such function.
        damped: share of the decaying eigenvalues that the step does not let decay as fast, abs(R) > abs(exp); None too.
        solver: the method.
        points: how many were looked at.
    """

    eigenvalues: Tensor
    steps: Tensor
    radii: Tensor
    growth: Tensor
    stable: Tensor
    conditions: Tensor
    inside: float | None
    damped: float | None
    solver: str

    heading: ClassVar[str] = "Eigenvalues and stability"
    inches: ClassVar[tuple[float, float]] = (10.0, 4.6)

    @property
    def stiffness(self) -> Tensor:
        """The largest over the smallest abs(lambda) of the decaying eigenvalues of each point; NaN of none."""
        decay = torch.where(self.eigenvalues.real < 0, self.eigenvalues.abs(), torch.nan)
        largest, smallest = (torch.nan_to_num(decay, nan=v) for v in (0.0, math.inf))
        return largest.amax(1) / smallest.amin(1)

    def rows(self) -> Sequence[Row]:
        """A row for each point."""
        return [
            {
                "point": i,
                "step": float(self.steps[i]),
                "largest real part (flow)": float(self.eigenvalues[i].real.max()),
                "h |lambda|": float((self.steps[i] * self.eigenvalues[i].abs()).max()),
                "radius (map)": float(self.radii[i]),
                "growth (flow)": float(self.growth[i]),
                "largest stable step": float(self.stable[i]),
                "condition": float(self.conditions[i]),
                "stiffness": float(self.stiffness[i]),
            }
            for i in range(len(self.steps))
        ]

    def draw(self, figure: Figure) -> None:
        """h lambda over the stability region, and the largest stable step at each point."""
        plane, steps = figure.subplots(1, 2, width_ratios=(1.2, 1))
        z = (self.steps.unsqueeze(1) * self.eigenvalues).flatten().numpy()
        reach = max(1.0, 1.15 * float(np.abs(z).max()))
        function = _rational(self.solver)
        if function is not None:
            reach = max(reach, 3.5)
            grid = np.linspace(-reach, reach, 301)
            size = np.abs(function(grid[None, :] + 1j * grid[:, None]))
            plane.contourf(grid, grid, size, levels=[0, 1], colors=[GREY], alpha=0.5)
            plane.contour(grid, grid, size, levels=[1], colors=[INK], linewidths=0.8)
        plane.plot(z.real, z.imag, ".", color=PALETTE[0], alpha=0.6)
        plane.axvline(0, color=INK, linewidth=0.5)
        shaded = "shaded: where a step does not grow" if function is not None else "the method has no one region"
        plane.set(xlabel="Re h lambda", ylabel="Im h lambda", title=f"{self.solver}; {shaded}")
        plane.set_aspect("equal", adjustable="datalim")
        finite = self.stable.isfinite()
        places = torch.arange(len(self.steps))
        steps.plot(places, self.steps, "s", color=PALETTE[1], label="step that is taken")
        steps.plot(places[finite], self.stable[finite], "o", color=PALETTE[0], label="largest stable step")
        if not finite.all():
            steps.plot([], [], " ", label=f"at {int((~finite).sum())} points none that was tried is unstable")
        steps.set(yscale="log", xlabel="point along the run", ylabel="units of time")
        steps.xaxis.get_major_locator().set_params(integer=True)
        steps.legend(fontsize=8)


def spectrum(
    model: nn.Module, data: Any, points: int = 16, layer: int = -1, seed: int = 0, progress: bool | None = None
) -> Spectrum:
    """Are the steps of a network stable on what it has learnt, and how much larger could they be?

        lambda = eigenvalues of s df/dx,    z = h lambda,    R(z) the factor of a step of x' = lambda x

    at states along the run, s the time scale of the field. A step is called stable if its spectral radius, as it is
    computed, is at most 1, or, where the flow grows by itself, at most exp(1.5 h Re lambda), up to 1e-9. The largest
    stable step is searched along the run, by the step itself and not by R: away from an equilibrium, or with
    eigenvectors far from orthogonal, the eigenvalues of a step are not R(h lambda), and the condition number says how
    far that is to be trusted.

    The verdict: stable if every step is, at all points; unstable with the share of points where it is not; no claim of
    a method that chooses its steps.

    Args:
        model: a `SequenceModel` or a `ContinuousRNN`.
        data: samples, as `Samples.of` takes them.
        points: how many states along the run, drawn by `seed`.
        layer: which layer; the last when left out.
        seed: draws the points.
        progress: show a bar; None where somebody reads along.

    Raises:
        InputError: a network without a solver, with noise or in two directions, or whose field has no slope.
        NumericalError: the run itself fails.

    Source: Hairer & Wanner, Solving Ordinary Differential Equations II, IV.2 and IV.3; Chang et al., ICLR 2019.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 1:
        raise InputError(f"points is {points!r}, expected a positive number of states")
    continuous(model)
    way = walk(precise(model), Samples.of(data).double(), layer)
    rows, places = _drawn(way, points, seed)
    rnn, states = way.rnn, way.states[rows, places]
    derivative = way.slope(rows, places).jacobian(states)
    eigenvalues, vectors = torch.linalg.eig(derivative)
    # A longest step divides an interval further.
    spans = way.spans[rows, places]
    per_interval = _counts(way, spans)
    steps = spans / per_interval
    growth = (steps.unsqueeze(1) * eigenvalues.real).exp().amax(1)
    field = rnn.layer(way.layer)

    def radius(size: Tensor) -> Tensor:
        """Spectral radius of one step of these sizes; infinite where it fails."""
        begun = way.starts[rows, places]
        return _radius(field, rnn.solver, way, rows, places, begun, size, states)

    adaptive = rnn.solver.adaptive
    radii = radius(steps) if not adaptive else torch.full_like(steps, torch.nan)
    stable = torch.full_like(steps, torch.nan)
    if not adaptive:
        stable = _largest(radius, steps, eigenvalues.real.amax(1), progress)
    inside, damped = _shares(rnn.solver, steps.unsqueeze(1) * eigenvalues)
    conditions = torch.linalg.cond(vectors)
    said = _verdict(rnn.solver, steps, radii, growth, stable, conditions)
    return Spectrum(
        eigenvalues, steps, radii, growth, stable, conditions, inside, damped, rnn.solver.name, verdict=said,
        of="flow, map",
    )  # fmt: skip


def _drawn(way: Walk, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Places along the run at which time passes."""
    rows, places = (way.valid & (way.spans > 0)).nonzero(as_tuple=True)
    if not len(rows):
        raise InputError("data has no sample at which time passes: there is no step to look at")
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:points]
    return rows[chosen], places[chosen]


def _counts(way: Walk, spans: Tensor) -> Tensor:
    """Steps that the solver takes in these intervals."""
    rnn = way.rnn
    longest = rnn.max_dt
    if longest == "auto":
        longest = None if rnn.solver.adaptive or rnn.solver.exact(rnn.layer(way.layer)) else 1.0
    pieces = torch.ones_like(spans)
    if longest is not None:
        # What is rounding asks for no second step.
        pieces = (spans / (float(longest) * rnn.dts[way.layer]) - 1e-6).ceil().clamp_min(1)
    return pieces * rnn.substeps


def _radius(
    field: Any, solver: Any, way: Walk, rows: Tensor, places: Tensor, begun: Tensor, size: Tensor, states: Tensor
) -> Tensor:
    """The spectral radius of one step of the solver from each state, under the input held at its value there."""
    held = way.current(rows, places)
    step = solvers.transition(field, solver, size, held)
    try:
        jacobians = step.jacobian(states)
    except (NumericalError, PairingError):
        return torch.full_like(size, math.inf)
    finite = jacobians.isfinite().flatten(1).all(1)
    radii = torch.full_like(size, math.inf)
    radii[finite] = torch.linalg.eigvals(jacobians[finite]).abs().amax(1)
    return radii


def _largest(radius: Callable[[Tensor], Tensor], steps: Tensor, rate: Tensor, progress: bool | None) -> Tensor:
    """The end of the first stretch of stable steps, for each point: a coarse search upward, and a bisection."""

    def stable(size: Tensor) -> Tensor:
        return _allowed(radius(size), (rate * size).exp())

    low, high = torch.zeros_like(steps), torch.full_like(steps, math.inf)
    size = steps / 64
    tries = math.ceil(math.log(64 * FURTHEST, RATIO))
    for _ in watched(range(tries), "steps that are tried", progress):
        if high.isfinite().all():
            break
        fine = stable(size)
        open_ = high.isinf()
        high = torch.where(open_ & ~fine, size, high)
        low = torch.where(open_ & fine, size, low)
        size = size * RATIO
    bounded = high.isfinite() & (low > 0)
    if not bounded.any():
        return torch.where(high.isfinite(), low, high)
    for _ in watched(range(BISECTIONS), "bisections", progress):
        middle = torch.where(bounded, (low + high.nan_to_num(posinf=0.0)) / 2, low)
        fine = stable(middle.clamp_min(1e-300))
        low = torch.where(bounded & fine, middle, low)
        high = torch.where(bounded & ~fine, middle, high)
    return torch.where(high.isfinite(), low, high)


def _allowed(radii: Tensor, growth: Tensor) -> Tensor:
    """Whether steps of these radii are stable where the flow grows by so much."""
    return radii.log() <= PACE * growth.log().clamp_min(0.0) + SLACK


def _rational(solver: Any) -> RationalStability | None:
    try:
        found = solvers.stability(solver)
    except PairingError:
        return None
    return found if isinstance(found, RationalStability) else None


def _shares(solver: Any, z: Tensor) -> tuple[float | None, float | None]:
    """Share of eigenvalues that a step does not grow, and of decaying ones that it lets decay too slowly."""
    function = _rational(solver)
    if function is None:
        return None, None
    values = z.flatten().numpy()
    size = np.abs(function(values))
    decaying = values.real < -SLACK
    slower = size[decaying] > np.abs(np.exp(values[decaying])) * (1 + SLACK)
    return float((size <= 1 + SLACK).mean()), float(slower.mean()) if decaying.any() else None


def _verdict(solver: Any, steps: Tensor, radii: Tensor, growth: Tensor, stable: Tensor, conditions: Tensor) -> Verdict:
    rule = (
        "a step is stable if the spectral radius of its own derivative is at most 1 or, where the flow grows, at most "
        f"exp({PACE:g} h Re lambda); eigenvectors of condition above {NORMAL:g} are said"
    )
    numbers: dict[str, float] = {"points": len(steps), "condition": float(conditions.median())}
    if solver.adaptive:
        return no_claim(f"solver {solver.name!r} chooses its steps", rule, numbers)
    bad = ~_allowed(radii, growth)
    room = float((stable / steps).min())
    numbers |= {"unstable share": float(bad.double().mean()), "least room": room, "largest radius": float(radii.max())}
    warned = ""
    if float(conditions.median()) > NORMAL:
        warned = (
            f"; eigenvectors are far from orthogonal (condition {float(conditions.median()):.1e}), so that much can "
            "grow for a while that decays at last"
        )
    if bad.any():
        share = float(bad.double().mean())
        worst = int(radii.where(bad, -torch.inf).argmax())
        sizes = f"a radius of {float(radii[worst]):.4g} where the flow has {float(growth[worst]):.4g}"
        sentence = f"Steps are unstable at {share:.0%} of {len(steps)} points: {sizes}"
        return Verdict(f"{sentence}{warned}.", numbers, rule, "unstable")
    ends = f"up to {room:.3g} times as long are" if math.isfinite(room) else f"up to {FURTHEST:g} times as long are too"
    return Verdict(f"Steps are stable at all {len(steps)} points, and steps {ends}{warned}.", numbers, rule, "stable")
