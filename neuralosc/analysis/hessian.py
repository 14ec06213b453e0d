"""The curvature of the loss in the weights: its largest eigenvalues, its trace and its spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from neuralosc import arguments
from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.losses import Loss
from neuralosc.analysis.products import PRODUCTS, WAYS, Product
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import watched
from solvers.errors import InputError, NumericalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Products with the Hessian that Lanczos takes at most, and the residual, relative to the largest eigenvalue, to which
#: the wanted ones are to be known: PyHessian's power iteration stops at changes of that size.
STEPS, RESIDUAL = 80, 1e-3
#: Vectors of the trace, and of the density, with the steps of each; Ghorbani et al. take 10 of 90.
PROBES, DRAWS, DEPTH = 24, 4, 40
#: Width of the kernel of the density over the range of the eigenvalues.
WIDTH, GRID = 0.01, 401
#: What is left of a vector by orthogonalization, relative to the matrix, that is rounding: the space is used up.
NOTHING = 1e-10
RULE = (
    f"an eigenvalue is known where its residual |H v - lambda v| is below {RESIDUAL:g} of the largest; the curvature "
    "is negative somewhere where the smallest eigenvalue with its residual is below zero by as much; gradient descent "
    "of rate lr is stable along the steepest direction where lr lambda / 2 < 1; else nothing is said"
)


@dataclass(frozen=True)
class Hessian(Result):
    """Eigenvalues, trace and density; see `hessian`.

    Attributes:
        eigenvalues: the largest, in descending order, `(top,)`.
        residuals: |H v - lambda v| of each, with v of length 1: an eigenvalue of H is no further away.
        smallest: the smallest, and its residual.
        vectors: v of the largest, `(top, parameters)`, in the order of the model's trained parameters.
        trace: with its standard error; None where it was not asked for.
        density: eigenvalues and their density `(grid,)` each, whose integral is 1; None where not asked for.
        gradient: length of the gradient.
        loss: name and value.
        rate: the learning rate given, or None.
        parameters: how many numbers are trained.
        products: how many products with the Hessian were taken.
        path: how they were.
        sequences: how many were looked at.
    """

    eigenvalues: Tensor
    residuals: Tensor
    smallest: tuple[float, float]
    vectors: Tensor = field(repr=False)
    trace: tuple[float, float] | None
    density: tuple[Tensor, Tensor] | None
    gradient: float
    loss: tuple[str, float]
    rate: float | None
    parameters: int
    products: int
    path: str
    sequences: int

    heading: ClassVar[str] = "Curvature of the loss"

    @property
    def sharpness(self) -> float | None:
        """lr lambda / 2 of the largest eigenvalue, above 1 where gradient descent leaves along it."""
        return None if self.rate is None or not len(self.eigenvalues) else self.rate * float(self.eigenvalues[0]) / 2

    def rows(self) -> Sequence[Row]:
        """A row for each eigenvalue, the smallest last, then the trace."""
        pairs = zip(self.eigenvalues.tolist(), self.residuals.tolist(), strict=True)
        rows = [{"what": f"eigenvalue {i + 1}", "value": v, "error": e} for i, (v, e) in enumerate(pairs)]
        if rows:
            rows.append({"what": "smallest eigenvalue", "value": self.smallest[0], "error": self.smallest[1]})
        if self.trace is not None:
            rows.append({"what": "trace", "value": self.trace[0], "error": self.trace[1]})
        return [{**row, "sharpness": None if self.rate is None else self.rate * row["value"] / 2} for row in rows]

    def draw(self, figure: Figure) -> None:
        """The density, or the eigenvalues alone."""
        axes = figure.subplots()
        values = [*self.eigenvalues.tolist(), self.smallest[0]]
        if self.density is not None:
            grid, height = (part.tolist() for part in self.density)
            axes.semilogy(grid, [max(h, 1e-12) for h in height], color=PALETTE[0], label="density")
            axes.set_ylim(1e-6 * max(height), 3 * max(height))
            axes.set_ylabel("share of the directions per unit of curvature")
            for place, value in enumerate(values):
                axes.axvline(value, color=PALETTE[1], linewidth=0.8, label="" if place else "eigenvalues of Lanczos")
        else:
            places = range(1, len(values))
            axes.errorbar(places, values[:-1], self.residuals.tolist(), fmt="o", color=PALETTE[0], label="largest")
            axes.errorbar([len(values)], values[-1:], [self.smallest[1]], fmt="s", color=PALETTE[1], label="smallest")
            axes.set_xticks(range(1, len(values) + 1), [*map(str, places), "last"])
            axes.set_ylabel("eigenvalue")
            axes.axhline(0, color=GREY)
        axes.set_xlabel("eigenvalue of the Hessian" if self.density is not None else "rank of the eigenvalue")
        if self.rate is not None:
            limit, line = 2 / self.rate, axes.axvline if self.density is not None else axes.axhline
            label = f"2 / lr = {limit:g}, where descent is unstable"
            # Where it is far off the eigenvalues would be one dot.
            if limit < 3 * max(values):
                line(limit, color="black", linestyle="--", label=label)
            else:
                axes.plot([], [], "--", color="black", label=f"{label}, beyond the picture")
        axes.set_title(f"Hessian of the {self.loss[0]} in {self.parameters:,} weights")
        axes.legend(fontsize=8)


def hessian(
    model: nn.Module,
    data: Any,
    loss: Any = None,
    top: int = 5,
    trace: bool = True,
    density: bool = False,
    *,
    lr: float | None = None,
    products: str = "exact",
    steps: int = STEPS,
    probes: int = PROBES,
    samples: int | None = 64,
    seed: int = 0,
    progress: bool | None = None,
) -> Hessian:
    """The eigenvalues of the second derivative of the loss in the weights, at these weights and in float64.

        H v = d/dw (v . dL/dw)

    The extreme eigenvalues are those of the Lanczos matrix, with all vectors orthogonalized twice against each other;
    each comes with the residual of its vector, taken with one more product. Lanczos sees one direction of an eigenvalue
    that comes several times, unless it takes as many steps as there are weights. The trace is the mean of v . H v over
    vectors of random signs (Hutchinson), the density that of the nodes and weights of Lanczos matrices from random
    vectors (stochastic Lanczos quadrature; of few weights that of all eigenvalues), under a normal kernel of a
    hundredth of their range.

    Args:
        model: a `SequenceModel` or a recurrent network.
        data: what `Samples.of` takes: x `(batch, time, input)` with targets.
        loss: loss(answers, targets), a mean over sequences or one number for each; None for the usual one, see
            `Loss.of`.
        top: how many of the largest eigenvalues.
        trace, density: whether they are estimated.
        lr: the learning rate of gradient descent that the sharpness lr lambda / 2 is of.
        products: "exact", by double backward, which takes the plain path; or "difference", by central differences of
            the compiled gradient in float64, which are off by some 1e-9 and take two training steps each.
        steps: products that Lanczos takes at most.
        probes: vectors of the trace.
        samples: sequences looked at, at most.
        seed: which ones, and the vectors that are drawn.
        progress: whether there is a bar.

    The verdict says how steep and how curved the loss is, and, with lr, whether gradient descent is stable. All this is
    of the loss on these sequences.

    Raises:
        InputError: no parameter to differentiate, numbers that are too small, or data that do not fit the model.

    Source: Yao et al., PyHessian, IEEE Big Data 2020; Ghorbani, Krishnan & Xiao, An investigation into neural net
    optimization via Hessian eigenvalue density, ICML 2019; Hutchinson, Commun. Stat. Simul. Comput. 19 (1990).
    """
    for name, number, least in (("top", top, 1), ("steps", steps, 1), ("probes", probes, 2)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"{name} is {number!r}, expected a whole number of at least {least}")
    if lr is not None and not lr > 0:
        raise InputError(f"lr is {lr!r}, expected a rate above 0, or None")
    found = Samples.of(data).take(samples, seed).double()
    chosen = Loss.of(loss, model, found)
    product = PRODUCTS[arguments.choice("products", products, WAYS)](model, found, chosen, seed)
    try:
        value, gradient = product.prepare()
    except NumericalError as error:
        nothing = torch.empty(0, dtype=torch.float64)
        return Hessian(
            nothing, nothing, (math.nan, math.nan), nothing, None, None, math.nan, (chosen.name, math.nan), lr,
            product.size, 0, product.path, len(found), verdict=no_claim(f"the loss has no value ({error})", RULE),
        )  # fmt: skip
    drawn = torch.Generator().manual_seed(seed)
    if not math.isfinite(value) or not math.isfinite(gradient):
        raise InputError(f"the {chosen.name} of these data is {value:g} and its gradient {gradient:g} long")
    space = lanczos(product, product.size, steps, drawn, progress, wanted=top)
    values, vectors = space.pairs()
    count = min(top, len(values))
    chosen_vectors = torch.cat((vectors[:, -count:].flip(1), vectors[:, :1]), 1).T
    ritz = torch.cat((values[-count:].flip(0), values[:1]))
    residuals = torch.stack([(product(v) - z * v).norm() for v, z in zip(chosen_vectors, ritz, strict=True)])
    result = Hessian(
        eigenvalues=ritz[:-1],
        residuals=residuals[:-1],
        smallest=(float(ritz[-1]), float(residuals[-1])),
        vectors=chosen_vectors[:-1],
        trace=_trace(product, probes, drawn, progress) if trace else None,
        density=_density(product, drawn, progress) if density else None,
        gradient=gradient,
        loss=(chosen.name, value),
        rate=lr,
        parameters=product.size,
        products=product.count,
        path=product.path,
        sequences=len(found),
        verdict=no_claim("not judged", RULE),
    )
    return replace(result, verdict=_verdict(result))


@dataclass(frozen=True)
class Krylov:
    """The space that a matrix makes of a vector.

    Attributes:
        basis: orthonormal, `(size, steps)`.
        diagonal, off: of the tridiagonal matrix, `(steps,)` and `(steps - 1,)`.
    """

    basis: Tensor
    diagonal: Tensor
    off: Tensor

    @property
    def matrix(self) -> Tensor:
        """The matrix in this basis."""
        return torch.diag(self.diagonal) + torch.diag(self.off, 1) + torch.diag(self.off, -1)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Its eigenvalues in ascending order, and the vectors they belong to, in columns."""
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, self.basis @ vectors


