"""Stochastic differential equations dx = f(t, x, u(t)) dt + g(t, x, u(t)) dW with diagonal noise.

Each step is mapped to s in [0, 1], where the drift is dt f and the diffusion sqrt(dt) g, so that samples with different
clocks go through one call. The Brownian motions come with the input (`solvers.methods.brownian.Driven`): they belong to
a solve, not to a step. Torchsde chooses the steps of an adaptive solve, and solves the adjoint equation.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as _replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchsde._core import methods
from torchsde._core.adjoint_sde import AdjointSDE
from torchsde._core.base_sde import ForwardSDE
from torchsde._core.methods.tableaus import srid2

from solvers.base.clock import Clock
from solvers.base.control import Paths
from solvers.base.counted import enter
from solvers.base.solver import Paired, Solver, register
from solvers.base.state import increment, over_state
from solvers.base.values import concrete, non_finite_sample
from solvers.errors import InputError, NonFiniteStateError, StepLimitError, StepUnderflowError
from solvers.methods.brownian import Brownian, Drawn, Driven, driven, rows_of
from solvers.methods.increments import scrambled
from solvers.protocol import ControlPath, Time, check_slope, describe, structure

#: The shortest step of an adaptive solve, in units of its interval: long against the finest piece of a path.
SHORTEST = 2.0**-20


@dataclass(frozen=True)
class Stochastic(Solver):
    """A method for a field that declares `diffusion`, the noise of each entry of the state.

    The noise of a step is sqrt(dt) N(0, 1), with the field's `time_scale()` on dt. The methods of an order above 1/2
    have it where the noise of an entry sees no other entry. W of sample b and channel c is a function of the seed,
    the interval, b and c: substeps refine one path, all methods and gradients see the same, and the first samples of a
    batch do not depend on how many follow. Other times are other intervals: one more output time changes the path from
    the interval on that it divides. Each call is a realisation of its own unless there is a `noise_seed`. Where the
    span of a sample is zero, its noise has no derivative with respect to it and none is given.

    Attributes:
        order: strong order for diagonal noise.
        stages: drift evaluations a step; of one attempt of an adaptive step, without its halves.
        interpretation: "ito" or "stratonovich".
        noise_seed: chooses the paths of the intervals that are given, not of time itself; drawn from torch's global
            generator in each solve when None.
        adaptive: take as many steps in an interval as the tolerances ask for, from two half steps against a whole one,
            as a root mean square over the batch; for methods of order 1 and above.
        rtol: relative tolerance of an adaptive step.
        atol: absolute tolerance of an adaptive step.
        max_steps: attempted steps in one interval before the solver gives up.
        book: a list [accepted, rejected] that adaptive steps are counted in, or None.

    Source: Li, Wong, Chen, Duvenaud, Scalable Gradients for Stochastic Differential Equations, AISTATS 2020; Kloeden &
    Platen, Numerical Solution of Stochastic Differential Equations, 1992; Roessler, SIAM J. Numer. Anal. 48 (2010).
    """

    method: str = ""
    interpretation: str = "ito"
    noise_seed: int | None = field(default=None, metadata={"option": True})
    adaptive: bool = field(default=False, metadata={"option": True})  # type: ignore[misc]
    rtol: float = field(default=1e-3, metadata={"option": True})
    atol: float = field(default=1e-4, metadata={"option": True})
    max_steps: int = field(default=10_000, metadata={"option": True})
    book: list[int] | None = field(default=None, compare=False, repr=False)

    family: ClassVar[str] = "stochastic"
    stochastic: ClassVar[bool] = True
    alike: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.noise_seed is not None and (isinstance(self.noise_seed, bool) or not isinstance(self.noise_seed, int)):
            raise InputError(f"noise_seed of solver {self.name!r} is {self.noise_seed!r}, expected an integer or None")
        if not isinstance(self.adaptive, bool):
            raise InputError(f"adaptive of solver {self.name!r} is {self.adaptive!r}, expected True or False")
        for name in ("rtol", "atol", "max_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"{name} of solver {self.name!r} is {value!r}, expected a positive number")
        if self.adaptive and self.order < 1:
            # Choosing steps by what the path does biases a method that does not see the path inside a step.
            raise InputError(
                f"solver {self.name!r} has strong order {self.order:g} and may converge to something else under "
                "adaptive steps: use 'milstein', 'srk' or 'stochastic_heun'"
            )

    def branch(self, index: int) -> Stochastic:
        """See `Solver.branch`."""
        return (
            self
            if self.noise_seed is None or not index
            else _replace(self, noise_seed=scrambled(scrambled(self.noise_seed) + index) >> 1)
        )

    def driven(self, paths: Sequence[ControlPath], clock: Clock) -> Sequence[ControlPath]:
        """The paths with the noise of one solve; see `Solver.driven`.

        Raises:
            InputError: a span is negative.
        """
        if (isinstance(paths, Paths) and paths.kind is Driven) or all(isinstance(p, Driven | Drawn) for p in paths):
            return paths
        _check_forward(self, clock.spans)
        seed = int(torch.randint(2**63 - 1, ())) if self.noise_seed is None else self.noise_seed
        return driven(paths, seed)

    @property
    def area(self) -> bool:
        """Whether a step asks for the integral of its path, too."""
        return self.method == "srk"

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step, or an adaptive interval; see `Solver.step`. Without noise in `control` it draws its own."""
        control = self._driven_alone(control, t, dt)
        equation = Equation(self, field, t, dt, state.shape, control)
        if not self.adaptive:
            return STEPS[self.method, self.interpretation](equation, state, *control.numbers(state, self.area))
        if not state.numel():
            return state
        assert isinstance(control, Driven)
        y = rows_of(state)
        watched = Watched(self, scheme(self, equation, motion(self, control, y)))
        end = watched.run(y, 1)
        enter(field, watched.accepted, watched.attempts - watched.accepted, equation.evaluations)
        return end.reshape(state.shape)

    def _driven_alone(self, control: ControlPath, t: Time, dt: Time) -> Driven | Drawn:
        alone = self.driven([control], Clock((t,), (dt,)))[0]
        assert isinstance(alone, Driven | Drawn)
        return alone


