"""The loss around trained weights, on lines and planes through them, and on the line between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.hessian import hessian
from neuralosc.analysis.losses import Loss, parted, trained
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import network, precise, watched
from solvers.errors import InputError, NumericalError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIRECTIONS = {"filter": "random ones, as long as the weights in each row", "hessian": "those of the steepest curvature"}
#: Points of a line, and of each side of a plane; lines. Odd, so that the weights themselves are one of them.
LINE, PLANE, LINES = 25, 15, 3
#: A barrier is told from none where it is this many standard errors high. It is the largest of a line of places, which
#: three would not make up for.
ERRORS = 4.0
#: A rise, relative to the losses at the ends, that is rounding; how far the end of a line may be from the other model.
ROUNDING = 1e-9
SLICE_RULE = (
    "the weights are the lowest point of the slices where no place of them has a smaller loss; slices are a few "
    "directions out of very many, and say nothing of the others"
)
LINE_RULE = (
    "a barrier is the largest rise of the loss above the straight line between the losses of the two models (Frankle "
    f"et al. 2020); it is told from none where it is above {ERRORS:g} standard errors of its mean over the sequences; "
    "nothing is said where the models differ in more than their weights"
)


@dataclass(frozen=True)
class Barrier:
    """What is between two models.

    Attributes:
        height: the largest rise of the loss above the line between the losses of the ends; 0 where there is none.
        place: where, from 0 to 1.
        error: its standard error over sequences; None of a loss that gives their mean alone.
        ends: the losses of the two models.
    """

    height: float
    place: float
    error: float | None
    ends: tuple[float, float]


@dataclass(frozen=True)
class Landscape(Result):
    """Losses on slices; see `landscape`.

    Attributes:
        places: along each direction, `(points,)`; 0 is the model, and of a line to another one 1 is that.
        losses: `(lines, points)`, or of a plane `(points, points)`, rows along the first direction; NaN where the state
            left the numbers.
        curvatures: the second derivative along each direction at the model, by differences of the nearest places.
        vectors: the directions, `(directions, parameters)`, in the order of the trained parameters.
        directions: what they are: "filter", "hessian" or "line".
        plane: whether it is one.
        barrier: of a line to another model, else None.
        loss: name and value at the model.
        sequences: how many were looked at.
    """

    places: Tensor
    losses: Tensor
    curvatures: Tensor
    vectors: Tensor = field(repr=False)
    directions: str
    plane: bool
    barrier: Barrier | None
    loss: tuple[str, float]
    sequences: int

    heading: ClassVar[str] = "Loss around the weights"

    def rows(self) -> Sequence[Row]:
        """A row for each place."""
        places, losses = self.places.tolist(), self.losses.tolist()
        return [
            {
                "line": None if self.plane else i + 1,
                "first": places[i] if self.plane else places[j],
                "second": places[j] if self.plane else None,
                "loss": loss,
            }
            for i, line in enumerate(losses)
            for j, loss in enumerate(line)
        ]

    def draw(self, figure: Figure) -> None:
        """The lines, or the plane with its levels."""
        axes = figure.subplots()
        if self.plane:
            self._draw_plane(figure, axes)
            return
        places = self.places.numpy()
        for i, line in enumerate(self.losses):
            label = "on the line" if self.barrier else f"direction {i + 1}"
            axes.plot(places, line.numpy(), "-o", color=PALETTE[i % len(PALETTE)], markersize=3, label=label)
        if self.barrier is None:
            axes.axvline(0, color=GREY, linestyle="--", label="the weights")
            axes.set_xlabel(_UNITS[self.directions])
        else:
            axes.plot([0, 1], self.barrier.ends, "--", color=GREY, label="between the losses of the two")
            axes.set_xlabel("share of the way to the other model")
        axes.set_ylabel(self.loss[0])
        axes.set_title(f"{self.sequences} sequences")
        axes.legend(fontsize=8)

    def _draw_plane(self, figure: Figure, axes: Axes) -> None:
        places, heights = self.places.numpy(), self.losses.T.numpy()
        known = heights[np.isfinite(heights)]
        low, high = float(known.min()), float(known.max())
        # Levels that lie close where the loss is small.
        levels = low + (high - low) * np.linspace(0, 1, 16) ** 2 if high > low else None
        drawn = axes.contourf(places, places, heights, levels=levels, cmap="viridis")
        axes.plot([0], [0], "o", color="white", markeredgecolor="black", label="the weights")
        figure.colorbar(drawn, ax=axes, label=self.loss[0])
        axes.set_xlabel(f"first: {_UNITS[self.directions]}")
        axes.set_ylabel(f"second: {_UNITS[self.directions]}")
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.legend(fontsize=8)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return (5.8, 4.8) if self.plane else (7.0, 4.2)


_UNITS = {
    "filter": "distance over the length of the weights",
    "hessian": "distance along an eigenvector, of length 1",
    "line": "share of the way",
}


def landscape(
    model: nn.Module,
    data: Any,
    directions: str = "filter",
    *,
    plane: bool = False,
    other: nn.Module | None = None,
    loss: Any = None,
    reach: float = 1.0,
    points: int | None = None,
    lines: int = LINES,
    samples: int | None = 128,
    seed: int = 0,
    progress: bool | None = None,
) -> Landscape:
    """The loss on lines or on a plane through the weights of a model, or on the line to another one, in float64.

        L(w + a d),    L(w + a d + b e),    L((1 - a) w + a w')

    A random direction is drawn row by row of each matrix and made as long as the row of the weights (filter-wise
    normalization), which takes away the scale that a network can move between its layers; along biases and other
    vectors of weights it is 0. On the line to another model of the same form the barrier is

        max over a of L((1 - a) w + a w') - (1 - a) L(w) - a L(w')

    Hidden units can be exchanged without any change of what a network does, so that two models with a barrier between
    them may be the same up to that.

    Args:
        model: a `SequenceModel` or a recurrent network.
        data: what `Samples.of` takes: x `(batch, time, input)` with targets.
        directions: "filter", or "hessian" for the eigenvectors of the largest eigenvalues of the Hessian.
        plane: a plane of two directions, not lines of one each.
        other: a model of the same form, to which there is a line; `directions` is not looked at then.
        loss: loss(answers, targets), a mean over sequences or one number for each; None for the usual one, see
            `Loss.of`.
        reach: how far the slices go to each side: of "filter" over the length of the weights, of "hessian" as a
            distance.
        points: places of a line or of each side of a plane, an odd number.
        lines: how many.
        samples: sequences looked at, at most.
        seed: which ones, and the directions.
        progress: whether there is a bar.

    The verdict says whether the weights are the lowest point of the slices, or how high the barrier is.

    Raises:
        InputError: directions, numbers or another model that do not fit.

    Source: Li, Xu, Taylor, Studer & Goldstein, Visualizing the loss landscape of neural nets, NeurIPS 2018; Frankle,
    Dziugaite, Roy & Carbin, Linear mode connectivity and the lottery ticket hypothesis, ICML 2020 (the barrier).
    """
    count = _checked(directions, plane, other, reach, points, lines)
    network(model)
    found = Samples.of(data).take(samples, seed).double()
    ground = _Ground(precise(model), found, Loss.of(loss, model, found), seed)
    weights = ground.weights()
    if other is not None:
        return _to_other(ground, weights, other, count, progress)
    kind = directions
    wanted = 2 if plane else lines
    if directions == "hessian":
        top = hessian(model, found, loss, wanted, trace=False, samples=None, seed=seed, progress=progress)
        vectors = top.vectors
        if len(vectors) < wanted:
            raise InputError(f"the Hessian gives {len(vectors)} directions, expected {wanted}: use directions='filter'")
    else:
        drawn = torch.Generator().manual_seed(seed)
        vectors = torch.stack([filter_direction(ground.model, drawn) for _ in range(wanted)])
    places = torch.linspace(-reach, reach, count, dtype=torch.float64)
    grid = [a * vectors[0] + b * vectors[1] for a in places for b in places] if plane else None
    moves = grid or [a * vector for vector in vectors for a in places]
    values = [ground.column(weights + move) for move in watched(moves, "places", progress)]
    losses = torch.stack([value.mean() for value in values]).view(-1, count)
    losses = torch.where(losses.isfinite(), losses, math.nan)
    middle, pace = count // 2, float(places[1] - places[0])
    rays = torch.stack((losses[:, middle], losses[middle])) if plane else losses
    curvatures = (rays[:, middle + 1] - 2 * rays[:, middle] + rays[:, middle - 1]) / pace**2
    own = float(rays[0, middle])
    return Landscape(
        places, losses, curvatures, vectors, kind, plane, None, (ground.loss.name, own), len(found),
        verdict=_slice_verdict(losses, own, len(found), len(vectors)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Ground:
    """A copy of a model whose weights are moved about."""

    model: nn.Module
    samples: Samples
    loss: Loss
    seed: int

    def weights(self) -> Tensor:
        """All trained parameters in one row."""
        return torch.cat([p.detach().flatten() for p in trained(self.model).values()]).cpu()

    @torch.no_grad()
    def column(self, weights: Tensor) -> Tensor:
        """The loss of each sequence, or their mean, with these weights; NaN where the state leaves the numbers."""
        parameters = trained(self.model).values()
        for p, piece in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
            p.copy_(piece.view_as(p))
        return self.value(self.model)

    @torch.no_grad()
    def value(self, model: nn.Module) -> Tensor:
        """The loss of each sequence, or their mean, of a model."""
        pieces, weights = [], []
        try:
            for part, weight in parted(model, self.samples, recorded=False):
                # All places see the same noise.
                with torch.random.fork_rng():
                    torch.manual_seed(self.seed)
                    pieces.append(self.loss.each(model, part))
                weights.append(weight)
        except NumericalError:
            return torch.tensor(math.nan, dtype=torch.float64)
        if pieces[0].dim():
            return torch.cat(pieces).double().cpu()
        return torch.stack([w * piece for w, piece in zip(weights, pieces, strict=True)]).sum().double().cpu()


def filter_direction(model: nn.Module, drawn: torch.Generator) -> Tensor:
    """A random direction in the trained parameters, each row of a matrix as long as that of the weights.

    Raises:
        InputError: no parameter has rows.
    """
    parts = []
    for parameter in trained(model).values():
        part = torch.randn(parameter.shape, dtype=torch.float64, generator=drawn).to(parameter)
        if parameter.dim() < 2:
            parts.append(torch.zeros_like(part).flatten())
            continue
        rows, weights = part.flatten(1), parameter.detach().flatten(1)
        length = weights.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True)
        parts.append((rows * length).flatten())
    whole = torch.cat(parts).cpu()
    if not bool(whole.any()):
        raise InputError("no trained parameter has rows that are not 0, of which a direction is made: use 'hessian'")
    return whole


def _to_other(ground: _Ground, weights: Tensor, other: nn.Module, count: int, progress: bool | None) -> Landscape:
    """The line to another model."""
    theirs = precise(other)
    mine, yours = trained(ground.model), trained(theirs)
    shapes = [{name: tuple(p.shape) for name, p in each.items()} for each in (mine, yours)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0][0]
        raise InputError(f"other has no {odd} of the same shape that is trained, expected a model of the same form")
    end = torch.cat([p.detach().flatten() for p in yours.values()]).cpu()
    places = torch.linspace(0, 1, count, dtype=torch.float64)
    moves = [weights + float(a) * (end - weights) for a in places]
    columns = [ground.column(move) for move in watched(moves, "places", progress)]
    losses = torch.stack([column.mean() for column in columns])
    own, last = float(losses[0]), float(losses[-1])
    barrier = _barrier(places, columns)
    target = float(ground.value(theirs).mean())
    if not abs(target - last) <= ROUNDING * max(abs(target), abs(last)):
        why = f"with the weights of the other the loss is {last:.4g}, of the other itself {target:.4g}"
        verdict = no_claim(f"the models differ in more than their weights ({why})", LINE_RULE)
    else:
        verdict = _line_verdict(barrier, len(ground.samples))
    pace = float(places[1])
    curvature = (losses[2] - 2 * losses[1] + losses[0]) / pace**2
    return Landscape(
        places, losses.unsqueeze(0), curvature.unsqueeze(0), (end - weights).unsqueeze(0), "line", False, barrier,
        (ground.loss.name, own), len(ground.samples), verdict=verdict,
    )  # fmt: skip


def _barrier(places: Tensor, columns: Sequence[Tensor]) -> Barrier:
    """The largest rise above the line between the ends."""
    rises = [column - (1 - a) * columns[0] - a * columns[-1] for a, column in zip(places, columns, strict=True)]
    means = torch.stack([rise.mean() for rise in rises])
    ends = (float(columns[0].mean()), float(columns[-1].mean()))
    # Where the state has left the numbers the rise is above all.
    top = int(means.nan_to_num(math.inf).argmax())
    error = None
    if rises[top].dim() and len(rises[top]) > 1:
        error = float(rises[top].std()) / math.sqrt(len(rises[top]))
    height = float(means[top])
    return Barrier(
        height if height > ROUNDING * max(map(abs, ends)) or height != height else 0.0, float(places[top]), error, ends
    )


def _line_verdict(barrier: Barrier, sequences: int) -> Verdict:
    numbers = {"height": barrier.height, "place": barrier.place, "first": barrier.ends[0], "second": barrier.ends[1]}
    numbers |= {"sequences": sequences}
    ends = f"{barrier.ends[0]:.4g} and {barrier.ends[1]:.4g}"
    if not all(map(math.isfinite, barrier.ends)):
        return no_claim(f"one of the models has no loss ({ends})", LINE_RULE, numbers)
    if math.isnan(barrier.height):
        return Verdict(
            f"On the straight line between losses of {ends} the state leaves the numbers, at {barrier.place:.2f} of "
            "the way: the two are not connected on it.",
            numbers,
            LINE_RULE,
            "apart",
        )
    if barrier.error is None and barrier.height:
        why = f"the loss rises by {barrier.height:.3g}, whose error is not known without a loss for each sequence"
        return no_claim(why, LINE_RULE, numbers)
    numbers |= {"standard error": barrier.error or 0.0}
    if barrier.height > ERRORS * (barrier.error or 0.0):
        return Verdict(
            f"Between losses of {ends} the loss on the straight line rises {barrier.height:.3g} +- {barrier.error:.1g} "
            f"above that between them, at {barrier.place:.2f} of the way ({sequences} sequences): a barrier.",
            numbers,
            LINE_RULE,
            "barrier",
        )
    return Verdict(
        f"Between losses of {ends} no barrier is told from none on the straight line: {barrier.height:.2g} "
        f"+- {barrier.error or 0:.1g} ({sequences} sequences).",
        numbers,
        LINE_RULE,
        "no barrier",
    )


def _slice_verdict(losses: Tensor, own: float, sequences: int, directions: int) -> Verdict:
    known = losses[~losses.isnan()]
    numbers = {"loss": own, "sequences": sequences, "directions": directions, "left": float(losses.isnan().sum())}
    if not math.isfinite(own):
        return no_claim("the model has no loss on these sequences", SLICE_RULE, numbers)
    lowest, highest = float(known.min()), float(known.max())
    numbers |= {"lowest": lowest, "highest": highest}
    if highest - lowest <= ROUNDING * abs(highest):
        return no_claim("the loss does not change along these directions", SLICE_RULE, numbers)
    left = f"; at {int(numbers['left'])} places the state leaves the numbers" if numbers["left"] else ""
    answer = "lowest" if lowest >= own - ROUNDING * abs(own) else "lower beside"
    if answer == "lowest":
        what = f"the loss, {own:.4g}, is the lowest of these slices, on which it rises to {highest:.4g}"
    else:
        what = f"the loss, {own:.4g}, is not the lowest of these slices, on which it falls to {lowest:.4g}"
    return Verdict(
        f"Along {directions} directions and on {sequences} sequences {what}{left}.", numbers, SLICE_RULE, answer
    )


def _checked(directions: Any, plane: Any, other: Any, reach: Any, points: Any, lines: Any) -> int:
    """How many places a line has.

    Raises:
        InputError: arguments that do not fit.
    """
    if directions not in DIRECTIONS:
        raise InputError(f"directions is {directions!r}, expected one of {', '.join(DIRECTIONS)}")
    if plane and other is not None:
        raise InputError("plane and other were given, and there is one line between two models: leave one out")
    if not reach > 0 or not math.isfinite(reach):
        raise InputError(f"reach is {reach!r}, expected a number above 0")
    if isinstance(lines, bool) or not isinstance(lines, int) or lines < 1:
        raise InputError(f"lines is {lines!r}, expected a whole number of at least 1")
    count = (PLANE if plane else LINE) if points is None else points
    if isinstance(count, bool) or not isinstance(count, int) or count < 3 or count % 2 == 0:
        raise InputError(f"points is {points!r}, expected an odd number of at least 3")
    return count
