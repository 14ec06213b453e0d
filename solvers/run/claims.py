"""Whether a field does what it declares: each structure, tried on numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solvers.errors import InputError, NumericalError
from solvers.numerics.linear import linear_part
from solvers.protocol import STRUCTURES, bind, describe, structure

#: What rounding in float64 may make of two ways to one number, relative to the largest of them.
TOLERANCE = 1e-8

#: Between the seed of random states and that of the others that they are compared with.
APART = 0x5DEECE66D

#: The same of a difference quotient over a time of this size.
INSTANT, ROUGH = 1e-6, 1e-4


@dataclass(frozen=True)
class Claim:
    """One promise, tried.

    Attributes:
        name: of the structure.
        promise: what was compared.
        error: by how much it fails, relative to the largest number compared.
        allowed: what rounding explains.
        place: the sample with the largest error.
    """

    name: str
    promise: str
    error: float
    allowed: float
    place: int

    @property
    def holds(self) -> bool:
        """Whether the error is no more than rounding."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.name}: {self.promise}: off by {self.error:.1e} ({'holds' if self.holds else 'WRONG'})"


@dataclass(frozen=True)
class FieldCheck:
    """What a field declares, tried on numbers.

    Attributes:
        field: what it is called.
        claims: one for each promise.
        samples: states it was tried at.
    """

    field: str
    claims: tuple[Claim, ...]
    samples: int

    @property
    def wrong(self) -> tuple[Claim, ...]:
        """The promises that do not hold."""
        return tuple(claim for claim in self.claims if not claim.holds)

    @property
    def verdict(self) -> str:
        """A sentence with the numbers that it rests on."""
        if not self.wrong:
            worst = max((claim.error for claim in self.claims), default=0.0)
            return (
                f"{self.field} keeps all {len(self.claims)} promises at {self.samples} states; the largest relative "
                f"error is {worst:.1e}"
            )
        first = self.wrong[0]
        return (
            f"{self.field} declares {first.name!r} ({STRUCTURES.get(first.name, 'of every field')}), but "
            f"{first.promise} is off by {first.error:.1e} of the largest value at state {first.place} of "
            f"{self.samples}: correct it, or do not declare it"
        )

    def require(self) -> None:
        """Refuse a field that breaks a promise.

        Raises:
            InputError: it does; the message is the verdict.
        """
        if self.wrong:
            raise InputError(self.verdict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        claims = [vars(claim) | {"holds": claim.holds} for claim in self.claims]
        return {"field": self.field, "samples": self.samples, "verdict": self.verdict, "claims": claims}

    def table(self) -> str:
        """A line for each promise, and the verdict."""
        return "\n".join([*map(str, self.claims), self.verdict])


def check_field(
    field: Any, state: Tensor | None = None, u: Any = None, t: float = 0.3, samples: int = 64, seed: int = 0
) -> FieldCheck:
    """Try everything that a field declares on random states, in float64.

    A solver takes a declared structure at its word: where it is not true, the solver integrates another equation, and
    two solvers two different ones. A copy of the field in evaluation mode is tried, the field itself stays as it is.

    Args:
        field: the field.
        state: states `(samples, components, hidden)` to try it at; random ones when left out, of a field that says its
            `components` and `hidden_size`.
        u: the input at these states, `(samples, channels)`; when left out what the field's `drive` makes of random
            samples, if it has one.
        t: the time.
        samples: how many random states.
        seed: of the random numbers, which are those of no generator of the process.

    Raises:
        InputError: there are no states to try it at.
    """
    own = copy.deepcopy(field).double().eval() if isinstance(field, nn.Module) else field
    generator = torch.Generator().manual_seed(seed)
    state = _states(field, samples, generator) if state is None else state.detach().double()
    if u is None:
        u = _inputs(own, len(state), generator)
    trial = _Trial(bind(own), state, u.double() if isinstance(u, Tensor) else u, t, generator)
    with torch.no_grad():
        return FieldCheck(describe(field), tuple(trial.claims()), len(state))


def _states(field: Any, samples: int, generator: torch.Generator) -> Tensor:
    sizes = (getattr(field, "components", None), getattr(field, "hidden_size", None))
    if not all(isinstance(size, int) for size in sizes):
        raise InputError(f"{describe(field)} does not say its components and hidden_size: give states to try it at")
    components, hidden = sizes
    return torch.randn(samples, components, hidden, generator=generator, dtype=torch.float64)  # type: ignore[arg-type]


def _inputs(field: Any, samples: int, generator: torch.Generator) -> Tensor | None:
    size, drive = getattr(field, "input_size", None), getattr(field, "drive", None)
    if drive is None or not isinstance(size, int):
        return None
    with torch.no_grad():
        x = torch.randn(samples, 1, size, generator=generator, dtype=torch.float64)
        current: Tensor = drive(x)
        return current[:, 0]


class _Trial:
    """A bound field at some states; each method tries the promises of one structure."""

    def __init__(self, field: Any, state: Tensor, u: Any, t: float, generator: torch.Generator) -> None:
        self.field, self.state, self.u, self.t = field, state, u, t
        # States that were given may have been drawn from the same seed: these must be others.
        apart = torch.Generator().manual_seed(generator.initial_seed() + APART)
        self.other = torch.randn(state.shape, generator=apart, dtype=state.dtype).to(state.device)
        self.declared = structure(field)

    def claims(self) -> Iterator[Claim]:
        """All that can be tried."""
        if "differential" in self.declared:
            self.slope = self.right_hand_side(self.state)
            half = self.right_hand_side(self.state[:1], self.first(self.u))
            yield _compare("differential", "a sample alone has the slope it has among others", self.slope[:1], half)
            scale = getattr(self.field, "time_scale", None)
            factor = None if scale is None else scale()
            if factor is not None:
                pace = torch.as_tensor(factor, dtype=torch.float64)
                yield _compare("differential", "time_scale() is above 0", pace, pace.abs().clamp_min(1e-300))
        for name in STRUCTURES:
            attempt: Callable[[], Iterator[Claim]] | None = getattr(self, f"_{name}", None)
            if name in self.declared and attempt is not None:
                yield from attempt()

    @staticmethod
    def first(u: Any) -> Any:
        """The input of the first state."""
        return u[:1] if isinstance(u, Tensor) else u

    def right_hand_side(self, state: Tensor, u: Any = None) -> Tensor:
        value: Tensor = self.field(self.t, state, self.u if u is None else u)
        if value.shape != state.shape:
            raise InputError(
                f"{describe(self.field)} gives a slope of shape {tuple(value.shape)} at states {tuple(state.shape)}: "
                "return the shape of the state"
            )
        return value

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q and p, and others of each."""
        (q, p), (q2, p2) = self.state.unbind(-2), self.other.unbind(-2)
        return q, p, q2, p2

    @property
    def damping(self) -> Any:
        """The damping, 0 of a field without."""
        found = getattr(self.field, "damping", None)
        rate = None if found is None else found()
        return 0.0 if rate is None else rate

    def _partitioned(self) -> Iterator[Claim]:
        q, p, *_ = self.parts
        velocity, force = (getattr(self.field, name)(self.t, q, p, self.u) for name in ("velocity", "force"))
        yield _compare("partitioned", "forward is (velocity, force)", self.slope, torch.stack((velocity, force), -2))

    def _separable(self) -> Iterator[Claim]:
        q, p, q2, p2 = self.parts
        velocity, force = self.field.velocity, self.field.force
        first, second = velocity(self.t, q, p, self.u), velocity(self.t, q2, p, self.u)
        yield _compare("separable", "the velocity is the same at another q", first, second)
        first, second = force(self.t, q, p, self.u), force(self.t, q, p2, self.u)
        yield _compare("separable", "the force is the same at another p", first, second)

    def _conformal(self) -> Iterator[Claim]:
        q, p, q2, p2 = self.parts
        velocity, force = self.field.velocity, self.field.force
        first, second = velocity(self.t, q, p, self.u), velocity(self.t, q2, p, self.u)
        yield _compare("conformal", "the velocity is the same at another q", first, second)
        first, second = (force(self.t, q, each, self.u) + self.damping * each for each in (p, p2))
        yield _compare("conformal", "force + damping() p is the same at another p", first, second)

    def _newtonian(self) -> Iterator[Claim]:
        q, p, *_ = self.parts
        yield _compare("newtonian", "the velocity is p", self.field.velocity(self.t, q, p, self.u).expand_as(p), p)

    def _semilinear(self) -> Iterator[Claim]:
        for terms in (None, frozenset({"stiffness", "damping"}), frozenset({"damping"}), frozenset({"stiffness"})):
            if terms is not None and "partitioned" not in self.declared:
                continue
            parts = linear_part(self.field, terms).apply(self.state)
            rest = self.field.nonlinear(self.t, self.state, self.u, terms)
            which = "" if terms is None else f" of terms {' and '.join(sorted(terms))}"
            yield _compare(
                "semilinear", f"operator(){which} applied to x, and nonlinear(), are forward", self.slope, parts + rest
            )

    def _quasilinear(self) -> Iterator[Claim]:
        if "semilinear" not in self.declared:
            operator, rest = self.field.frozen(self.t, self.state, self.u)
            yield _compare(
                "quasilinear", "L x + N of frozen() is forward", self.slope, operator.apply(self.state) + rest
            )

    def _linear(self) -> Iterator[Claim]:
        here, there = (self.field.nonlinear(self.t, state, self.u, None) for state in (self.state, self.other))
        yield _compare("linear", "nonlinear() is the same at another state", here, there)

    def _relaxing(self) -> Iterator[Claim]:
        parts, slopes = self.state.unbind(-2), []
        for place, part in enumerate(parts):
            rate, target = self.field.relaxation(place, self.t, parts, self.u)
            slopes.append(rate * (target - part))
        yield _compare("relaxing", "r (m - x) of relaxation() is forward", self.slope, torch.stack(slopes, -2))

    def _hamiltonian(self) -> Iterator[Claim]:
        with torch.enable_grad():
            state = self.state.clone().requires_grad_()
            energy = self.field.energy(state, self.u)
            (gradient,) = torch.autograd.grad(energy.sum(), state)
        along_q, along_p = gradient.unbind(-2)
        expected = torch.stack((along_p, -along_q - self.damping * self.parts[1]), -2)
        yield _compare("hamiltonian", "forward is (dH/dp, -dH/dq - damping() p) of energy()", self.slope, expected)

    def _closed_form(self) -> Iterator[Claim]:
        def after(dt: float, state: Tensor) -> Tensor:
            value: Tensor = self.field.propagate(self.t, dt, state, self.u)
            return value

        value, first = after(1.0, self.state), self.field.propagate(self.t, 1.0, self.state[:1], self.first(self.u))
        yield _compare("closed_form", "propagate() of a sample alone is that among others", value[:1], first)
        if "differential" not in self.declared:
            return
        quotient = (after(INSTANT, self.state) - after(-INSTANT, self.state)) / (2 * INSTANT)
        yield _compare("closed_form", "propagate() begins with the slope of forward", self.slope, quotient, ROUGH)
        whole, halves = after(0.7, self.state), after(0.4, after(0.3, self.state))
        yield _compare("closed_form", "propagate() over 0.7 is that over 0.3 and 0.4", whole, halves)

    def _impulsive(self) -> Iterator[Claim]:
        yield from self._shaped("impulsive", "jump")

    def _stochastic(self) -> Iterator[Claim]:
        yield from self._shaped("stochastic", "diffusion")

    def _shaped(self, name: str, method: str) -> Iterator[Claim]:
        value = getattr(self.field, method)(self.t, self.state, self.u)
        first = getattr(self.field, method)(self.t, self.state[:1], self.first(self.u))
        if value.shape != self.state.shape:
            raise InputError(
                f"{method} gives {tuple(value.shape)} at states {tuple(self.state.shape)}: return their shape"
            )
        yield _compare(name, f"{method}() of a sample alone is that among others", value[:1], first)


def _compare(name: str, promise: str, value: Tensor, expected: Tensor, allowed: float = TOLERANCE) -> Claim:
    value, expected = torch.broadcast_tensors(value, expected)
    error, size = (value - expected).abs(), float(torch.maximum(value.abs(), expected.abs()).max())
    if not torch.isfinite(error).all():
        raise NumericalError(f"{promise}: not finite at some states, so that nothing can be said of them")
    worst = float(error.max()) / max(size, 1e-300)
    place = int(error.flatten(1).amax(1).argmax()) if error.dim() > 1 else 0
    return Claim(name, promise, worst, allowed, place)