def motion(solver: Stochastic, control: Driven, y: Tensor, length: int = 1) -> Brownian:
    """The Brownian motion of an interval of steps of length 1."""
    return Brownian(control.noise, y, length, area=solver.area)


def scheme(solver: Stochastic, sde: Any, path: Brownian, method: str | None = None, length: int = 1) -> Any:
    """What goes along a path by torchsde, in steps of length 1 or, adaptively, of a quarter of the whole at first."""
    kind = methods.select(method or solver.method, solver.interpretation)
    made = kind(
        sde=sde if isinstance(sde, AdjointSDE) else ForwardSDE(sde),
        bm=path,
        dt=length / 4 if solver.adaptive else 1.0,
        adaptive=solver.adaptive,
        rtol=solver.rtol,
        atol=solver.atol,
        dt_min=0.0,
        options={},
    )
    if isinstance(sde, Equation):
        # Torchsde chooses the steps; they are those of this module.
        made.step = functools.partial(_along, solver, sde, path)
    return made


class Equation:
    """dy = f(s, y) ds + g(s, y) dW in steps of length 1; for torchsde the state is `(rows, columns)`."""

    noise_type = "diagonal"

    def __init__(
        self, solver: Stochastic, field: Any, t: Time, dt: Time, shape: torch.Size, control: ControlPath, steps: int = 1
    ) -> None:
        self.sde_type = solver.interpretation
        self.field, self.control, self.shape = field, control, shape
        self.t, self.h, self.evaluations = t, dt if steps == 1 else dt / steps, 0
        scaled = over_state(increment(field, self.h))
        self.scaled, self.root = scaled, _root(scaled)

    def drift(self, s: float, x: Tensor) -> Tensor:
        """The drift of a unit step, at a state in its own shape."""
        self.evaluations += 1
        at = self.t + s * self.h
        return self.scaled * check_slope(self.field, x, self.field(at, x, self.control(at)))

    def noise(self, s: float, x: Tensor) -> Tensor:
        """The diffusion of a unit step, likewise."""
        at = self.t + s * self.h
        noise: Tensor = self.field.diffusion(at, x, self.control(at))
        if noise.shape != x.shape:
            raise InputError(
                f"the diffusion of {describe(self.field)} turned a state of shape {tuple(x.shape)} into noise of shape "
                f"{tuple(noise.shape)}: return the shape of the state, with zeros in components without noise"
            )
        return self.root * noise

    def part(self, s: float, length: float) -> Equation:
        """The same in steps of some length, the first of which starts at s."""
        other = copy.copy(self)
        other.t, other.h, other.scaled = self.t + s * self.h, length * self.h, length * self.scaled
        other.root, other.evaluations = length**0.5 * self.root, 0
        return other

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """The drift, for torchsde."""
        return self.drift(float(s), y.reshape(self.shape)).reshape(y.shape)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """The diffusion, for torchsde."""
        return self.noise(float(s), y.reshape(self.shape)).reshape(y.shape)