def lanczos(
    product: Callable[[Tensor], Tensor],
    size: int,
    steps: int,
    drawn: torch.Generator,
    progress: bool | None = None,
    wanted: int | None = None,
    start: Tensor | None = None,
) -> Krylov:
    """The Lanczos process of a symmetric matrix, with every vector orthogonalized twice against all before it.

    A space that is used up before goes on with a new vector orthogonal to it, so that as many steps as there are
    dimensions find all eigenvalues, however often each comes.

    Args:
        product: the matrix times a vector `(size,)`.
        size: dimensions.
        steps: products at most.
        drawn: the start is drawn from it.
        progress: whether there is a bar.
        wanted: stop when so many of the largest, and the smallest, are known to `RESIDUAL`.
        start: instead of a drawn one.
    """
    first = torch.randn(size, dtype=torch.float64, generator=drawn) if start is None else start
    basis = [first / first.norm()]
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    largest = 0.0
    for step in watched(range(min(steps, size)), "Lanczos", progress, min(steps, size)):
        image = product(basis[-1])
        largest = max(largest, float(image.norm()))
        diagonal.append(image @ basis[-1])
        rest = _orthogonal(image, basis)
        length = rest.norm()
        if wanted is not None and step + 1 >= 2 * wanted and _known(diagonal, off, length, wanted):
            break
        if step + 1 < min(steps, size):
            if float(length) <= NOTHING * largest:
                rest, length = _orthogonal(torch.randn(size, dtype=torch.float64, generator=drawn), basis), length * 0
            off.append(length)
            basis.append(rest / rest.norm())
    return Krylov(torch.stack(basis[: len(diagonal)], 1), torch.stack(diagonal), _stacked(off[: len(diagonal) - 1]))


