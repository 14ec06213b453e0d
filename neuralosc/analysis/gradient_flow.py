"""What becomes of a gradient on its way back through time: norms of products of the Jacobians of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from neuralosc.analysis.along import Walk, walk
from neuralosc.analysis.bounds import Bound, bounds
from neuralosc.analysis.drawing import GREY, INK, PALETTE
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Samples
from neuralosc.analysis.subject import precise, watched
from solvers.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Beyond these a gradient of training in float32 is, beside that of the last step, lost in rounding or the one that
#: counts: a float32 has 7 digits, of which sums over samples and lags use the first three or four.
VANISHED, EXPLODED = 1e-3, 1e3

#: Fewer sequences than this give no quantiles.
FEWEST = 4


@dataclass(frozen=True)
class GradientFlow(Result):
    """What `gradient_flow` found.

    Attributes:
        lags: how many steps back, `(lags,)`.
        norms: the spectral norm of d state_T / d state_(T - lag), `(samples, lags)`; NaN where a sequence is shorter.
        row_sums: its largest absolute row sum, likewise.
        smallest: its smallest singular value, likewise.
        volumes: the logarithm of the absolute value of its determinant, likewise.
        bounds: what the papers prove of such a network, and whether what they assume holds.
        samples: how many sequences were looked at.
        layer: which layer.
    """

    lags: Tensor
    norms: Tensor
    row_sums: Tensor
    smallest: Tensor
    volumes: Tensor
    bounds: tuple[Bound, ...]
    samples: int
    layer: int

    heading: ClassVar[str] = "Gradients by lag"

    @property
    def condition(self) -> Tensor:
        """The largest over the smallest singular value, `(samples, lags)`; beyond 1e16 it is rounding that speaks."""
        return self.norms / self.smallest

    def rows(self) -> Sequence[Row]:
        """A row for each lag: quantiles over the sequences."""
        rows: list[Row] = []
        for i, lag in enumerate(self.lags.tolist()):
            low, middle, high = _quantiles(self.norms[:, i])
            row = {"lag": lag, "norm": middle, "10 %": low, "90 %": high, "row sum": _quantiles(self.row_sums[:, i])[1]}
            condition, volume = (_quantiles(part[:, i])[1] for part in (self.condition, self.volumes))
            rows.append({**row, "condition": condition, "log volume": volume})
        return rows

    def notes(self) -> Sequence[str]:
        """The theorems, and whether what they assume holds."""
        return [str(bound) for bound in self.bounds]

    def draw(self, figure: Figure) -> None:
        """Norms against lag: median and the middle 80 %, and the smallest singular value."""
        axes: Any = figure.subplots()
        lags = self.lags.numpy()
        for part, colour, name in ((self.norms, PALETTE[0], "largest"), (self.smallest, PALETTE[1], "smallest")):
            low, middle, high = part.nanquantile(torch.tensor([0.1, 0.5, 0.9], dtype=part.dtype), 0).numpy()
            axes.fill_between(lags, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(lags, middle, color=colour, marker="o", label=f"{name} singular value (median, middle 80 %)")
        axes.axhline(1, color=GREY, linewidth=3, zorder=0.9, label="neither grows nor shrinks")
        for limit in (VANISHED, EXPLODED):
            axes.axhline(limit, color=INK, linewidth=0.8, linestyle=":")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="lag (samples)",
            ylabel="singular value",
            title="of d state(T) / d state(T - lag), the map",
        )
        seen = self.norms[self.norms.isfinite()].clamp(1e-12, 1e12)
        ends = (float(seen.min()), float(seen.max())) if len(seen) else (1.0, 1.0)
        axes.set_ylim(min(ends[0], VANISHED) / 10, max(ends[1], EXPLODED) * 10)
        axes.legend(loc="best", fontsize=8)


def gradient_flow(
    model: nn.Module, data: Any, layer: int = -1, samples: int = 8, seed: int = 0, progress: bool | None = None
) -> GradientFlow:
    """Does a gradient vanish, explode or arrive on its way back through the steps of a layer?

        P_k = d state_T / d state_(T-k) = J_T J_(T-1) .. J_(T-k+1),    J_i = d state_i / d state_(i-1)

    along the run of the network on its samples, T the last of each; the input maps and other layers are not in it.
    The norms are those of the map, the steps that are taken, per sample and not per unit of time.

    The verdict: it arrives if the median of the spectral norm at the longest lag lies between 1e-3 and 1e3, vanishes
    below and explodes above. A norm is that of the direction that is carried best: what is lost there is lost.

    Args:
        model: a `SequenceModel` or a network; an LSTM or GRU of torch too, of one layer.
        data: samples, as `Samples.of` takes them.
        layer: which layer; the last when left out.
        samples: how many sequences, drawn by `seed`.
        seed: draws them.
        progress: show a bar; None where somebody reads along.

    Raises:
        InputError: a network with noise or in two directions, or one without a solver of several layers.
        NumericalError: the run itself fails.

    Source: Pascanu, Mikolov & Bengio, ICML 2013; the bounds from Rusch & Mishra, ICLR and ICML 2021, and Erichson et
    al., ICLR 2021.
    """
    chosen = Samples.of(data).double().take(samples, seed)
    way = walk(precise(model), chosen, layer)
    jacobians, _ = way.jacobians(progress=progress)
    lags = torch.tensor(_lags(int(way.lengths.max())))
    found = _products(way, jacobians, lags, progress)
    parts = dict(zip(("norms", "row_sums", "smallest", "volumes"), found, strict=True))
    said = _verdict(lags, parts["norms"], len(chosen))
    return GradientFlow(
        lags, **parts, bounds=bounds(way, jacobians), samples=len(chosen), layer=way.layer, verdict=said, of="map"
    )


def _lags(longest: int) -> list[int]:
    """Some three for each doubling, up to the longest."""
    if longest < 1:
        raise InputError("data has no sequence with a sample: there is no step to look at")
    grid = {round(2 ** (k / 3)) for k in range(3 * longest.bit_length() + 1)}
    return sorted(lag for lag in grid | {longest} if lag <= longest)


def _products(way: Walk, jacobians: Tensor, lags: Tensor, progress: bool | None) -> list[Tensor]:
    """Norm, row sum, smallest singular value and log volume of the product at each lag, `(samples, lags)` each."""
    count, n = len(jacobians), way.size
    rows, ends = torch.arange(count), way.lengths
    product = torch.eye(n, dtype=jacobians.dtype).expand(count, n, n)
    volume = jacobians.new_zeros(count)
    found = [jacobians.new_full((count, len(lags)), float("nan")) for _ in range(4)]
    wanted = {lag: place for place, lag in enumerate(lags.tolist())}
    for lag in watched(range(1, max(wanted) + 1), "products of Jacobians", progress):
        there = ends >= lag
        step = jacobians[rows, (ends - lag).clamp_min(0)]
        product = torch.where(there.view(-1, 1, 1), product @ step, product)
        volume = volume + torch.where(there, torch.linalg.slogdet(step).logabsdet, 0)
        if lag in wanted:
            finite = there & product.isfinite().flatten(1).all(1)
            values = torch.linalg.svdvals(product[finite])
            sums = product[finite].abs().sum(-1).amax(-1)
            for part, value in zip(found, (values[:, 0], sums, values[:, -1], volume[finite]), strict=True):
                part[finite, wanted[lag]] = value
            overflown = there & ~finite
            found[0][overflown, wanted[lag]] = found[1][overflown, wanted[lag]] = float("inf")
    return found


def _quantiles(values: Tensor) -> tuple[float, float, float]:
    known = values[~values.isnan()]
    if not len(known):
        return (float("nan"),) * 3
    low, middle, high = known.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=known.dtype), interpolation="nearest")
    return float(low), float(middle), float(high)


def _verdict(lags: Tensor, norms: Tensor, samples: int) -> Verdict:
    rule = (
        f"the median over sequences of the spectral norm at the longest lag that {FEWEST} sequences have: below "
        f"{VANISHED:g} it vanishes, above {EXPLODED:g} it explodes, between them it arrives"
    )
    reached = (~norms.isnan()).sum(0) >= FEWEST
    if not reached.any():
        return no_claim(f"{samples} sequences are too few, {FEWEST} are needed", rule, {"samples": samples})
    place = int(reached.nonzero()[-1])
    lag, (low, middle, high) = int(lags[place]), _quantiles(norms[:, place])
    numbers = {"lag": lag, "norm": middle, "10 %": low, "90 %": high, "samples": samples}
    spread = f"the spectral norm over {lag} steps is {middle:.3g} (middle 80 %: {low:.3g} to {high:.3g})"
    fate = "vanishes" if middle < VANISHED else "explodes" if middle > EXPLODED else "arrives"
    sentence = f"The gradient {fate}: {spread}, of the states of {samples} sequences, input maps left out."
    return Verdict(sentence, numbers, rule, fate)