def _along(
    solver: Stochastic, equation: Equation, path: Brownian, t0: Tensor, t1: Tensor, y: Tensor, extra: Any
) -> tuple[Tensor, Any]:
    """A step from t0 to t1, as torchsde asks for one."""
    start, length = float(t0), float(t1 - t0)
    w, u = path(t0, t1, return_U=True) if solver.area else (path(t0, t1), None)
    numbers = (w / length**0.5).view(equation.shape), None if u is None else (u / length**1.5).view(equation.shape)
    part = equation.part(start, length)
    end = STEPS[solver.method, solver.interpretation](part, y.reshape(equation.shape), *numbers)
    equation.evaluations += part.evaluations
    return end.reshape(y.shape), extra


# Steps of length 1 from y, where W goes as far as w and has the integral u.


def _euler(equation: Equation, y: Tensor, w: Tensor, u: Tensor | None) -> Tensor:
    return y + equation.drift(0.0, y) + equation.noise(0.0, y) * w


def _milstein(equation: Equation, y: Tensor, w: Tensor, u: Tensor | None) -> Tensor:
    f, (g, slope) = equation.drift(0.0, y), _noise_and_slope(equation, y)
    twice = w * w - 1 if equation.sde_type == "ito" else w * w
    return y + f + g * w + slope * twice / 2


def _noise_and_slope(equation: Equation, y: Tensor) -> tuple[Tensor, Tensor]:
    """g, and g times its derivative by the entry of the state that it is the noise of, of noise that sees no other."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        # Inside a function transform, of which recording for the compiled loop is one, there is no graph to walk.
        made: Any = torch.func.vjp(functools.partial(equation.noise, 0.0), y)
        return made[0], made[1](made[0])[0]
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view of its own: y may be part of a graph that is not to be walked.
        x = y.view_as(y) if recorded and y.requires_grad else y.detach().requires_grad_()
        g = equation.noise(0.0, x)
        slope = None
        if g.requires_grad:
            (slope,) = torch.autograd.grad(g, x, g, allow_unused=True, create_graph=recorded, retain_graph=True)
    slope = torch.zeros_like(y) if slope is None else slope
    return (g, slope) if recorded else (g.detach(), slope)


def _heun(equation: Equation, y: Tensor, w: Tensor, u: Tensor | None) -> Tensor:
    f, g = equation.drift(0.0, y), equation.noise(0.0, y)
    there = y + f + g * w
    return y + (f + equation.drift(1.0, there) + (g + equation.noise(1.0, there)) * w) / 2


def _srk(equation: Equation, y: Tensor, w: Tensor, u: Tensor | None) -> Tensor:
    """Roessler's method for diagonal noise, of strong order 3/2."""
    assert u is not None
    multiples = (w, (w * w - 1) / 2, u, (w * w * w - 3 * w) / 6)
    weights = zip(srid2.beta1, srid2.beta2, srid2.beta3, srid2.beta4, strict=True)
    drifts: list[Tensor] = []
    noises: list[Tensor] = []
    end = y
    for s, each in enumerate(weights):
        # The drift of the last stage is that of the first, and has no weight.
        if s < 3:
            at = _plus(y, (srid2.A0[s], drifts), (srid2.B0[s], [g * u for g in noises]))
            drifts.append(equation.drift(srid2.C0[s], at))
        at = _plus(y, (srid2.A1[s], drifts), (srid2.B1[s], noises))
        noises.append(equation.noise(srid2.C1[s], at))
        end = _plus(end, ([srid2.alpha[s]], drifts[s:]), (each, [noises[s] * part for part in multiples]))
    return end


