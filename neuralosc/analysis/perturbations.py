"""What can happen to samples on their way: noise, attacks, samples that are lost and clocks that are off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neuralosc.analysis.losses import Loss, parted
from neuralosc.analysis.samples import Samples
from neuralosc.layers.sequence_model import SequenceModel

#: Steps of projected gradient descent, and their length over the radius divided by them: enough to cross the ball.
PGD_STEPS, PGD_PACE = 10, 2.5


@dataclass(frozen=True)
class Victim:
    """What is perturbed.

    Attributes:
        model: in float64, of which no parameter requires a gradient.
        samples: as they are.
        loss: what an attack raises.
        scale: what a strength of 1 is of each feature, `(input,)`.
        drawn: where noise comes from.
        seed: of the noise that a stochastic solver draws.
    """

    model: Any
    samples: Samples
    loss: Loss
    scale: Tensor
    drawn: torch.Generator
    seed: int = 0

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, on the processor of the samples."""
        return torch.randn(*shape, dtype=torch.float64, generator=self.drawn).to(self.samples.x)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(*shape, dtype=torch.float64, generator=self.drawn).to(self.samples.x)

    def slope(self, x: Tensor) -> Tensor:
        """The gradient of the loss in x, of each sequence up to a factor; 0 where no value is known."""
        pieces, start = [], 0
        for part, _ in parted(self.model, self.samples, recorded=True):
            moved = x[start : start + len(part)].detach().clone().requires_grad_()
            start += len(part)
            with torch.enable_grad(), torch.random.fork_rng():
                torch.manual_seed(self.seed)
                value = self.loss(self.model, replace(part, x=moved))
                (found,) = torch.autograd.grad(value, moved, allow_unused=True) if value.requires_grad else (None,)
            pieces.append(torch.zeros_like(moved) if found is None else found.nan_to_num(0.0))
        return torch.cat(pieces)


@dataclass(frozen=True)
class Kind:
    """A kind of perturbation.

    Attributes:
        what: it in words, and the unit of its strength.
        strengths: the usual ones.
        perturb: the samples it makes at a strength.
        timed: whether it changes the times alone, which a network without a clock does not see.
        attack: whether it looks at the model.
    """

    what: str
    strengths: tuple[float, ...]
    perturb: Callable[[Victim, float], Samples]
    timed: bool = False
    attack: bool = False


def _white(victim: Victim, strength: float) -> Samples:
    x = victim.samples.x
    return replace(victim.samples, x=x + strength * victim.scale * victim.normal(*x.shape))


def _multiplicative(victim: Victim, strength: float) -> Samples:
    x = victim.samples.x
    return replace(victim.samples, x=x * (1 + strength * victim.normal(*x.shape)))


def _salt_pepper(victim: Victim, strength: float) -> Samples:
    """The smallest or largest value of a feature instead of a value, each as likely."""
    x, valid = victim.samples.x, victim.samples.valid.unsqueeze(-1)
    known = valid & ~x.isnan()
    low = torch.where(known, x, torch.inf).amin((0, 1))
    high = torch.where(known, x, -torch.inf).amax((0, 1))
    hit, side = (victim.uniform(*x.shape) < strength) & known, victim.uniform(*x.shape) < 0.5
    return replace(victim.samples, x=torch.where(hit, torch.where(side, low, high), x))


def _fgsm(victim: Victim, strength: float) -> Samples:
    """One step along the signs of the gradient (Goodfellow, Shlens & Szegedy, ICLR 2015)."""
    x = victim.samples.x
    return replace(victim.samples, x=x + strength * victim.scale * victim.slope(x).sign())


def _pgd(victim: Victim, strength: float) -> Samples:
    """Steps along the signs within a cube, from a random place in it (Madry et al., ICLR 2018)."""
    x, radius = victim.samples.x, strength * victim.scale
    moved = x + radius * (2 * victim.uniform(*x.shape) - 1)
    for _ in range(PGD_STEPS):
        ahead = moved + PGD_PACE / PGD_STEPS * radius * victim.slope(moved).sign()
        moved = torch.minimum(torch.maximum(ahead, x - radius), x + radius)
    return replace(victim.samples, x=moved)


def _dropped(victim: Victim, strength: float) -> Samples:
    """Samples are lost, and the time before them passes before the next that is not; one of each sequence is left."""
    samples, valid = victim.samples, victim.samples.valid
    count = valid.sum(1)
    kept = valid & (victim.uniform(*valid.shape) >= strength)
    last = torch.arange(valid.shape[1], device=valid.device) == (count - 1).unsqueeze(1)
    kept = kept | (last & valid & ~kept.any(1, keepdim=True))
    lengths = kept.sum(1)
    # Those that are kept move to the front, in their order.
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)
    ahead = torch.where(valid, _spans(samples), 0).cumsum(1).gather(1, order)
    spans = ahead.diff(dim=1, prepend=torch.zeros_like(ahead[:, :1]))
    inside = torch.arange(valid.shape[1], device=valid.device) < lengths.unsqueeze(1)
    spans = torch.where(inside, spans, 0)
    y = samples.y
    if y is not None and _each(victim.model, samples):
        y = torch.take_along_dim(y, order.reshape(*order.shape, *[1] * (y.dim() - 2)), 1)
    return Samples(torch.take_along_dim(samples.x, order.unsqueeze(-1), 1), y, spans, lengths)


def _jitter(victim: Victim, strength: float) -> Samples:
    """Every timespan times a log-normal number of mean 1."""
    spans = _spans(victim.samples)
    factors = torch.exp(strength * victim.normal(*spans.shape) - strength**2 / 2)
    return replace(victim.samples, timespans=spans * factors)


def _spans(samples: Samples) -> Tensor:
    shape = samples.x.shape[:2]
    ones = torch.ones(shape, dtype=samples.x.dtype, device=samples.x.device)
    return ones if samples.timespans is None else samples.timespans.to(ones).expand(shape)


def _each(model: Any, samples: Samples) -> bool:
    """Whether there is a target for each sample."""
    if isinstance(model, SequenceModel):
        return bool(model.readout.pooling.every)
    return samples.y is not None and samples.y.dim() > 1 and samples.y.shape[1] == samples.x.shape[1]


KINDS: dict[str, Kind] = {
    "white": Kind("white noise, over the deviation of a feature", (0.1, 0.3, 1.0), _white),
    "multiplicative": Kind("multiplicative white noise, relative", (0.1, 0.3, 1.0), _multiplicative),
    "salt_pepper": Kind("salt and pepper, share of the values", (0.03, 0.1, 0.3), _salt_pepper),
    "fgsm": Kind("FGSM, radius over the deviation of a feature", (0.01, 0.03, 0.1, 0.3), _fgsm, attack=True),
    "pgd": Kind("PGD, radius over the deviation of a feature", (0.01, 0.03, 0.1, 0.3), _pgd, attack=True),
    "dropped": Kind("lost samples, share of them", (0.05, 0.1, 0.3), _dropped),
    "jitter": Kind("jitter of the clock, relative", (0.1, 0.3, 1.0), _jitter, timed=True),
}
