"""How far each gradient is from backprop on a trained network, and whether the gap closes with the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

import solvers
from neuralosc.analysis.drawing import GREY, INK, looks
from neuralosc.analysis.losses import Loss, trained
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import network, precise, watched
from neuralosc.layers.rnn import ContinuousRNN
from solvers.errors import InputError, NumericalError
from solvers.run.audit import relative

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A gap up to this is rounding in float64: what states that are rebuilt backwards lose, with room to spare.
ROUNDING = 1e-9
#: Halvings of the step, and tolerances, at which a gap is looked at again.
HALVINGS = (2, 4)
TOLERANCES = (1e-2, 1e-4)
#: Tolerance of an adjoint beside whose own error that of the steps is to be seen, and the least gap that it shows.
TIGHT, RESOLVED = 1e-6, 1e-6
#: Two observed orders that differ by less are one: at finite steps they are off by the next term.
SAME_ORDER = 0.35
RULE = (
    f"a gradient agrees where its largest gap is at most {ROUNDING:g}, the rounding of float64; a gap closes with the "
    f"step where its observed orders, from one refinement to the next while it is above {RESOLVED:g}, are above 0.5 "
    f"and differ by less than {SAME_ORDER:g}; "
    "nothing is said where backprop gives no finite gradient, or zero alone"
)


@dataclass(frozen=True)
class Gap:
    """How far a gradient is from backprop.

    Attributes:
        gradient: its name.
        substeps: steps between two samples, of it and of backprop.
        rtol: tolerance of the adjoint equation, or of a solver that chooses its steps; None where it is the usual one.
        gap: largest error over the largest entry of backprop's gradient, of all parameters together; None where it
            could not run.
        cosine: of the angle between the two.
        parameters: gap and cosine of each parameter, by name.
        note: why it could not run, or empty.
    """

    gradient: str
    substeps: int
    rtol: float | None = None
    gap: float | None = None
    cosine: float | None = None
    parameters: Mapping[str, tuple[float, float | None]] | None = None
    note: str = ""


@dataclass(frozen=True)
class GradientGap(Result):
    """Gaps of all gradients; see `gradient_gap`.

    Attributes:
        gaps: of each gradient under the network's own steps.
        refined: of each that does not agree, at shorter steps.
        tolerances: of the adjoint, or under a solver that chooses its steps, by tolerance.
        orders: for each of `refined` the two observed orders of its gap in the step.
        loss: name and value of the loss.
        sequences: how many were looked at.
    """

    gaps: tuple[Gap, ...]
    refined: tuple[Gap, ...]
    tolerances: tuple[Gap, ...]
    orders: Mapping[str, tuple[float, ...]]
    loss: tuple[str, float]
    sequences: int

    heading: ClassVar[str] = "Gradients against backprop"

    def rows(self) -> Sequence[Row]:
        """A row for each gradient, then one for each parameter of it, then those of shorter steps and tolerances."""
        rows = []
        for gap in self.gaps:
            rows.append(_row(gap, "all", gap.gap, gap.cosine))
            rows += [_row(gap, name, *values) for name, values in (gap.parameters or {}).items()]
        return [*rows, *(_row(gap, "all", gap.gap, gap.cosine) for gap in (*self.refined, *self.tolerances))]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the picture in inches."""
        return (9.5, 3.9)

    def draw(self, figure: Figure) -> None:
        """The gap of each gradient, and how it changes with the step and the tolerance."""
        left, middle, right = figure.subplots(1, 3)
        self._draw_gaps(left)
        styles = looks(gap.gradient for gap in self.gaps)
        for name in self.orders:
            line = [gap for gap in (*self.gaps, *self.refined) if gap.gradient == name and gap.gap]
            middle.loglog([g.substeps for g in line], [g.gap for g in line], label=name, **styles[name])
        if self.orders:
            whole = [g for g in (*self.gaps, *self.refined) if g.gradient in self.orders and g.gap]
            steps = sorted({g.substeps for g in whole})
            top = max(float(g.gap or 0) for g in whole)
            middle.loglog(steps, [top * steps[0] / n for n in steps], "--", color=GREY, label="order 1")
            middle.set_xticks(steps, [str(n) for n in steps])
            middle.minorticks_off()
            middle.legend(fontsize=8)
        middle.set(title="at shorter steps", xlabel="steps between two samples", ylabel="relative gap")
        for name in dict.fromkeys(gap.gradient for gap in self.tolerances):
            line = [gap for gap in self.tolerances if gap.gradient == name and gap.gap]
            right.loglog([g.rtol for g in line], [g.gap for g in line], label=name, **styles[name])
        right.set(title="by tolerance", xlabel="relative tolerance", ylabel="relative gap")
        if self.tolerances:
            values = [float(gap.gap) for gap in self.tolerances if gap.gap]
            right.set_ylim(min(values) / 10, max(values) * 10)
            right.legend(fontsize=8)

    def _draw_gaps(self, axes: Axes) -> None:
        styles = looks(gap.gradient for gap in self.gaps)
        floor = 1e-17
        for place, gap in enumerate(self.gaps):
            if gap.gap is None:
                axes.text(floor * 2, place, "does not fit", va="center", fontsize=8, color=INK)
                continue
            axes.barh(place, max(gap.gap, floor), left=floor / 10, color=styles[gap.gradient]["color"])
            cosine = "" if gap.cosine is None else f"cosine {gap.cosine:.3g}"
            axes.text(floor * 2, place, cosine, va="center", fontsize=8, color="white" if gap.gap > 1e-9 else INK)
        axes.axvline(ROUNDING, color=GREY, linestyle="--", label="rounding")
        axes.set_yticks(range(len(self.gaps)), [gap.gradient for gap in self.gaps])
        axes.set(xscale="log", xlim=(floor, 10), title="under its own steps", xlabel="relative gap to backprop")
        axes.set_ylim(len(self.gaps) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.legend(fontsize=8, loc="lower right")


def gradient_gap(
    model: nn.Module,
    data: Any,
    loss: Any = None,
    gradients: Sequence[str | solvers.Gradient] | None = None,
    *,
    halvings: Sequence[int] = HALVINGS,
    tolerances: Sequence[float] = TOLERANCES,
    samples: int | None = 32,
    seed: int = 0,
    progress: bool | None = None,
) -> GradientGap:
    """How far each gradient of a loss on the read-out is from backprop, at these weights and in float64.

        gap = max |g - b| / max |b|,    cosine = g . b / (|g| |b|)

    b is the gradient by backprop, which is that of the discrete steps. The adjoint is that of the equation: it differs
    by the errors of the solves, and the gap closes with the order of the solver as steps become shorter. A gradient of
    another kind (truncated, or of random feedback) has a gap that no step size closes. Both are differentiated under
    the same noise and at the same steps.

    Args:
        model: a `SequenceModel`, or a network of fields and a solver.
        data: what `Samples.of` takes: x `(batch, time, input)` with targets.
        loss: loss(answers, targets), a mean over sequences or one number for each; None for the usual one, see
            `Loss.of`.
        gradients: names or values; all of `solvers.GRADIENTS` when None. Those that do not fit say why.
        halvings: by how many times the steps are divided, to see whether a gap closes; in ascending order.
        tolerances: relative tolerances of the adjoint equation (of fixed steps), or of a solver that chooses its steps;
            the absolute ones are a hundredth of them.
        samples: sequences looked at, at most.
        seed: which ones, and the noise that is drawn.
        progress: whether there is a bar.

    The verdict names the gradients that agree, the gap of those that do not and whether it closes.

    Raises:
        InputError: no such gradient, no parameter to differentiate, or data that do not fit the model.

    Source: Onken & Ruthotto, Discretize-Optimize vs. Optimize-Discretize, 2020; Gholami et al., ANODE, IJCAI 2019;
    Zhuang et al., Adaptive Checkpoint Adjoint, ICML 2020.
    """
    found = Samples.of(data).take(samples, seed).double()
    chosen = Loss.of(loss, model, found)
    wanted = [solvers.get_gradient(name) for name in (list(solvers.GRADIENTS) if gradients is None else gradients)]
    if not isinstance(network(model), ContinuousRNN):
        why = f"a {type(network(model)).__name__} is differentiated by torch alone, and has no other gradient"
        return GradientGap((), (), (), {}, (chosen.name, math.nan), len(found), verdict=no_claim(why, RULE), of="map")
    trained(model)
    task = _Task(precise(model), found, chosen, seed)
    try:
        value = task.value()
        reference = task.reference(1)
    except NumericalError as error:
        why = f"backprop cannot run ({error})"
        return GradientGap((), (), (), {}, (chosen.name, math.nan), len(found), verdict=no_claim(why, RULE), of="map")
    gaps = tuple(task.gap(gradient, 1, reference) for gradient in watched(wanted, "gradients", progress))
    refined = _refined(task, wanted, gaps, halvings, progress)
    orders = {name: _orders([g for g in (*gaps, *refined) if g.gradient == name]) for name in _names(refined)}
    return GradientGap(
        gaps,
        refined,
        _by_tolerance(task, wanted, gaps, tolerances, progress),
        orders,
        (chosen.name, value),
        len(found),
        verdict=_nothing(reference) or _verdict(gaps, orders, len(found)),
        of="map",
    )


@dataclass(frozen=True)
class _Task:
    """A gradient of a loss under any way to differentiate."""

    model: Any
    samples: Samples
    loss: Loss
    seed: int

    @property
    def rnn(self) -> ContinuousRNN:
        rnn = network(self.model)
        assert isinstance(rnn, ContinuousRNN)
        return rnn

    def value(self) -> float:
        """The loss."""
        with torch.random.fork_rng(), solvers.backend("plain"):
            torch.manual_seed(self.seed)
            return self.loss.value(self.model, self.samples)

    def gradient(self, gradient: Any, refinement: int, rtol: float | None = None) -> dict[str, Tensor]:
        """The gradient of each parameter, by name."""
        solver = self.rnn.solver
        if rtol is not None and solver.adaptive:
            solver = solver.with_options(rtol=rtol, atol=rtol / 100)
        swapped = self.model.with_solver(solver, gradient=gradient, substeps=self.rnn.substeps * refinement)
        parameters = trained(swapped)
        # Each way sees the same noise, and the caller's generators stay as they are.
        # A few passes are over before a kernel for each number of steps is compiled.
        with torch.random.fork_rng(), solvers.backend("plain"):
            torch.manual_seed(self.seed)
            values = self.loss.gradient(swapped, self.samples, list(parameters.values()))
        return dict(zip(parameters, values, strict=True))

    def reference(self, refinement: int, rtol: float | None = None) -> dict[str, Tensor]:
        """The gradient by backprop."""
        return self.gradient("backprop", refinement, rtol)

    def gap(
        self,
        gradient: solvers.Gradient,
        refinement: int,
        reference: Mapping[str, Tensor],
        rtol: float | None = None,
        shown: float | None = None,
    ) -> Gap:
        """How far a gradient is from that of backprop at the same steps; `rtol` may be one that is not shown."""
        empty = Gap(gradient.name, self.rnn.substeps * refinement, shown)
        fixed = not self.rnn.solver.adaptive
        tight: Any = gradient
        if isinstance(gradient, solvers.Adjoint) and fixed and rtol is not None:
            tight = replace(gradient, rtol=rtol, atol=rtol / 100)
        try:
            found = self.gradient(tight, refinement, rtol)
        except (InputError, NumericalError) as error:
            return replace(empty, note=str(error))
        each = {name: (relative(found[name], exact), _cosine(found[name], exact)) for name, exact in reference.items()}
        one, other = (torch.cat([g.flatten() for g in whole.values()]) for whole in (found, reference))
        return replace(empty, gap=relative(one, other), cosine=_cosine(one, other), parameters=each)


def _refined(
    task: _Task, wanted: Sequence[Any], gaps: Sequence[Gap], halvings: Sequence[int], progress: bool | None
) -> tuple[Gap, ...]:
    """The gaps of those that do not agree at shorter steps; none where a method chooses them, or draws noise anew."""
    apart = [gradient for gradient, gap in zip(wanted, gaps, strict=True) if gap.gap is not None and gap.gap > ROUNDING]
    if not apart or task.rnn.solver.adaptive or task.rnn.solver.stochastic:
        return ()
    refined = []
    for refinement in watched(list(halvings), "shorter steps", progress):
        try:
            reference = task.reference(refinement)
        except (InputError, NumericalError):
            # A closed form has no shorter steps.
            return ()
        refined += [task.gap(gradient, refinement, reference, TIGHT) for gradient in apart]
    return tuple(refined)


def _by_tolerance(
    task: _Task, wanted: Sequence[Any], gaps: Sequence[Gap], tolerances: Sequence[float], progress: bool | None
) -> tuple[Gap, ...]:
    """The gaps of adjoints by tolerance, of all that do not agree where the solver has one, too."""
    adaptive, found = task.rnn.solver.adaptive, []
    pairs = zip(wanted, gaps, strict=True)
    apart = [g for g, gap in pairs if gap.gap is not None and gap.gap > ROUNDING]
    asked = [g for g in apart if adaptive or isinstance(g, solvers.Adjoint)]
    if not asked or task.rnn.solver.stochastic:
        return ()
    for rtol in watched(list(tolerances), "tolerances", progress):
        reference = task.reference(1, rtol)
        found += [task.gap(gradient, 1, reference, rtol, rtol) for gradient in asked]
    return tuple(found)


def _orders(gaps: Sequence[Gap]) -> tuple[float, ...]:
    """Observed orders of a gap between one number of steps and the next; NaN where it is too small to have one."""
    pairs = [
        (math.log(second.substeps / first.substeps), first.gap, second.gap)
        for first, second in itertools.pairwise(gaps)
    ]
    return tuple(math.log(a / b) / finer if a and b and b > RESOLVED else math.nan for finer, a, b in pairs)


def _names(gaps: Sequence[Gap]) -> list[str]:
    return list(dict.fromkeys(gap.gradient for gap in gaps))


def _cosine(one: Tensor, other: Tensor) -> float | None:
    """Of the angle between two gradients; None where one of them is zero."""
    lengths = float(one.norm() * other.norm())
    return float((one * other).sum()) / lengths if lengths else None


def _nothing(reference: Mapping[str, Tensor]) -> Verdict | None:
    """No claim where backprop gives nothing to compare with."""
    largest = max(float(g.abs().max()) for g in reference.values())
    if not all(bool(torch.isfinite(g).all()) for g in reference.values()):
        return no_claim("the gradient of backprop is not finite", RULE)
    if not largest:
        return no_claim("the gradient of backprop is zero, so that no gap is relative to it", RULE)
    return None


def _verdict(gaps: Sequence[Gap], orders: Mapping[str, Sequence[float]], sequences: int) -> Verdict:
    numbers: dict[str, float] = {"sequences": sequences}
    agree, apart = [], []
    for gap in gaps:
        if gap.gap is None:
            continue
        numbers[f"gap of {gap.gradient}"] = gap.gap
        numbers.update({f"order {i + 1} of {gap.gradient}": o for i, o in enumerate(orders.get(gap.gradient, ()))})
        if gap.gap <= ROUNDING:
            agree.append(gap)
            continue
        parameters = gap.parameters or {}
        worst = max(parameters, key=lambda name, of=parameters: of[name][0])  # type: ignore[misc]
        numbers[f"gap of {gap.gradient} in {worst}"] = parameters[worst][0]
        cosine = "" if gap.cosine is None else f"cosine {gap.cosine:.3f}, "
        own = f"{parameters[worst][0]:.2g} of its own" if math.isfinite(parameters[worst][0]) else "where it is zero"
        apart.append(
            f"{gap.gradient} is {gap.gap:.2g} of the largest entry off ({cosine}in {worst} {own})"
            f"{_closing(orders.get(gap.gradient))}"
        )
    if not agree and not apart:
        return no_claim("no gradient could run", RULE, numbers)
    sentences = []
    # That backprop agrees with itself is no news where there are others.
    agree = [gap for gap in agree if gap.gradient != "backprop"] or ([] if apart else agree)
    if agree:
        names, largest = " and ".join(g.gradient for g in agree), max(float(g.gap or 0) for g in agree)
        sentences.append(f"{names} agree{'s' * (len(agree) == 1)} with backprop to {largest:.1e}")
    sentence = "; ".join([*sentences, *apart])
    return Verdict(
        f"At these weights and on {sequences} sequences {sentence}.", numbers, RULE, "apart" if apart else "agree"
    )


def _closing(orders: Sequence[float] | None) -> str:
    if not orders:
        return ""
    if not all(math.isfinite(order) for order in orders):
        return f", and at shorter steps not above {RESOLVED:g}, from which on no order is seen"
    shown = " and ".join(f"{order:.2f}" for order in orders)
    if min(orders) > 0.5 and max(orders) - min(orders) < SAME_ORDER:
        return f", a gap that closes with the step, with orders {shown}: it follows the equation, not the steps"
    if max(orders) < 0.5:
        return f", a gap that shorter steps do not close (orders {shown})"
    return f", with orders {shown} in the step, which are not one"


def _row(gap: Gap, of: str, value: float | None, cosine: float | None) -> Row:
    return {
        "gradient": gap.gradient,
        "of": of,
        "steps": gap.substeps,
        "rtol": gap.rtol,
        "gap": value,
        "cosine": cosine,
        "note": gap.note if of == "all" else "",
    }