def _plus(y: Tensor, *sums: tuple[Sequence[float], Sequence[Tensor]]) -> Tensor:
    for factors, terms in sums:
        for factor, term in zip(factors, terms, strict=False):
            if factor:
                y = y + factor * term
    return y


STEPS: dict[tuple[str, str], Callable[[Equation, Tensor, Tensor, Tensor | None], Tensor]] = {
    ("euler", "ito"): _euler,
    ("milstein", "ito"): _milstein,
    ("milstein", "stratonovich"): _milstein,
    ("heun", "stratonovich"): _heun,
    ("srk", "ito"): _srk,
}


class Watched:
    """An adaptive solve under watch: counts its steps, and turns each way it can fail into an error that says where."""

    def __init__(self, solver: Stochastic, scheme: Any) -> None:
        self.solver, self.scheme, self.take = solver, scheme, scheme.step
        self.calls, self.starts, self.span = 0, set[float](), (0.0, 1.0)
        scheme.step = self

    def run(self, y: Tensor, length: int, direction: int = 1) -> Tensor:
        """The end of a solve from 0 to `length`, or from -`length` to 0."""
        times = torch.stack(unit_span(y, length, direction))
        self.span = float(times[0]), float(times[1])
        try:
            end: Tensor = self.scheme.integrate(y, times, ())[0][-1]
        except AssertionError:
            message = f"the state became non-finite under solver {self.solver.name!r}"
            raise NonFiniteStateError(message).adaptively() from None
        if self.solver.book is not None:
            self.solver.book[0] += self.accepted
            self.solver.book[1] += self.attempts - self.accepted
        return end

    @property
    def attempts(self) -> int:
        """Steps that were tried, each as a whole and in two halves."""
        return self.calls // 3

    @property
    def accepted(self) -> int:
        """Those that were kept: the next one starts elsewhere."""
        return len(self.starts)

    def __call__(self, t0: Tensor, t1: Tensor, y: Tensor, extra: Any) -> Any:
        """One of the three steps of an attempt: the whole one, and its halves."""
        name, limit = self.solver.name, self.solver.max_steps
        if self.calls % 3 == 0:
            first, last = self.span
            place, length = ((float(t) - float(since)) / (last - first) for t, since in ((t0, first), (t1, t0)))
            self.starts.add(place)
            if self.calls >= 3 * limit:
                raise StepLimitError(f"solver {name!r} used up max_steps = {limit:g} at {place:.3g} of an interval")
            if length < SHORTEST and float(t1) < last:
                raise StepUnderflowError(f"the step of solver {name!r} shrank to {length:.3g} of an interval")
        self.calls += 1
        end, extra = self.take(t0, t1, y, extra)
        sample = non_finite_sample(end)
        if sample is not None:
            message = f"the state became non-finite under solver {name!r}"
            raise NonFiniteStateError(message, sample=sample).adaptively()
        return end, extra


