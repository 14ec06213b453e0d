"""How well a learnt field stands for the true one: its slopes, its forecasts, and its attractor."""

from __future__ import annotations

import math
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
from solvers.errors import InputError, NumericalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A forecast is valid while its error is below this part of the spread of the attractor, as in Vlachas et al. 2020.
VALID = 0.4
#: Bins of each number of a state, up to so many numbers; of more the density is one of Gaussians around the states.
BINS, BINNED = 30, 3
#: States for each bin at least, of which there are fewer then, and the distance of the truth from itself (nats) beyond
#: which nothing is told apart.
FILLED, NOISY = 10, 0.3
#: What solves the truth, and the second method that must confirm it, at so many times the substeps.
METHOD, SECOND, FINER = "dopri5_fixed", "rk4", 4
#: What is added to each bin, so that an empty one has a logarithm (Koppe et al. 2019).
SMOOTHING = 1e-6
#: Width of the Gaussians, in standard deviations of each number, and states of each density.
WIDTH, DENSITY = 0.3, 2000
#: An attractor is told from the true one where a distance exceeds so many times that of the truth from itself.
FLOORS = 2.0
#: Starts, and Lyapunov times of each trajectory, that a claim needs.
FEWEST, LONGEST = 8, 10.0
#: Steps of the Lyapunov exponent between two renormalisations, and the distance of its twins relative to the spread.
BETWEEN, TWINS = 25, 1e-7
#: Slopes are compared at so many states.
COMPARED = 4096

RULE = (
    "the truth's trajectories are parted in two halves; what is learnt starts like the first, and is compared with the "
    "second, from which the first itself has the distance that chance makes. The attractor is reconstructed where "
    f"neither the state-space divergence nor the Hellinger distance of the spectra exceeds {FLOORS:g} times that. A "
    f"claim needs {FEWEST} starts, a truth that a second method confirms over a Lyapunov time, and trajectories of "
    f"{LONGEST:g} Lyapunov times (of a truth without chaos there is none) whose halves are at most {NOISY:g} nats apart"
)


@dataclass(frozen=True)
class Reconstruction(Result):
    """A learnt field beside the true one.

    Attributes:
        dt: time between two states.
        exponent, exponent_error: the largest Lyapunov exponent of the truth, and its error over trajectories.
        field_error: relative RMS of the difference of slopes at states of the truth; NaN of a map without a slope.
        valid: for each start the time in which the forecast is valid, `(starts,)`; infinity where it is to the end.
        divergence, divergence_floor: D_stsp of what was learnt from the truth, and of the truth from itself, in nats.
        density: how that was estimated.
        hellinger, hellinger_floor: of the power spectra, the mean over the numbers of a state.
        spectra: frequency, and power of truth and learnt of the first number, `(3, frequencies)`.
        true, learnt: states of the first start, `(steps, n)`.
    """

    dt: float
    exponent: float = math.nan
    exponent_error: float = math.nan
    field_error: float = math.nan
    valid: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    divergence: float = math.nan
    divergence_floor: float = math.nan
    density: str = ""
    hellinger: float = math.nan
    hellinger_floor: float = math.nan
    spectra: Tensor = field(default_factory=lambda: torch.empty(3, 0), repr=False)
    true: Tensor = field(default_factory=lambda: torch.empty(0, 1), repr=False)
    learnt: Tensor = field(default_factory=lambda: torch.empty(0, 1), repr=False)

    heading: ClassVar[str] = "Reconstruction of a system"

    @property
    def lyapunov_times(self) -> Tensor:
        """The valid times in units of 1 / exponent."""
        return self.valid * self.exponent

    def rows(self) -> list[Row]:
        """A row for each measure."""
        median = float(self.valid.median()) if len(self.valid) else math.nan
        measures = (
            ("largest Lyapunov exponent of the truth", self.exponent, None, "1 / time"),
            ("error of the slopes", self.field_error, 0.0, "relative RMS"),
            ("valid prediction time (median)", median, None, "time"),
            ("valid prediction time (median)", median * self.exponent, None, "Lyapunov times"),
            (f"state-space divergence ({self.density})", self.divergence, self.divergence_floor, "nats"),
            ("Hellinger distance of spectra", self.hellinger, self.hellinger_floor, "0 to 1"),
        )
        return [{"measure": m, "value": v, "truth against itself": f, "unit": u} for m, v, f, u in measures]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return (12.0, 3.8)

    def draw(self, figure: Figure) -> None:
        """The first forecast, both attractors and both spectra."""
        first, second, third = figure.subplots(1, 3)
        times = torch.arange(len(self.true)) * self.dt
        shown = slice(min(len(times), int(15 / max(self.exponent, 1e-3) / self.dt) + 1))
        for states, color, label in ((self.true, GREY, "truth"), (self.learnt, PALETTE[1], "learnt")):
            first.plot(times[shown], states[shown, 0], color=color, label=label)
            across = states[:, min(2, states.shape[1] - 1)]
            second.plot(states[:, 0], across, color=color, linewidth=0.6, label=label)
        first.set(xlabel="time (units of the field)", ylabel="first number of the state", title="from one start")
        name = "third number of the state" if self.true.shape[1] > 2 else "last number of the state"
        second.set(xlabel="first number of the state", ylabel=name, title="attractors")
        for power, color, label in zip(self.spectra[1:], (GREY, PALETTE[1]), ("truth", "learnt"), strict=True):
            third.plot(self.spectra[0, 1:], power[1:].clamp_min(1e-12), color=color, label=label)
        third.set(xlabel="frequency (1 / time)", ylabel="share of the power", yscale="log", xscale="log")
        third.set_title("spectra of the first number")
        first.legend()


