"""What the papers prove of a network's gradients and states, and whether what they assume of the weights holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralosc.analysis.along import Walk
from neuralosc.fields import HamiltonianOscillator, Lipschitz, Multiscale, Oscillator
from neuralosc.layers.rnn import ContinuousRNN

#: What rounding may make of a bound that is met exactly.
SLACK = 1e-9


@dataclass(frozen=True)
class Bound:
    """A theorem, tried on a network.

    Attributes:
        name: what is bounded.
        statement: the bound, in symbols.
        source: the paper.
        assumption: what it assumes, in symbols with its numbers.
        assumed: whether that holds of these weights.
        limit: the bound, a number.
        found: the largest value met along the run.
    """

    name: str
    statement: str
    source: str
    assumption: str
    assumed: bool
    limit: float
    found: float

    @property
    def kept(self) -> bool:
        """Whether nothing that was met exceeds the bound, which can be though nothing is assured."""
        return self.found <= self.limit * (1 + SLACK) + SLACK

    def __str__(self) -> str:
        assumed = "holds" if self.assumed else "does NOT hold"
        kept = "kept" if self.kept else "exceeded"
        return (
            f"{self.source}: {self.statement} where {self.assumption}, which {assumed} of these weights; {kept} "
            f"along the run ({self.found:.3g}, bound {self.limit:.3g})"
        )


def bounds(walk: Walk, jacobians: Tensor) -> tuple[Bound, ...]:
    """The theorems on a layer's field, tried along its run; none of a field on which none is known here."""
    if not isinstance(walk.rnn, ContinuousRNN):
        return ()
    field = walk.rnn.layer(walk.layer)
    for kind, tried in _KNOWN.items():
        if isinstance(field, kind):
            with torch.no_grad():
                return tried(walk, jacobians)
    return ()


def _row_sums(matrix: Tensor) -> float:
    return float(matrix.abs().sum(-1).max())


def _cornn(walk: Walk, jacobians: Tensor) -> tuple[Bound, ...]:
    """Of the published step alone: gamma = epsilon = 1, damping taken implicitly, equal steps."""
    field, rnn, paper = walk.rnn.layer(walk.layer), walk.rnn, "Rusch & Mishra, ICLR 2021"
    assert isinstance(field, Oscillator)
    dt = rnn.dts[walk.layer] / rnn.substeps
    gamma, epsilon = (torch.as_tensor(c(), dtype=torch.float64) for c in (field.gamma, field.epsilon))
    plain = bool((gamma == 1).all() and (epsilon == 1).all()) and rnn.substeps == 1 and _regular(walk)
    published = plain and rnn.solver.name == "imex_euler"
    couplings = [1 + _row_sums(field.W), 1.0 + (0.0 if field.R is None else _row_sums(field.R))]
    eta = dt * max(couplings) / (1 + dt)
    r = math.log(eta) / math.log(dt) if 0 < dt < 1 else math.nan
    usual = "gamma = epsilon = 1 under the published step 'imex_euler'"
    states = walk.states[:, 1:][walk.valid]
    y, z = states.unbind(-2)
    energy = y.square().sum(-1) + z.square().sum(-1)
    steps = walk.valid.cumsum(1)[walk.valid].double()
    limit = field.hidden_size * steps * dt
    worst = int((energy / limit).argmax())
    step = Bound(
        "growth of a gradient over one step",
        "||dX_n / dX_(n-1)||_inf <= 1 + 3 dt^r",
        paper,
        f"eta = {eta:.3g} <= dt^r with 1/2 <= r <= 1 (here r = {r:.3g}, dt = {dt:.3g}), {usual}",
        bool(published and r >= 0.5),
        1 + 3 * dt ** min(r, 1.0) if r == r else math.inf,
        float(jacobians[walk.valid].abs().sum(-1).max()),
    )
    bounded = Bound(
        "energy of a state",
        "|y_n|^2 + |z_n|^2 <= m n dt",
        paper,
        f"dt <= 1 and a start at rest (here dt = {dt:.3g}), {usual}",
        bool(published and dt <= 1 and not walk.states[:, 0].any()),
        float(limit[worst]),
        float(energy[worst]),
    )
    return step, bounded