@dataclass(frozen=True)
class ReversibleHeun(Paired, Stochastic):
    """Heun's method on a pair of states (y, z), whose step can be undone, so that gradient 'reversible' works with it.

        z+ = 2 y - z + f(z) dt + g(z) dW
        y+ = y + (f(z) + f(z+)) dt / 2 + (g(z) + g(z+)) dW / 2

    Both start from the state, y is the state. The pair goes on from interval to interval; the slopes at z are taken
    anew in each step, for the input may jump between two intervals. Gradient 'adjoint' carries y alone.

    Source: Kidger, Foster, Li, Lyons, Efficient and Accurate Gradients for Neural SDEs, NeurIPS 2021.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive:
            raise InputError(f"solver {self.name!r} carries a pair of states in equal steps: use 'stochastic_heun'")

    def undoes(self, field: Any) -> bool:
        """On every field with noise."""
        return "stochastic" in structure(field)

    def step(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """One step of the pair, or of a state alone; see `Solver.step`."""
        y, z = state if isinstance(state, tuple) else (state, state)
        control = self._driven_alone(control, t, dt)
        equation, (w, _) = Equation(self, field, t, dt, y.shape, control), control.numbers(y, area=False)
        f, g = equation.drift(0.0, z), equation.noise(0.0, z)
        there = _where_still(dt, z, 2 * y - z + f + g * w)
        new = y + (f + equation.drift(1.0, there) + (g + equation.noise(1.0, there)) * w) / 2
        return (new, there) if isinstance(state, tuple) else new

    def unstep(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """The step of the pair taken back, along the same path; see `Solver.unstep`."""
        if not isinstance(state, tuple) or not isinstance(control, Driven | Drawn):
            raise InputError(
                f"solver {self.name!r} can only undo a step of its pair of states along its path: pass what open "
                "returned, and the paths of driven"
            )
        y, z = state
        equation, (w, _) = Equation(self, field, t, dt, y.shape, control), control.numbers(y, area=False)
        f, g = equation.drift(1.0, z), equation.noise(1.0, z)
        old = _where_still(dt, z, 2 * y - z - f - g * w)
        return y - (f + equation.drift(0.0, old) + (g + equation.noise(0.0, old)) * w) / 2, old


def _where_still(dt: Time, still: Tensor, moved: Tensor) -> Tensor:
    """The one in samples whose span is zero, where nothing may change, the other elsewhere."""
    if isinstance(dt, Tensor):
        return torch.where(torch.as_tensor(over_state(dt == 0)), still, moved)
    return moved if dt else still


def unit_span(y: Tensor, length: int, direction: int = 1) -> tuple[Tensor, Tensor]:
    """0 and `length`, or -`length` and 0, as torchsde takes them."""
    low = 0.0 if direction > 0 else -float(length)
    return torch.tensor(low, dtype=y.dtype), torch.tensor(low + length, dtype=y.dtype)


def _root(h: Time) -> Time:
    """sqrt(h), with a derivative of zero where h is zero."""
    if not isinstance(h, Tensor):
        return math.sqrt(h)
    moving = h > 0
    root: Tensor = torch.where(moving, h, 1.0).sqrt()
    return torch.where(moving, root, 0.0)


def _check_forward(solver: Solver, spans: Sequence[Time]) -> None:
    """Refuse time that runs backwards."""
    lengths = [span for span in spans if not isinstance(span, Tensor)]
    tensors = [span.detach().reshape(-1) for span in spans if isinstance(span, Tensor) and concrete(span)]
    if tensors and sum(span.numel() for span in tensors):
        lengths.append(float(torch.cat(tensors).min()))
    if lengths and min(lengths) < 0:
        raise InputError(
            f"solver {solver.name!r} was given a span of {min(lengths):g}: noise has no backward time, so use "
            "increasing times, or a solver without noise"
        )


def _register(name: str, order: float, stages: int, method: str, interpretation: str) -> None:
    kind = ReversibleHeun if method == "reversible_heun" else Stochastic
    needs = ("stochastic",)
    register(
        kind(
            name, order, stages, needs, reversible=kind is ReversibleHeun, method=method, interpretation=interpretation
        )
    )


_register("euler_maruyama", 0.5, 1, "euler", "ito")
_register("milstein", 1.0, 1, "milstein", "ito")
_register("srk", 1.5, 3, "srk", "ito")
_register("stochastic_heun", 1.0, 2, "heun", "stratonovich")
_register("stratonovich_milstein", 1.0, 1, "milstein", "stratonovich")
# Proven to be of order 1/2 in general and 1 for additive noise; for diagonal noise 1 is what is measured.
_register("reversible_heun", 1.0, 2, "reversible_heun", "stratonovich")