def reconstruction(
    model: Any,
    truth: Any,
    start: Tensor,
    *,
    dt: float | None = None,
    steps: int = 2000,
    transient: int = 500,
    x: Tensor | None = None,
    solver: str | solvers.Solver | None = None,
    substeps: int = 4,
    exponent: float | None = None,
    samples: int = 32,
    seed: int = 0,
) -> Reconstruction:
    """Whether a learnt field or network has the slopes, the forecasts and the attractor of a true field.

        D_stsp = sum over the state space of p log(p / q),    H^2 = 1 - sum over frequencies of sqrt(P Q)

    p and P of the truth, q and Q of what was learnt; see `RULE` for what they are compared with. Up to three numbers
    a state p and q are shares of 30 bins each (fewer, where a bin would have less than ten states), of more they are
    densities of Gaussians around the states. A forecast is valid
    while abs(learnt - true) is below 0.4 of the spread of the truth, sqrt(mean(abs(true - mean)^2)).

    Args:
        model: a field, which is solved finely (or by `solver`), or a network, which takes its own steps.
        truth: the true field, without input, in the same states and units of time.
        start: states to begin with, `(starts, components, hidden)`; both halves of them are looked at.
        dt: time between two states; that of a network when left out.
        steps: how many of dt.
        transient: how many of dt the truth goes on before the starts.
        x: the input that the model is given all the time; zero when left out.
        solver: of a field, the steps it takes, of size dt.
        substeps: steps in dt by which a field without `solver` and the truth are solved.
        exponent: the largest Lyapunov exponent of the truth; measured from twins when left out.
        samples: how many of the starts, drawn by `seed`.
        seed: of the drawing, and of the twins.

    The verdict's rule is `RULE`.

    Raises:
        InputError: shapes that do not fit, or no dt.

    Source: Koppe et al., PLoS Comput. Biol. 15 (2019), of D_stsp; Mikhaeil, Monfared & Durstewitz, NeurIPS 2022, of
    the Hellinger distance; Vlachas et al., Neural Networks 126 (2020), of the valid time; Gilpin, NeurIPS 2021.
    """
    for name, value in (("steps", steps), ("transient", transient)):
        if isinstance(value, bool) or not isinstance(value, int) or value < (1 if name == "steps" else 0):
            raise InputError(f"{name} is {value!r}, expected a whole number of steps")
    start = start.detach().double()
    if isinstance(model, SequenceModel | RecurrentLayer) and (why := subject.without_solver(model)):
        return Reconstruction(math.nan, verdict=no_claim(why, RULE), of="map")
    generator = torch.Generator().manual_seed(seed)
    if len(start) > samples:
        start = start[torch.randperm(len(start), generator=generator)[:samples].sort().values]
    network = isinstance(model, SequenceModel | RecurrentLayer)
    moved = Dynamics.of(model, start, x, solver, None if network or solver is None else dt)
    span = moved.dt if network else dt
    if span is None or not 0 < span < math.inf or (network and dt is not None):
        raise InputError(f"dt is {dt!r}, expected a positive number for a field, and none for a network")
    true = Dynamics.of(truth, start)
    return _Pair(moved, true, span, substeps, exponent, generator).result(start, steps, transient)