def _unicornn(walk: Walk, jacobians: Tensor) -> tuple[Bound, ...]:
    sign, logarithm = torch.linalg.slogdet(jacobians[walk.valid])
    return (
        Bound(
            "change of volume by a step",
            "|log det dX_n / dX_(n-1)| = 0",
            "Rusch & Mishra, ICML 2021",
            f"a symplectic step (here {walk.rnn.solver.name!r})",
            bool(walk.rnn.solver.symplectic),
            0.0,
            float(torch.where(sign > 0, logarithm.abs(), math.inf).max()),
        ),
    )


def _lipschitz(walk: Walk, jacobians: Tensor) -> tuple[Bound, ...]:
    """Of the flow: two states come together at the rate of the margin; a step may differ by its error."""
    field = walk.rnn.layer(walk.layer)
    assert isinstance(field, Lipschitz)
    matrices = field.prepare()
    A, W = matrices["A"], matrices["W"]
    highest = float(torch.linalg.eigvalsh(A + A.T).max()) / 2
    largest = float(torch.linalg.matrix_norm(W, 2))
    margin = -highest - largest
    plain = not field.gated and field.time_scale() is None
    spans = walk.spans[walk.valid]
    norms = torch.linalg.matrix_norm(jacobians[walk.valid], 2)
    worst = int((norms / (-margin * spans).exp()).argmax())
    return (
        Bound(
            "growth of a gradient over one interval",
            "||dX(t + s) / dX(t)||_2 <= exp(-m s)",
            "Erichson et al., ICLR 2021",
            f"m = -lambda_max(A_sym) - sigma_max(W) > 0 (here {margin:.3g}) without gate or time scale, solved exactly",
            margin > 0 and plain,
            math.exp(-margin * float(spans[worst])),
            float(norms[worst]),
        ),
    )


def _lem(walk: Walk, jacobians: Tensor) -> tuple[Bound, ...]:
    """Of the published step: states are weighted means of tanh and of states, and gates have a slope of 1/4 at most.

    A row of d p_n / d X_(n-1) adds up to 1 + dt (|W2|/2 + |W|) at most, as |tanh - p| <= 2, and one of d q_n to
    1 + dt (|W1|/2 + |Z| times that of p_n), |M| the largest absolute row sum.
    """
    field, rnn, paper = walk.rnn.layer(walk.layer), walk.rnn, "after Rusch et al., ICLR 2022"
    assert isinstance(field, Multiscale)
    dt = rnn.dts[walk.layer]
    published = rnn.solver.name == "semi_implicit_euler" and rnn.substeps == 1 and _regular(walk) and 0 < dt <= 1
    W1, W2, W = (_row_sums(part) for part in field.coupling.weight.chunk(3))
    slow = 1 + dt * (W2 / 2 + W)
    fast = 1 + dt * (W1 / 2 + _row_sums(field.transform.weight) * slow)
    within = bool((walk.states[:, 0].abs() <= 1).all())
    usual = (
        f"dt <= 1 and a start within 1 under the published step 'semi_implicit_euler' (here dt = {dt:.3g} under "
        f"{rnn.solver.name!r})"
    )
    growth = float(jacobians[walk.valid].abs().sum(-1).max())
    largest = float(walk.states[:, 1:][walk.valid].abs().max())
    return (
        Bound(
            "growth of a gradient over one step",
            "||dX_n / dX_(n-1)||_inf <= 1 + dt max(|W2|/2 + |W|, |W1|/2 + |Z| (1 + dt (|W2|/2 + |W|)))",
            paper,
            usual,
            published and within,
            max(slow, fast),
            growth,
        ),
        Bound("size of a state", "|q_n|, |p_n| <= 1", paper, usual, published and within, 1.0, largest),
    )


def _regular(walk: Walk) -> bool:
    spans = walk.spans[walk.valid]
    return bool((spans - walk.rnn.dts[walk.layer]).abs().max() < 1e-12)


_KNOWN: dict[type, Callable[[Walk, Tensor], tuple[Bound, ...]]] = {
    Oscillator: _cornn,
    HamiltonianOscillator: _unicornn,
    Lipschitz: _lipschitz,
    Multiscale: _lem,
}