def _stacked(numbers: list[Tensor]) -> Tensor:
    return torch.stack(numbers) if numbers else torch.empty(0, dtype=torch.float64)


def _orthogonal(vector: Tensor, basis: Sequence[Tensor]) -> Tensor:
    matrix = torch.stack(tuple(basis), 1)
    for _ in range(2):
        vector = vector - matrix @ (matrix.T @ vector)
    return vector


def _known(diagonal: list[Tensor], off: list[Tensor], length: Tensor, wanted: int) -> bool:
    """Whether the residuals of the wanted eigenvalues, which the last row of the vectors gives, are small."""
    matrix = Krylov(torch.empty(0), torch.stack(diagonal), _stacked(off)).matrix
    values, vectors = torch.linalg.eigh(matrix)
    residuals = length * vectors[-1].abs()
    chosen = torch.cat((residuals[-wanted:], residuals[:1]))
    # A tenth of what is asked for, so that it holds for the vectors as they are.
    return bool((chosen <= RESIDUAL / 10 * values.abs().max()).all())


def _trace(product: Product, probes: int, drawn: torch.Generator, progress: bool | None) -> tuple[float, float]:
    """The trace and its standard error."""
    values = []
    for _ in watched(range(probes), "trace", progress, probes):
        signs = torch.randint(0, 2, (product.size,), generator=drawn).double() * 2 - 1
        values.append(float(signs @ product(signs)))
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std()) / math.sqrt(probes)


