"""What steps do to an energy that the equation conserves: drift or oscillation, and what they conserve instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

import solvers
from neuralosc.analysis import subject
from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.dynamics import Dynamics
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.sequence_model import SequenceModel
from solvers.base.state import increment
from solvers.errors import InputError, NumericalError
from solvers.methods.partitioned import Composition
from solvers.numerics.tableau import Splitting
from solvers.protocol import describe, structure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Blocks of the horizon whose means show a trend, and Student's t of a slope through 16 of them that chance exceeds
#: once in 1,000 (14 degrees of freedom, two sides).
BLOCKS, SIGNIFICANT = 16, 4.14
#: How often most velocities must turn around: eight periods of an oscillation, so that what oscillates is not taken for
#: a trend.
TURNS = 16
#: abs(dH/dt) / (abs(grad H) abs(f)) up to which the equation itself conserves the energy: rounding in float64.
CONSERVED = 1e-10
#: Relative change of an energy that is rounding, after thousands of steps.
ROUNDING = 1e-11
#: Steps at whose states the derivative of the map is looked at.
LOOKED_AT = 8

RULE = (
    f"the horizon is cut into {BLOCKS} blocks; a trajectory drifts where the slope through their means exceeds "
    f"{SIGNIFICANT} of its errors, or they rise or fall without exception, and the last mean is further from the first "
    "than half the range within a block (median); most trajectories must agree. A claim needs an energy that the "
    f"equation conserves (to {CONSERVED:g}), {BLOCKS * 10} steps and {TURNS} turns of the velocities "
    "(the lower quartile over channels and trajectories)"
)


@dataclass(frozen=True)
class Trend:
    """How one energy changes along the steps, relative to its first value; each `(batch,)`.

    Attributes:
        slope, error: of a line through the means of blocks, per unit of time.
        change: the mean of the last block less that of the first.
        oscillation: half the range within a block, the median of the blocks.
        largest: largest absolute change.
        drifts: whether it is a trend and no oscillation; see `RULE`.
    """

    slope: Tensor
    error: Tensor
    change: Tensor
    oscillation: Tensor
    largest: Tensor
    drifts: Tensor

    @classmethod
    def of(cls, energies: Tensor, dt: float) -> Trend:
        """Of energies `(batch, steps + 1)`, `dt` apart; the first BLOCKS * k steps of them."""
        change = energies / energies[:, :1] - 1
        size = (change.shape[1] - 1) // BLOCKS
        blocks = change[:, 1 : 1 + size * BLOCKS].unflatten(1, (BLOCKS, size))
        means = blocks.mean(-1)
        times = (torch.arange(BLOCKS, dtype=means.dtype) - (BLOCKS - 1) / 2) * size * dt
        slope = (means * times).sum(1) / times.square().sum()
        rest = means - means.mean(1, keepdim=True) - slope.unsqueeze(1) * times
        error = (rest.square().sum(1) / (BLOCKS - 2) / times.square().sum()).sqrt()
        steps = means.diff(dim=1)
        monotone = (steps > 0).all(1) | (steps < 0).all(1)
        total = means[:, -1] - means[:, 0]
        oscillation = ((blocks.amax(-1) - blocks.amin(-1)) / 2).median(1).values
        drifts = (monotone | (slope.abs() > SIGNIFICANT * error)) & (total.abs() > oscillation)
        return cls(slope, error, total, oscillation, change.abs().amax(1), drifts)

    def row(self, name: str, order: int | None) -> Row:
        """Medians over the trajectories, and the largest change of any."""
        return {
            "energy": name,
            "order": order,
            "largest change": float(self.largest.max()),
            "oscillation": float(self.oscillation.median()),
            "change over the horizon": float(self.change.median()),
            "slope": float(self.slope.median()),
            "slope's error": float(self.error.median()),
            "drifting": int(self.drifts.sum()),
            "trajectories": len(self.slope),
        }


@dataclass(frozen=True)
class EnergyDrift(Result):
    """What steps do to an energy.

    Attributes:
        solver: whose steps.
        h: their size.
        dt: the time between two energies.
        steps: how many of dt.
        power: largest abs(dH/dt) / (abs(grad H) abs(f)) of the equation itself, time scale included.
        defect: largest abs(M^T J M - J) / abs(J) of the derivative M of the map over dt, J the symplectic form (of a
            field with a time scale s divided by s).
        factor: the mean c of the nearest c J; 1 of a symplectic map, exp(-G dt) of a conformal one.
        conformal_defect: largest abs(M^T J M - c J) / abs(J).
        volume: mean log(abs(det M)), per unit of time.
        trends: by energy: "H", and the modified Hamiltonians where there are.
        energies: likewise, `(batch, steps + 1)`.
    """

    solver: str
    h: float
    dt: float
    steps: int
    power: float = math.nan
    defect: float = math.nan
    factor: float = math.nan
    conformal_defect: float = math.nan
    volume: float = math.nan
    trends: Mapping[str, Trend] = field(default_factory=dict, repr=False)
    energies: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    heading: ClassVar[str] = "Energy along the steps"

    def rows(self) -> list[Row]:
        """A row for each energy."""
        return [trend.row(name, order) for order, (name, trend) in enumerate(self.trends.items())]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return (9.5, 4.0)

    def draw(self, figure: Figure) -> None:
        """The relative change of one trajectory, and the size of that of all, against time."""
        left, right = figure.subplots(1, 2)
        for color, (name, energies) in zip(PALETTE, self.energies.items(), strict=False):
            change = energies / energies[:, :1] - 1
            times = torch.arange(energies.shape[1]) * self.dt
            left.plot(times, change[0], color=color, linewidth=0.9, label=name)
            mean = change.square().mean(0).sqrt()[1:].clamp_min(1e-17)
            right.plot(times[1:], mean, color=color, linewidth=0.9, label=name)
        for axes in (left, right):
            axes.set(xlabel="time (units of the field)")
        left.axhline(0.0, color=GREY, linewidth=1.5, zorder=0, label="the equation")
        left.set(ylabel="relative change of the energy", title="first trajectory")
        right.axhline(2.2e-16, color=GREY, linewidth=1.5, zorder=0, label="one unit of rounding")
        right.set(yscale="log", ylabel="RMS over trajectories")
        right.set_title(f"all {len(next(iter(self.energies.values()), []))} trajectories")
        right.legend()
        figure.suptitle(f"{self.solver}, h = {self.h:g}")


def energy_drift(
    model: Any,
    states: Tensor,
    horizon: int = 2000,
    *,
    x: Tensor | None = None,
    solver: str | solvers.Solver | None = None,
    dt: float | None = None,
    substeps: int | None = None,
    layer: int | None = None,
    energy: Callable[[Tensor, Any], Tensor] | None = None,
    samples: int = 64,
    seed: int = 0,
    progress: bool | None = None,
) -> EnergyDrift:
    """Whether steps lose an energy or let it oscillate, and which they conserve instead.

    Of a composition of drifts and kicks on H = T(p) + V(q) the modified Hamiltonian follows from the logarithm of the
    product of its exponentials,

        H~ = H + h a V_q . s T_p + h^2 (b (s T_p)^T V_qq (s T_p) + c (s V_q)^T T_pp (s V_q)) + O(h^3),

    s the time scale of the field; a = -1/2, b = c = 1/12 of the kick before the drift (symplectic Euler).

    Args:
        model: a network, a model, or a field, with an `energy(state, u)` unless `energy` is given.
        states: where trajectories begin, `(batch, components, hidden)`.
        horizon: how many intervals of dt.
        x: the input that is held, `(features,)` or `(batch, features)`; zero when left out.
        solver, substeps: the map; those of the network when left out.
        dt: of a field, the time between two energies, in its units of time.
        layer: which layer, of a network of several.
        energy: H(state, u), one number for each state, instead of the field's; as of a true system under a learned
            field.
        samples: how many of the states, drawn by `seed`.
        seed: of the drawing.
        progress: show how far it is; None for where somebody reads along.

    The verdict's rule is `RULE`.

    Raises:
        InputError: shapes that do not fit, a field without solver, or a horizon that is no positive number.

    Source: Hairer, Lubich & Wanner, Geometric Numerical Integration, IX.3 and IX.8; McLachlan & Quispel, Nonlinearity
    14 (2001), of conformal maps.
    """
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise InputError(f"horizon is {horizon!r}, expected a whole number of steps of at least 1")
    if isinstance(model, SequenceModel | RecurrentLayer) and (why := subject.without_solver(model)):
        return EnergyDrift("none", math.nan, math.nan, 0, verdict=no_claim(why, RULE), of="map")
    states = states.detach().double()
    rows = slice(None) if len(states) <= samples else _drawn(len(states), samples, seed)
    moved = Dynamics.of(model, states, x, solver, dt, substeps, layer).pick(rows)
    states = states[rows]
    if moved.solver is None:
        raise InputError("a field alone takes no steps: give solver and dt")
    if energy is None and "hamiltonian" not in structure(moved.field):
        why = f"{describe(moved.field)} declares no energy: give energy=, a function of state and u"
        return EnergyDrift(moved.name, moved.h, moved.dt, 0, verdict=no_claim(why, RULE), of="map")
    return _Drift(moved, states, energy).result(horizon, progress)


def _drawn(count: int, wanted: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].sort().values


class _Drift:
    """Energies along steps, and derivatives of the map."""

    def __init__(self, moved: Dynamics, states: Tensor, energy: Callable[[Tensor, Any], Tensor] | None) -> None:
        self.moved, self.states, self.field = moved, states, moved.field
        self.own = energy is None
        self.energy: Callable[[Tensor, Any], Tensor] = moved.field.energy if energy is None else energy
        self.u = moved.expanded(len(states))
        self.pace = torch.as_tensor(increment(self.field, 1.0), dtype=states.dtype).detach()
        found = self.energy(states, self.u)
        if found.shape != states.shape[:1]:
            raise InputError(f"the energy has shape {tuple(found.shape)}, expected one value a state, ({len(states)},)")

    def result(self, horizon: int, progress: bool | None) -> EnergyDrift:
        """All of it."""
        moved, broken = self.moved, ""
        if self.own:
            broken = "; ".join(map(str, solvers.check_field(self.field, self.states, self.u, t=0.0).wrong))
        terms = {} if broken else self.modified()
        energies = {name: [term(self.states, self.u).unsqueeze(1)] for name, term in terms.items()}
        energies["H"] = [self.energy(self.states, self.u).detach().unsqueeze(1)]
        turns, seen = torch.zeros_like(self.states[:, -1]), [self.states]
        head = (moved.name, moved.h, moved.dt, horizon)
        try:
            pieces = subject.watched(moved.paths(self.states, horizon), "energy", progress)
            for piece in pieces:
                flat, steps = piece.flatten(0, 1), piece.shape[1]
                u = None if self.u is None else self.u.repeat_interleave(steps, 0)
                for name, parts in energies.items():
                    parts.append(terms.get(name, self.energy)(flat, u).detach().unflatten(0, (-1, steps)))
                turns += (piece[..., -1, :].diff(dim=1) > 0).diff(dim=1).sum(1)
                seen.append(piece[:, -1])
        except NumericalError as error:
            sentence = f"Under {moved.name} the states do not last the horizon: {error}."
            return EnergyDrift(*head, verdict=Verdict(sentence, {"horizon": float(horizon)}, RULE, "lost"), of="map")
        whole = {name: torch.cat(energies[name], 1) for name in ("H", *terms)}
        power, derivative = self.power(torch.cat(seen)), self.derivative(piece)
        trends = {name: Trend.of(value, moved.dt) for name, value in whole.items()} if horizon >= BLOCKS else {}
        verdict = self.verdict(whole["H"], trends, power, derivative, turns, broken)
        return EnergyDrift(*head, power, **derivative, trends=trends, energies=whole, verdict=verdict, of="map")

    def power(self, states: Tensor) -> float:
        """See `EnergyDrift.power`."""
        u = None if self.u is None else self.u.repeat(len(states) // len(self.states), *[1] * (self.u.dim() - 1))
        with torch.enable_grad():
            free = states.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(free, u).sum(), free)
        slope = solvers.slope(self.field, u)(states).detach()
        size = gradient.flatten(1).norm(dim=1) * slope.flatten(1).norm(dim=1)
        rate = (gradient * slope).sum((1, 2)).abs()
        return float((rate / size.clamp_min(1e-300)).max())

    def derivative(self, piece: Tensor) -> dict[str, Any]:
        """The defects, the factor and the volume of the map, at states of the path."""
        places = torch.linspace(0, piece.shape[1] - 1, LOOKED_AT).round().long().unique()
        states = torch.stack([piece[i % len(piece), int(i)] for i in places])
        rows = torch.as_tensor([int(i) % len(piece) for i in places])
        matrix = solvers.Transition(self.moved.pick(rows).step).jacobian(states)
        volume = float(torch.linalg.slogdet(matrix).logabsdet.mean()) / self.moved.dt
        if states.shape[1] != 2:
            return {"volume": volume}
        hidden = states.shape[2]
        pace = self.pace.expand(hidden)
        form = matrix.new_zeros(2 * hidden, 2 * hidden)
        form[:hidden, hidden:], form[hidden:, :hidden] = torch.diag(1 / pace), -torch.diag(1 / pace)
        pulled = matrix.mT @ form @ matrix
        norm = form.norm()
        factors = (pulled * form).sum((1, 2)) / norm.square()
        apart = (pulled - factors[:, None, None] * form).flatten(1).norm(dim=1) / norm
        return {
            "defect": float(((pulled - form).flatten(1).norm(dim=1) / norm).max()),
            "factor": float(factors.mean()),
            "conformal_defect": float(apart.max()),
            "volume": volume,
        }

    def modified(self) -> dict[str, Callable[[Tensor, Any], Tensor]]:
        """The modified Hamiltonian to the orders h and h^2; of what is no composition on a separable energy none."""
        solver = self.moved.solver
        if not (self.own and isinstance(solver, Composition) and "separable" in structure(self.field)):
            return {}
        assert solver.splitting is not None
        first, *second = logarithm(solver.splitting)
        h = self.moved.h

        def to(order: int) -> Callable[[Tensor, Any], Tensor]:
            def energy(state: Tensor, u: Any) -> Tensor:
                total, *terms = self.brackets(state, u)
                total = total + h * first * terms[0]
                return total if order < 2 else total + h**2 * (second[0] * terms[1] + second[1] * terms[2])

            return energy

        return {"H to order h": to(1), "H to order h^2": to(2)}

    def brackets(self, state: Tensor, u: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """H, V_q . s T_p, (s T_p)^T V_qq (s T_p), (s V_q)^T T_pp (s V_q)."""
        pace = self.pace
        with torch.enable_grad():
            q, p = (part.detach().clone().requires_grad_() for part in state.unbind(-2))
            total = self.energy(torch.stack((q, p), -2), u)
            kick, drift = torch.autograd.grad(total.sum(), (q, p), create_graph=True)
            along, across = (pace * drift).detach(), (pace * kick).detach()
            of_kick = torch.autograd.grad((kick * along).sum(), q, retain_graph=True)[0]
            of_drift = torch.autograd.grad((drift * across).sum(), p)[0]
        terms = (kick * along, of_kick * along, of_drift * across)
        mixed, second, third = (term.sum(-1).detach() for term in terms)
        return total.detach(), mixed, second, third

    def verdict(
        self,
        energies: Tensor,
        trends: Mapping[str, Trend],
        power: float,
        derivative: Mapping[str, float],
        turned: Tensor,
        broken: str,
    ) -> Verdict:
        """See `RULE`."""
        moved, steps = self.moved, energies.shape[1] - 1
        turns = float(turned.quantile(0.25))
        numbers = {"power": power, "steps": float(steps), "turns": turns, **derivative}
        if broken:
            return no_claim(f"{describe(self.field)} breaks what it declares ({broken})", RULE, numbers)
        if not power <= CONSERVED:
            factor = derivative.get("factor", math.nan)
            why = (
                f"the equation itself does not conserve this energy (abs(dH/dt) is up to {power:.2g} of "
                f"abs(grad H) abs(f)), so that a change of it is no fault of the steps; a step multiplies the "
                f"symplectic form by {factor:.6g}, with a defect of {derivative.get('conformal_defect', math.nan):.1e}"
            )
            return no_claim(why, RULE, numbers)
        if steps < BLOCKS * 10:
            return no_claim(f"{steps} steps are too few, {BLOCKS * 10} are asked for", RULE, numbers)
        small = energies[:, 0].abs() < ROUNDING * energies[:, : steps // BLOCKS].abs().amax(1).clamp_min(1e-300)
        if bool(small.any()):
            why = f"{int(small.sum())} trajectories begin with an energy of 0, to which nothing is relative"
            return no_claim(why, RULE, numbers)
        trend = trends["H"]
        for name, part in trends.items():
            numbers[f"largest change of {name}"] = float(part.largest.max())
        drifting, count = int(trend.drifts.sum()), len(energies)
        change, oscillation = float(trend.change.median()), float(trend.oscillation.median())
        largest, span = float(trend.largest.max()), steps * moved.dt
        bound = float(((trend.slope.abs() + SIGNIFICANT * trend.error) * span).max())
        numbers |= {"drifting": float(drifting), "trajectories": float(count), "change": change}
        numbers |= {"oscillation": oscillation, "bound of a trend": bound}
        if largest <= ROUNDING:
            return Verdict(
                f"{moved.name} keeps the energy to rounding ({largest:.1e}) over {steps} steps.", numbers, RULE, "kept"
            )
        if turns < TURNS:
            why = f"velocities turn around {turns:g} times (lower quartile), {TURNS} are asked for: a longer horizon"
            return no_claim(why, RULE, numbers)
        if 2 * drifting > count:
            return Verdict(
                f"{moved.name} does not keep the energy: in {drifting} of {count} trajectories it drifts, by "
                f"{change:+.2g} of itself over a time of {span:g} (median), against an oscillation of "
                f"{oscillation:.1e}.",
                numbers,
                RULE,
                "drifts",
            )
        if drifting:
            return no_claim(f"{drifting} of {count} trajectories drift and the others do not", RULE, numbers)
        kept = ""
        if len(trends) > 1:
            changes = ", ".join(f"{float(trends[name].largest.max()):.1e} {name[2:]}" for name in list(trends)[1:])
            kept = f"; the modified Hamiltonian changes by at most {changes}"
        return Verdict(
            f"{moved.name} lets the energy oscillate by {oscillation:.1e} of itself (median) without a drift that "
            f"stands out from it over a time of {span:g} (a trend is at most {bound:.1e}){kept}.",
            numbers,
            RULE,
            "oscillates",
        )


def logarithm(splitting: Splitting) -> tuple[float, float, float]:
    """Coefficients a, b, c of the modified Hamiltonian of a composition; see `energy_drift`.

    The product of the exponentials of its moves, in the letters D and K, is exp(h D + h K + h^2 a [D, K] + h^3 (b [D,
    [D, K]] + c [K, [K, D]]) + ...), and [D, [D, K]] = DDK - 2 DKD + KDD.
    """
    product = splitting.words(3)

    def power(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for one, a in left.items():
            for other, b in right.items():
                if len(one + other) <= 3:
                    found[one + other] = found.get(one + other, 0.0) + a * b
        return found

    rest = {word: value for word, value in product.items() if word}
    square = power(rest, rest)
    cube = power(square, rest)
    a, b, c = (rest.get(w, 0.0) - square.get(w, 0.0) / 2 + cube.get(w, 0.0) / 3 for w in ("DK", "DDK", "KKD"))
    return a, b, c