class _Pair:
    def __init__(
        self,
        moved: Dynamics,
        true: Dynamics,
        dt: float,
        substeps: int,
        exponent: float | None,
        generator: torch.Generator,
    ) -> None:
        self.moved, self.true, self.dt, self.substeps = moved, true, dt, substeps
        self.exponent, self.generator = exponent, generator

    def solved(self, which: Dynamics, state: Tensor, steps: int, method: str = METHOD, substeps: int = 0) -> Tensor:
        """The states of a field after each step, `(batch, steps, components, hidden)`."""
        times = torch.arange(steps + 1, dtype=torch.float64) * self.dt
        u, count = which.expanded(len(state)), substeps or self.substeps
        with torch.no_grad():
            return solvers.integrate(which.field, state, times, u, method, substeps=count).states[:, 1:]

    def result(self, start: Tensor, steps: int, transient: int) -> Reconstruction:
        """All of it."""
        of = "flow" if self.moved.solver is None else "map"
        begin = self.solved(self.true, start, transient)[:, -1] if transient else start
        true = self.solved(self.true, begin, steps)
        spread = float((true - true.mean((0, 1))).square().sum((2, 3)).mean().sqrt())
        exponent, error = (self.exponent, 0.0) if self.exponent is not None else self.lyapunov(begin, steps, spread)
        try:
            path = self.moved.path if self.moved.solver is not None else None
            learnt = path(begin, steps) if path is not None else self.solved(self.moved, begin, steps)
        except NumericalError as failure:
            sentence = f"What was learnt does not last {steps} steps from states of the truth: {failure}."
            verdict = Verdict(sentence, {"exponent": exponent}, RULE, "lost")
            return Reconstruction(self.dt, exponent, error, self.slopes(true), verdict=verdict, of=of)
        valid = self.valid(true, learnt, spread)
        half, whole = len(begin) // 2, (true.flatten(2), learnt.flatten(2))
        other, same, model = whole[0][half:], whole[0][:half], whole[1][:half]
        binning = bins(other.flatten(0, 1))
        density = f"{binning} bins each" if other.shape[2] <= BINNED else f"Gaussians of width {WIDTH:g}"
        numbers: dict[str, Any] = {"field_error": self.slopes(true), "valid": valid, "density": density}
        if half:
            numbers |= {"divergence": self.divergence(other, model), "divergence_floor": self.divergence(other, same)}
            powers = [spectrum(each) for each in (other, model, same)]
            numbers |= {
                "hellinger": hellinger(powers[0], powers[1]),
                "hellinger_floor": hellinger(powers[0], powers[2]),
            }
            frequencies = torch.arange(len(powers[0]), dtype=torch.float64) / (steps * self.dt)
            numbers["spectra"] = torch.stack((frequencies, powers[0][:, 0], powers[1][:, 0]))
        numbers |= {"true": whole[0][0], "learnt": whole[1][0], "exponent": exponent, "exponent_error": error}
        unsure = self.unconfirmed(begin, exponent, steps)
        verdict = _verdict(numbers, steps * self.dt, len(begin), unsure)
        return Reconstruction(self.dt, **numbers, verdict=verdict, of=of)

    @torch.no_grad()
    def lyapunov(self, state: Tensor, steps: int, spread: float) -> tuple[float, float]:
        """The largest exponent of the truth and its error: how twins part, brought together again and again.

        Source: Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15 (1980).
        """
        apart = torch.randn(state.shape, generator=self.generator, dtype=state.dtype)
        distance, growths = TWINS * spread, []
        for _ in range(max(1, steps // BETWEEN)):
            twin = state + distance * apart / apart.flatten(1).norm(dim=1)[:, None, None]
            ends = self.solved(self.true, torch.cat((state, twin)), BETWEEN, SECOND)[:, -1]
            state, twin = ends.chunk(2)
            apart = twin - state
            growths.append((apart.flatten(1).norm(dim=1) / distance).log())
        # The first tenth turns them into the direction that grows.
        rates = torch.stack(growths[len(growths) // 10 :]).mean(0) / (BETWEEN * self.dt)
        error = float(rates.std(unbiased=True)) / math.sqrt(len(rates)) if len(rates) > 1 else math.inf
        return float(rates.mean()), error

    @torch.no_grad()
    def slopes(self, true: Tensor) -> float:
        """Relative RMS of the difference of the slopes at states of the truth."""
        if self.moved.flow_why:
            return math.nan
        stride = max(1, true.shape[1] * len(true) // COMPARED)
        thinned = true[:, ::stride]
        expected = self.true.slope_at(thinned)
        return subject.relative_rms(self.moved.slope_at(thinned), expected)

    def valid(self, true: Tensor, learnt: Tensor, spread: float) -> Tensor:
        """The time up to the first state whose error is beyond `VALID` of the spread; infinity where none is."""
        beyond = (learnt - true).flatten(2).norm(dim=2) > VALID * spread
        return torch.where(beyond.any(1), (beyond.double().argmax(1) + 1) * self.dt, math.inf)

    def divergence(self, true: Tensor, model: Tensor) -> float:
        """D_stsp of states `(batch, steps, n)`."""
        one, other = true.flatten(0, 1), model.flatten(0, 1)
        return binned(one, other) if one.shape[1] <= BINNED else self.smooth(one, other)

    def smooth(self, true: Tensor, model: Tensor) -> float:
        """Of Gaussians around the states; the states at which they are looked at are not among those."""
        scale = true.std(0).clamp_min(1e-300)
        generator = torch.Generator().manual_seed(0)

        def drawn(states: Tensor, count: int) -> Tensor:
            chosen = torch.randperm(len(states), generator=generator)[:count]
            return states[chosen] / scale

        places = drawn(true, 2 * DENSITY)
        places, around = places[: len(places) // 2], places[len(places) // 2 :]
        logs = []
        for centers in (around, drawn(model, len(around))):
            squares = torch.cdist(places, centers).square() / (2 * WIDTH**2)
            logs.append(torch.logsumexp(-squares, 1) - math.log(len(centers)))
        return float((logs[0] - logs[1]).mean())

    def unconfirmed(self, begin: Tensor, exponent: float, steps: int) -> str:
        """Why the truth's solution is none, over a Lyapunov time; empty where a second method has it too."""
        count = min(steps, max(1, math.ceil(1 / max(exponent, 1e-3) / self.dt)))
        few = begin[: subject.CONFIRMED]
        second = self.solved(self.true, few, count, SECOND, FINER * self.substeps)
        apart = subject.relative_rms(second, self.solved(self.true, few, count))
        if apart <= subject.CONFIRMED_TO:
            return ""
        return f"the reference solution of the truth is not confirmed (two methods differ by {apart:.1e})"


def bins(states: Tensor) -> int:
    """Bins of each number: 30, or as many as leave ten states for each."""
    return max(2, min(BINS, int((len(states) / FILLED) ** (1 / states.shape[1]))))


def binned(true: Tensor, model: Tensor) -> float:
    """Sum of p log(p / q) over bins of the range of the truth; what leaves it is in the bins at the edge."""
    low, high, count = true.amin(0), true.amax(0), bins(true)

    def shares(states: Tensor) -> Tensor:
        places = ((states - low) / (high - low).clamp_min(1e-300) * count).nan_to_num(0.0).floor()
        index = torch.zeros(len(places), dtype=torch.long)
        for each in places.clamp(0, count - 1).long().T:
            index = index * count + each
        counts = torch.bincount(index, minlength=count ** states.shape[1]).double() + SMOOTHING
        shared: Tensor = counts / counts.sum()
        return shared

    p, q = shares(true), shares(model)
    return float((p * (p / q).log()).sum())


def spectrum(states: Tensor) -> Tensor:
    """Share of each frequency in the power of each number, `(frequencies, n)`, the mean over trajectories.

    Under a Hann window, without the mean over time.
    """
    window = torch.hann_window(states.shape[1], periodic=False, dtype=states.dtype).view(1, -1, 1)
    power = torch.fft.rfft((states - states.mean(1, keepdim=True)) * window, dim=1).abs().square().mean(0)
    shares: Tensor = power / power.sum(0).clamp_min(1e-300)
    return shares


def hellinger(one: Tensor, other: Tensor) -> float:
    """The Hellinger distance of two spectra, the mean over the numbers of a state."""
    return float((1 - (one * other).sqrt().sum(0)).clamp_min(0).sqrt().mean())


def _verdict(numbers: dict[str, Any], time: float, starts: int, unsure: str) -> Verdict:
    exponent, error, valid = numbers["exponent"], numbers["exponent_error"], numbers["valid"]
    rested = {name: float(value) for name, value in numbers.items() if isinstance(value, float | int)}
    median = float(valid.median())
    rested |= {"starts": float(starts), "valid time": median, "lasting": float(valid.isinf().sum())}
    if unsure:
        return no_claim(unsure, RULE, rested)
    if starts < FEWEST:
        return no_claim(f"{starts} starts are too few, {FEWEST} are asked for", RULE, rested)
    if not exponent > 3 * error:
        why = f"the truth is not chaotic (exponent {exponent:.2g} +- {error:.1g}), so that there is no Lyapunov time"
        return no_claim(why, RULE, rested)
    if time * exponent < LONGEST:
        why = f"trajectories last {time * exponent:.2g} Lyapunov times, {LONGEST:g} are asked for: more steps"
        return no_claim(why, RULE, rested)
    lasting = (
        f"{median * exponent:.2g} Lyapunov times" if math.isfinite(median) else f"all of the {time:g} units of time"
    )
    floor = numbers["divergence_floor"]
    if not floor <= NOISY:
        why = f"halves of the truth are {floor:.2g} nats apart, {NOISY:g} at most are asked for: more steps or starts"
        return no_claim(why, RULE, rested)
    slopes = numbers["field_error"]
    off = "" if math.isnan(slopes) else f"slopes are off by {slopes:.2g}, "
    said = (
        f"{off}forecasts are valid for {lasting} (median), the state-space divergence is {numbers['divergence']:.3g} "
        f"({floor:.3g} of the truth against itself) and the Hellinger distance {numbers['hellinger']:.3g} "
        f"({numbers['hellinger_floor']:.3g})"
    )
    near = numbers["divergence"] <= FLOORS * numbers["divergence_floor"]
    near = near and numbers["hellinger"] <= FLOORS * numbers["hellinger_floor"]
    head = "These measures do not tell the attractor that was learnt from the true one" if near else (
        "The attractor that was learnt is another one"
    )  # fmt: skip
    return Verdict(f"{head}: {said}.", rested, RULE, "alike" if near else "other")
