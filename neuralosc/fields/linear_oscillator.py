"""Linear oscillators: the state space of LinOSS."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from neuralosc import arguments
from neuralosc.field import Partitioned, Semilinear
from neuralosc.fields import discretizations
from neuralosc.fields.parameters import divisor, uniform_
from solvers.base.series import Mapped, Series
from solvers.base.state import axpy
from solvers.errors import InputError
from solvers.numerics.linear import OscillatorOperator
from solvers.protocol import Time


class LinearOscillator(Partitioned, Semilinear):
    """The LinOSS field: uncoupled, driven linear oscillators, with a time scale of their own each.

        dq = s p
        dp = s (u - A q - G p),    u = B x,  s = sigmoid(steps),  A and G projections of raw parameters

    The published state is complex with real A, G and s: its real and imaginary parts are two oscillators with the same
    coefficients. With `paired`, channels 0 to n - 1 are the real parts of n of them, n to 2n - 1 the imaginary parts.

    Published discretizations are steps of dt = 1 of solvers: see `neuralosc.fields.discretizations`. The projection
    belongs to the parameters, and so to a discretization, with steps of s; under any other solver, dt or timespan it
    stays what it is.

    Args:
        input_size: features of the input.
        hidden_size: channels.
        damped: with G.
        paired: both halves of the channels share A, G and s, as the parts of complex oscillators do.
        heads: groups of channels, each driven by its own part of the input: B has a block for each head.
        projection: what keeps A and G in bounds: "relu" from being negative; "stable" and "oscillatory" in the region
            in which a step of `discretization` is stable, or stable and oscillating.
        discretization: "IM" or "IMEX", with damping also "IMEX2", "IMEX3" and "EX".
        initialization: "uniform", or "ring": with damping, from the eigenvalues of a step of `discretization`.
        projection_margin: fraction of the upper ends of that region that is left out, at least 0 and below 1; 0 is as
            published.

    Initialised as published: A_raw, G_raw and steps ~ U(0, 1); by "ring" A_raw and G_raw such that the eigenvalues
    r exp(+-i theta) of a step have r^2 ~ U(0.81, 1), theta ~ U(0, pi / 4). B ~ U(-1/sqrt(k), 1/sqrt(k)), k the features
    of a head.

    Raises:
        InputError: sizes that do not divide, or names that do not fit together.

    Source: Rusch & Rus, Oscillatory State-Space Models, ICLR 2025; with damping: Boyer, Rusch & Rus, Learning to
    Dissipate Energy in Oscillatory State-Space Models, 2025.
    """

    separable = True
    dynamics = ("A", "G", "steps")
    terms = frozenset({"damping", "stiffness"})

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        damped: bool = False,
        paired: bool = False,
        heads: int = 1,
        projection: str = "relu",
        discretization: str = "IMEX",
        initialization: str = "uniform",
        projection_margin: float = 0.0,
    ) -> None:
        super().__init__(input_size, hidden_size)
        arguments.flag("damped", damped), arguments.flag("paired", paired)
        discretizations.solver(discretization, damped)
        arguments.choice("projection", projection, discretizations.PROJECTIONS)
        known = discretizations.INITIALIZATIONS
        arguments.choice("initialization", initialization, known if damped else {"uniform": known["uniform"]})
        self.paired, count = paired, hidden_size // 2 if paired else hidden_size
        if paired and hidden_size % 2:
            raise InputError(f"hidden_size is {hidden_size}, expected an even number for real and imaginary parts")
        self.heads = divisor("heads", heads, {"oscillators": count, "input_size": input_size})
        self.projection, self.discretization, self.initialization = projection, discretization, initialization
        self.projection_margin = arguments.probability("projection_margin", projection_margin)
        self.A, self.steps = nn.Parameter(torch.empty(count)), nn.Parameter(torch.empty(count))
        self.G = nn.Parameter(torch.empty(count)) if damped else None
        self.B = nn.Parameter(torch.empty(hidden_size, input_size // heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for parameter in (self.A, self.steps, self.G):
            if parameter is not None:
                nn.init.uniform_(parameter, 0, 1)
        if self.G is not None and self.initialization == "ring":
            with torch.no_grad():
                squared = torch.empty_like(self.A).uniform_(0.81, 1)
                trace = 2 * squared.sqrt() * torch.cos(torch.empty_like(self.A).uniform_(0, math.pi / 4))
                h = torch.sigmoid(self.steps)
                A, G = discretizations.of_eigenvalues(self.discretization, trace, squared, h)
                self.A.copy_(A), self.G.copy_(G)
        uniform_([self.B], self.B.shape[1])

    @property
    def structure(self) -> frozenset[str]:
        """Linear."""
        return super().structure | {"linear"}

    def drive(self, x: Tensor) -> Tensor:
        """B x, head by head."""
        return grouped(x, self.B, self.heads, 2 if self.paired else 1)

    def currents(self, x: Tensor) -> Series:
        """`drive(x)`, sample by sample; the map of one head is a plain product."""
        plain = self.heads == 1 and type(self).drive is LinearOscillator.drive
        return Mapped(x, self.B, None) if plain else super().currents(x)

    def prepare(self) -> dict[str, Any]:
        """A, G and s for every channel."""
        scale = torch.sigmoid(self.steps)
        damping = torch.zeros_like(self.A) if self.G is None else self.G
        A, G = discretizations.projected(
            self.projection, self.discretization, self.A, damping, scale, self.projection_margin
        )
        values = {"A": A, "G": None if self.G is None else G, "time_scale": scale}
        return {name: v.repeat(2) if self.paired and v is not None else v for name, v in values.items()}

    def time_scale(self) -> Tensor:
        """s = sigmoid(steps)."""
        scale: Tensor = self.constants["time_scale"]
        return scale

    def damping(self) -> Tensor | None:
        """G."""
        value: Tensor | None = self.constants["G"]
        return value

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """u - A q - G p."""
        pulled, damping = axpy(u, -self.constants["A"], q), self.constants["G"]
        return pulled if damping is None else axpy(pulled, -damping, p)

    def operator(self, terms: frozenset[str] | None = None) -> OscillatorOperator:
        """[[0, 1], [-A, -G]], with zeros for the terms not chosen."""
        terms, constants = self.terms if terms is None else terms, self.constants
        damping = constants["G"] if "damping" in terms and self.G is not None else 0.0
        return OscillatorOperator(constants["A"] if "stiffness" in terms else 0.0, damping)

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """(0, the force without the chosen linear terms)."""
        terms, constants = self.terms if terms is None else terms, self.constants
        q, p = state.unbind(-2)
        force = u if "stiffness" in terms else axpy(u, -constants["A"], q)
        if "damping" not in terms and self.G is not None:
            force = axpy(force, -constants["G"], p)
        return torch.stack((torch.zeros_like(q), force.expand_as(q)), dim=-2)


def grouped(x: Tensor, weight: Tensor, heads: int, parts: int = 1) -> Tensor:
    """The product with a block-diagonal matrix: each head maps its part of the features to its part of the channels.

    Args:
        x: `(*batch, features)`; head i takes the i-th of equal parts.
        weight: `(channels, features / heads)`.
        heads: blocks.
        parts: groups of channels (real, imaginary) that are cut into heads each.
    """
    if heads == 1:
        return nn.functional.linear(x, weight)
    blocks = weight.view(parts, heads, -1, weight.shape[1])
    return torch.einsum("...hf,phcf->...phc", x.unflatten(-1, (heads, -1)), blocks).flatten(-3)