def _density(product: Product, drawn: torch.Generator, progress: bool | None) -> tuple[Tensor, Tensor]:
    """The density of the eigenvalues on a grid."""
    whole, nodes, weights = product.size <= DEPTH, [], []
    draws = 1 if whole else DRAWS
    for _ in watched(range(draws), "density", progress, draws):
        values, vectors = torch.linalg.eigh(lanczos(product, product.size, DEPTH, drawn, False).matrix)
        nodes.append(values)
        # Where all eigenvalues are there, none of them weighs more than another.
        weights.append(torch.full_like(values, 1 / len(values)) if whole else vectors[0].square())
    node, weight = torch.cat(nodes), torch.cat(weights) / draws
    low, high = float(node.min()), float(node.max())
    width = WIDTH * ((high - low) or abs(high) or 1.0)
    grid = torch.linspace(low - 8 * width, high + 8 * width, GRID, dtype=torch.float64)
    kernel = torch.exp(-((grid[:, None] - node) / width).square() / 2) / (width * math.sqrt(2 * math.pi))
    return grid, kernel @ weight


def _verdict(found: Hessian) -> Verdict:
    largest, error = float(found.eigenvalues[0]), float(found.residuals[0])
    smallest, below = found.smallest
    size = max(abs(largest), abs(smallest))
    numbers = {
        "largest": largest,
        "residual of the largest": error,
        "smallest": smallest,
        "residual of the smallest": below,
        "gradient": found.gradient,
        "sequences": found.sequences,
    }
    if found.trace is not None:
        numbers |= {"trace": found.trace[0], "standard error of the trace": found.trace[1]}
    if not size:
        return no_claim("the loss does not curve at all in the weights", RULE, numbers)
    if max(error, below) > RESIDUAL * size:
        why = f"after {found.products} products a residual of {max(error, below):.2g} is left beside {size:.3g}"
        return no_claim(f"{why}: raise steps", RULE, numbers)
    curved = (
        f"along another it curves down, by {-smallest:.3g}"
        if smallest + below < -RESIDUAL * size
        else f"it curves down along none that can be told from flat (the smallest is {smallest:.2g})"
    )
    sentence = f"The loss curves by {largest:.4g} +- {error:.1g} along its steepest direction; {curved}"
    if found.sharpness is not None:
        numbers["sharpness"] = found.sharpness
        stable = "stable" if found.sharpness < 1 else "unstable"
        sentence += (
            f"; lr lambda / 2 = {found.sharpness:.3g}: gradient descent with {found.rate:g} is {stable} along it"
        )
    answer = "up" if smallest + below >= -RESIDUAL * size else "down"
    if found.sharpness is not None:
        answer = "stable" if found.sharpness < 1 else "unstable"
    sentence += f" ({found.sequences} sequences, gradient {found.gradient:.2g})."
    return Verdict(sentence, numbers, RULE, answer)
