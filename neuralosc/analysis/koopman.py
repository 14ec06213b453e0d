"""The linear operator that comes closest to what hidden states do, and how alike two of them are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from solvers.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Directions of the states that are looked at, at most, and their singular values, relative to the first, at least.
MOST, NOTHING = 64, 1e-11
#: The smallest rank within so much of the best one-step error is taken.
NEAR = 1.05
#: A mode is one of the dynamics where its residual is below this: so far is it from an eigenfunction in one step.
RESIDUAL = 0.1
#: The operator must predict a step this much better than that nothing changes.
BETTER = 0.5
#: Pairs of states for each direction that a claim needs.
PAIRS = 10
#: Two dynamics are told apart beyond so many times the distance of halves of one, and beyond what the search leaves.
FLOORS, SEARCHED = 2.0, 1e-6
#: Random beginnings of the search for a rotation, and its iterations.
BEGINNINGS, ITERATIONS = 4, 100

RULE = (
    "the rank is the smallest whose one-step error on sequences that were not fitted is within "
    f"{NEAR - 1:.0%} of the best; a claim needs {PAIRS} pairs of states for each direction, and an error of at most "
    f"{BETTER:g} of that of a forecast without change; a mode counts where its residual there is at most {RESIDUAL:g}"
)
SIMILARITY_RULE = (
    "two dynamics differ where the distance of their operators exceeds "
    f"{FLOORS:g} times that of two halves of the sequences of either (the larger), and {SEARCHED:g}; it is the least "
    "that a search over rotations found; both must be predicted by their operators (see the rule of `koopman`)"
)


@dataclass(frozen=True)
class Koopman(Result):
    """Dynamic modes of states.

    Attributes:
        dt: time between two states.
        rank: of the operator.
        values: its eigenvalues for a step, `(rank,)` complex, the largest first.
        residuals: of each, on sequences that were not fitted.
        errors: one-step error there for each rank from 1, relative RMS.
        persistence: the same of a forecast without change.
        pairs: pairs of states that were fitted.
        operator: in the principal directions, `(rank, rank)`: the row of directions of the next state is that of this
            one times it.
    """

    dt: float
    rank: int
    values: Tensor
    residuals: Tensor
    errors: Tensor = field(repr=False)
    persistence: float
    pairs: int
    operator: Tensor = field(repr=False)

    heading: ClassVar[str] = "Koopman spectrum"

    @property
    def rates(self) -> Tensor:
        """Logarithms of the eigenvalues over dt: decay or growth, and frequency in radians, per unit of time."""
        return self.values.log() / self.dt

    def rows(self) -> list[Row]:
        """A row for each eigenvalue."""
        columns = zip(self.values.tolist(), self.rates.tolist(), self.residuals.tolist(), strict=True)
        return [
            {"eigenvalue": v, "modulus": abs(v), "rate": r.real, "frequency": r.imag / (2 * math.pi), "residual": e}
            for v, r, e in columns
        ]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return (9.0, 4.2)

    def draw(self, figure: Figure) -> None:
        """Eigenvalues by their residual about the unit circle, and the error by rank."""
        left, right = figure.subplots(1, 2)
        angle = torch.linspace(0, 2 * math.pi, 200)
        left.plot(angle.cos(), angle.sin(), color=GREY, label="unit circle")
        for good, color in ((True, PALETTE[0]), (False, PALETTE[1])):
            chosen = self.values[(self.residuals <= RESIDUAL) == good]
            label = f"residual {'up to' if good else 'above'} {RESIDUAL:g}"
            left.plot(chosen.real, chosen.imag, "o", color=color, label=label)
        left.set(xlabel="real part", ylabel="imaginary part", aspect="equal", title="eigenvalues of a step")
        left.legend(fontsize=8, loc="upper left")
        right.plot(
            range(1, len(self.errors) + 1), self.errors.clamp_min(1e-17), "o-", color=PALETTE[0], label="operator"
        )
        right.axhline(self.persistence, color=GREY, label="no change")
        right.axvline(self.rank, color=PALETTE[2], linestyle=":", label="rank taken")
        right.set(xlabel="rank", ylabel="one-step error, relative RMS", yscale="log", title="sequences not fitted")
        right.legend(fontsize=8)


@torch.no_grad()
def koopman(states: Tensor, dt: float = 1.0, *, rank: int | None = None) -> Koopman:
    """The eigenvalues of the linear operator that takes states to the next ones, with how far to trust each.

    Fits x_(i+1) = K x_i + b by least squares in the first principal directions of the states (dynamic mode
    decomposition). A left eigenvector w of K is an observable w.x that a step multiplies by its eigenvalue; its
    residual is the RMS of w.x_(i+1) - lambda w.x_i relative to that of w.x_i, about the means, on every fourth
    sequence, which is not fitted (of fewer than four the last quarter of the time).

    Args:
        states: `(batch, time, n)` or `(batch, time, components, hidden)`, such as those of a run.
        dt: time between two of them.
        rank: of K; chosen by the rule of the verdict when left out.

    The verdict's rule is `RULE`.

    Raises:
        InputError: shapes, a rank or a dt that do not fit, or values that are not finite.

    Source: Schmid, J. Fluid Mech. 656 (2010); Colbrook & Townsend, Commun. Pure Appl. Math. 77 (2024), of the
    residuals; Naiman & Azencot, AAAI 2023, of recurrent networks.
    """
    if not 0 < dt < math.inf:
        raise InputError(f"dt is {dt!r}, expected a positive number")
    flat = _flat(states)
    (before, after), (kept_before, kept_after) = _parted(flat)
    mean, next_mean = before.mean(0), after.mean(0)
    before, after, kept_before, kept_after = (
        before - mean, after - next_mean, kept_before - mean, kept_after - next_mean,
    )  # fmt: skip
    directions, sizes, turned = torch.linalg.svd(before, full_matrices=False)
    most = min(MOST, int((sizes > NOTHING * sizes[0]).sum())) if len(sizes) else 0
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most):
        raise InputError(f"rank is {rank!r}, expected a whole number from 1 to {most}, the rank of the states")
    if not most:
        empty = torch.empty(0)
        verdict = no_claim("the states do not move", RULE)
        return Koopman(dt, 0, empty, empty, empty, math.nan, len(before), empty, verdict=verdict, of="map")
    axes = turned[:most].mT
    whole = (directions[:, :most].mT @ after @ axes) / sizes[:most, None]
    seen, next_seen = kept_before @ axes, kept_after @ axes
    size = kept_after.square().sum().clamp_min(1e-300)
    beyond = kept_after.square().sum() - next_seen.square().sum()
    errors = []
    for r in range(1, most + 1):
        rest = (seen[:, :r] @ whole[:r, :r] - next_seen[:, :r]).square().sum() + next_seen[:, r:].square().sum()
        errors.append(((rest + beyond.clamp_min(0)) / size).sqrt())
    found = torch.stack(errors)
    # What rounding leaves of an exact fit is no reason for a larger rank.
    chosen = rank or 1 + int((found <= NEAR * found.min() + 1e-13).nonzero()[0])
    operator = whole[:chosen, :chosen]
    values, vectors = torch.linalg.eig(operator)
    now, then = seen[:, :chosen].to(vectors) @ vectors, next_seen[:, :chosen].to(vectors) @ vectors
    residuals = (then - values * now).norm(dim=0) / now.norm(dim=0).clamp_min(1e-300)
    order = values.abs().argsort(descending=True)
    unchanged = (kept_before + mean - kept_after - next_mean).square().sum()
    persistence = float((unchanged / size).sqrt())
    verdict = _verdict(values[order], residuals[order], float(found[chosen - 1]), persistence, len(before), most)
    return Koopman(
        dt,
        chosen,
        values[order],
        residuals[order],
        found,
        persistence,
        len(before),
        operator,
        verdict=verdict,
        of="map",
    )


def _flat(states: Tensor) -> Tensor:
    if not isinstance(states, Tensor) or states.dim() not in (3, 4) or states.shape[1] < 4 or not len(states):
        given = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise InputError(
            f"states are {given}, expected (batch, time, n) or (batch, time, components, hidden), 4 in time"
        )
    if not torch.isfinite(states).all():
        raise InputError("states have NaN or infinite entries, expected finite values")
    return states.detach().double().flatten(2)


def _parted(states: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pairs of states that follow each other: those to fit, and those not to."""
    if len(states) >= 4:
        apart = torch.arange(len(states)) % 4 == 3
        fitted, kept = states[~apart], states[apart]
    else:
        cut = states.shape[1] - max(2, states.shape[1] // 4)
        fitted, kept = states[:, :cut], states[:, cut:]
    pairs = [(part[:, :-1].flatten(0, 1), part[:, 1:].flatten(0, 1)) for part in (fitted, kept)]
    return pairs[0], pairs[1]


def _verdict(
    values: Tensor, residuals: Tensor, error: float, persistence: float, pairs: int, directions: int
) -> Verdict:
    good = residuals <= RESIDUAL
    numbers = {"rank": float(len(values)), "error": error, "persistence": persistence, "pairs": float(pairs)}
    numbers |= {"modes": float(good.sum()), "largest modulus": float(values[0].abs())}
    if pairs < PAIRS * directions:
        return no_claim(f"{pairs} pairs of states are too few for {directions} directions", RULE, numbers)
    if not error <= BETTER * persistence:
        why = f"the operator is off by {error:.2g} in one step, and a forecast without change by {persistence:.2g}"
        return no_claim(why, RULE, numbers)
    if not bool(good.any()):
        return no_claim(f"no mode of {len(values)} has a residual of at most {RESIDUAL:g}", RULE, numbers)
    first = values[good][0]
    return Verdict(
        f"A linear operator of rank {len(values)} predicts a step to {error:.1e} (no change: {persistence:.1e}); "
        f"{int(good.sum())} of its modes are those of the dynamics (residual at most {RESIDUAL:g}), the largest has "
        f"a modulus of {float(first.abs()):.4g} and {float(first.angle().abs()):.3g} radians a step.",
        numbers,
        RULE,
        "linear",
    )


@dataclass(frozen=True)
class Similarity(Result):
    """How alike two dynamics are.

    Attributes:
        rank: of both operators.
        distance: the least norm of A - C B C^T over rotations C, relative to the root of the squares of both norms.
        floor: the same of two halves of the sequences of one, the larger of both.
        values: eigenvalues of both, `(2, rank)`.
    """

    rank: int
    distance: float
    floor: float
    values: Tensor

    heading: ClassVar[str] = "Similarity of dynamics"

    def rows(self) -> list[Row]:
        """A row for each rank of both."""
        return [{"rank": self.rank, "distance": self.distance, "halves of one": self.floor}]

    def draw(self, figure: Figure) -> None:
        """The eigenvalues of both."""
        axes = figure.subplots()
        angle = torch.linspace(0, 2 * math.pi, 200)
        axes.plot(angle.cos(), angle.sin(), color=GREY, label="unit circle")
        for values, mark, name in zip(self.values, "ox", ("first", "second"), strict=True):
            axes.plot(values.real, values.imag, mark, color=PALETTE["ox".index(mark)], label=name)
        axes.set(xlabel="real part", ylabel="imaginary part", aspect="equal", title="eigenvalues of a step")
        axes.legend()


def similarity(states_a: Tensor, states_b: Tensor, *, rank: int | None = None, seed: int = 0) -> Similarity:
    """Whether two sets of states, as of one network under two solvers, are moved in the same way up to a rotation.

        min over orthogonal C of abs(A - C B C^T) / sqrt(abs(A)^2 + abs(B)^2)

    A and B the operators of `koopman` in principal directions; 0 of dynamics that are rotated copies, and sqrt(2) at
    most.

    Args:
        states_a, states_b: `(batch, time, n)` or `(batch, time, components, hidden)`, eight sequences or more.
        rank: of both operators; when left out the smaller of those that `koopman` takes for each, 10 at most.
        seed: of the beginnings of the search.

    The verdict's rule is `SIMILARITY_RULE`.

    Raises:
        InputError: shapes or a rank that do not fit.

    Source: Ostrow, Eisen, Kozachkov & Fiete, Beyond Geometry, NeurIPS 2023 (DSA), whose measure is an angle of the
    same operators.
    """
    both = (koopman(states_a), koopman(states_b))
    count = rank or max(1, min(10, both[0].rank, both[1].rank))
    one, other = (koopman(states, rank=count) for states in (states_a, states_b))
    distance = apart(one.operator, other.operator, seed)
    values = torch.stack([torch.linalg.eigvals(each.operator) for each in (one, other)])
    floors = []
    for states in (states_a, states_b):
        if len(states) >= 8:
            halves = [koopman(states[i::2], rank=count).operator for i in (0, 1)]
            floors.append(apart(halves[0], halves[1], seed))
    floor = max(floors, default=math.nan)
    numbers = {"distance": distance, "floor": floor, "rank": float(count)}
    unfit = [each.verdict.sentence for each in (one, other) if not each.verdict.claim]
    if unfit:
        verdict = no_claim(unfit[0].removeprefix("No claim: ").rstrip("."), SIMILARITY_RULE, numbers)
    elif not floors:
        verdict = no_claim("fewer than eight sequences have no halves to compare", SIMILARITY_RULE, numbers)
    else:
        alike = distance <= max(FLOORS * floor, SEARCHED)
        head = "The two dynamics are not told apart" if alike else "The two dynamics differ"
        sentence = f"{head}: their operators of rank {count} are {distance:.2g} apart, halves of one {floor:.2g}."
        verdict = Verdict(sentence, numbers, SIMILARITY_RULE, "alike" if alike else "differ")
    return Similarity(count, distance, floor, values, verdict=verdict, of="map")


def apart(one: Tensor, other: Tensor, seed: int = 0) -> float:
    """The least relative distance of two operators over rotations of the second that a search finds."""
    size = (one.square().sum() + other.square().sum()).sqrt().clamp_min(1e-300)
    best = math.inf
    for begin in _beginnings(one, other, seed):
        skew = torch.zeros_like(one, requires_grad=True)
        search = torch.optim.LBFGS(
            [skew], max_iter=ITERATIONS, tolerance_grad=1e-15, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def loss(skew: Tensor = skew, begin: Tensor = begin, search: torch.optim.LBFGS = search) -> Tensor:
            search.zero_grad()
            turn = torch.matrix_exp(skew - skew.mT) @ begin
            value: Tensor = ((one - turn @ other @ turn.mT) / size).square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            search.step(loss)
            best = min(best, math.sqrt(float(loss().detach())))
        if best < SEARCHED / 10:
            break
    return best


def _beginnings(one: Tensor, other: Tensor, seed: int) -> list[Tensor]:
    """The identity, rotations between the axes of the symmetric parts, and random ones, of either handedness."""
    n, generator = len(one), torch.Generator().manual_seed(seed)
    axes = [torch.linalg.eigh((each + each.mT) / 2).eigenvectors for each in (one, other)]
    inner = [turn.mT @ each @ turn for turn, each in zip(axes, (one, other), strict=True)]
    # Each axis has a sign, that which makes the largest entries with the axes before it agree.
    signs = torch.ones(n, dtype=one.dtype)
    for i in range(1, n):
        agreement = (inner[0][i, :i] * inner[1][i, :i] + inner[0][:i, i] * inner[1][:i, i]) * signs[:i]
        signs[i] = 1.0 if float(agreement.sum()) >= 0 else -1.0
    found = [torch.eye(n, dtype=one.dtype), axes[0] @ torch.diag(signs) @ axes[1].mT]
    for i in range(BEGINNINGS):
        turn, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=one.dtype))
        if i % 2 and n:
            turn = turn * torch.tensor([-1.0] + [1.0] * (n - 1), dtype=one.dtype)
        found.append(turn)
    return found
