"""Stochastic differential equations dx = f(t, x, u(t)) dt + g(t, x, u(t)) dW with diagonal noise, through torchsde.

Each step is mapped to s in [0, 1], where the drift is dt f and the diffusion sqrt(dt) g, so that samples with different
clocks go through one call. The Brownian motions come with the input (`solvers.methods.brownian.Driven`): they belong to
a solve, not to a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from dataclasses import replace as _replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchsde._core import methods
from torchsde._core.adjoint_sde import AdjointSDE
from torchsde._core.base_sde import ForwardSDE

from solvers.base.clock import Clock
from solvers.base.counted import enter
from solvers.base.solver import Paired, Solver, register
from solvers.base.state import increment, over_state
from solvers.base.values import concrete, non_finite_sample
from solvers.errors import InputError, NonFiniteStateError, StepLimitError, StepUnderflowError
from solvers.methods.brownian import Brownian, Driven, Noise, scrambled
from solvers.protocol import ControlPath, Time, check_slope, describe, structure

#: The shortest step of an adaptive solve, in units of its interval: long against the finest piece of a path.
SHORTEST = 2.0**-20


@dataclass(frozen=True)
class Stochastic(Solver):
    """A method of torchsde for a field that declares `diffusion`, the noise of each entry of the state.

    The noise of a step is sqrt(dt) N(0, 1), with the field's `time_scale()` on dt. The methods of an order above 1/2
    have it where the noise of an entry sees no other entry. W of sample b and channel c is a function of the seed,
    the interval, b and c: substeps refine one path, all methods and gradients see the same, and the first samples of a
    batch do not depend on how many follow. Each call is a realisation of its own unless there is a `noise_seed`.
    Where the span of a sample is zero, its noise has no derivative with respect to it and none is given.

    Attributes:
        order: strong order for diagonal noise.
        stages: drift evaluations a step; of one attempt of an adaptive step, without its halves.
        interpretation: "ito" or "stratonovich".
        noise_seed: chooses the paths; drawn from torch's global generator in each solve when None.
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
        if all(isinstance(path, Driven) for path in paths):
            return paths
        _check_forward(self, clock.spans)
        seed = int(torch.randint(2**63 - 1, ())) if self.noise_seed is None else self.noise_seed
        return [Driven(path, Noise.of(seed, i)) for i, path in enumerate(paths)]

    def step(self, field: Any, t: Time, dt: Time, state: Tensor, control: ControlPath) -> Tensor:
        """One step, or an adaptive interval; see `Solver.step`. Without noise in `control` it draws its own."""
        control = self._driven_alone(control, t, dt)
        equation = Equation(self, field, t, dt, state.shape, control)
        y = equation.flat(state)
        method = scheme(self, equation, motion(self, control, y))
        if not self.adaptive:
            return equation.whole(method.step(*unit_span(y, 1), y, ())[0])
        if not state.numel():
            return state
        watched = Watched(self, method)
        end = watched.run(y, 1)
        enter(field, watched.accepted, watched.attempts - watched.accepted, equation.evaluations)
        return equation.whole(end)

    def _driven_alone(self, control: ControlPath, t: Time, dt: Time) -> Driven:
        driven = self.driven([control], Clock((t,), (dt,)))[0]
        assert isinstance(driven, Driven)
        return driven


def motion(solver: Stochastic, control: Driven, y: Tensor, length: int = 1) -> Brownian:
    """The Brownian motion of an interval of steps of length 1."""
    return Brownian(control.noise, y, length, area=solver.method == "srk")


def scheme(solver: Stochastic, sde: Any, path: Any, method: str | None = None, length: int = 1) -> Any:
    """The method of torchsde, whose steps have length 1, or a quarter of the whole at first."""
    kind = methods.select(method or solver.method, solver.interpretation)
    return kind(
        sde=sde if isinstance(sde, AdjointSDE) else ForwardSDE(sde),
        bm=path,
        dt=length / 4 if solver.adaptive else 1.0,
        adaptive=solver.adaptive,
        rtol=solver.rtol,
        atol=solver.atol,
        dt_min=0.0,
        options={},
    )


class Equation:
    """What torchsde integrates: dy = f(s, y) ds + g(s, y) dW in steps of length 1, the state as `(rows, columns)`."""

    noise_type = "diagonal"

    def __init__(
        self, solver: Stochastic, field: Any, t: Time, dt: Time, shape: torch.Size, control: ControlPath, steps: int = 1
    ) -> None:
        self.sde_type = solver.interpretation
        self.field, self.control, self.shape = field, control, shape
        self.t, self.h, self.evaluations = t, dt if steps == 1 else dt / steps, 0
        scaled = over_state(increment(field, self.h))
        self.drift, self.noise = scaled, _root(scaled)
        # torchsde's srk asks for each of its stages again in every later one.
        self.known: dict[Any, tuple[Tensor, Tensor]] | None = {} if solver.method == "srk" else None

    def flat(self, state: Tensor) -> Tensor:
        """The state as `(rows, columns)`, a row per sample."""
        # Unrecorded, torchsde would differentiate g with respect to a view that is not part of its graph.
        state = state if torch.is_grad_enabled() else state.detach()
        return state.reshape(math.prod(self.shape[:-2]), self.shape[-2] * self.shape[-1])

    def whole(self, y: Tensor) -> Tensor:
        """The state in its own shape."""
        return y.reshape(self.shape)

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """The drift of a unit step."""
        return self._once("f", s, y, lambda at, x, u: self.drift * self._slope(at, x, u))

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """The diffusion of a unit step."""
        return self._once("g", s, y, lambda at, x, u: self.noise * self._diffusion(at, x, u))

    def _slope(self, at: Time, x: Tensor, u: Any) -> Tensor:
        self.evaluations += 1
        return check_slope(self.field, x, self.field(at, x, u))

    def _diffusion(self, at: Time, x: Tensor, u: Any) -> Tensor:
        noise: Tensor = self.field.diffusion(at, x, u)
        if noise.shape != x.shape:
            raise InputError(
                f"the diffusion of {describe(self.field)} turned a state of shape {tuple(x.shape)} into noise of shape "
                f"{tuple(noise.shape)}: return the shape of the state, with zeros in components without noise"
            )
        return noise

    def _once(self, name: str, s: Tensor, y: Tensor, compute: Any) -> Tensor:
        key = (name, float(s), id(y))
        if self.known is not None and key in self.known:
            return self.known[key][1]
        at, x = self.t + key[1] * self.h, self.whole(y)
        value = self.flat(compute(at, x, self.control(at)))
        if self.known is not None:
            if len(self.known) >= 16:
                self.known.pop(next(iter(self.known)))
            self.known[key] = y, value
        return value


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
            raise NonFiniteStateError(f"the state became non-finite under solver {self.solver.name!r}") from None
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
            raise NonFiniteStateError(f"the state became non-finite under solver {name!r}", sample=sample)
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
        equation = Equation(self, field, t, dt, y.shape, control)
        flat_y, flat_z = equation.flat(y), equation.flat(z)
        method = scheme(self, equation, motion(self, control, flat_y))
        start, end = unit_span(flat_y, 1)
        slopes = equation.f(start, flat_z), equation.g(start, flat_z)
        new, (_, _, new_z) = method.step(start, end, flat_y, (*slopes, flat_z))
        pair = equation.whole(new), _where_still(dt, z, equation.whole(new_z))
        return pair if isinstance(state, tuple) else pair[0]

    def unstep(self, field: Any, t: Time, dt: Time, state: Any, control: ControlPath) -> Any:
        """The step of the pair taken back, along the same path; see `Solver.unstep`."""
        if not isinstance(state, tuple) or not isinstance(control, Driven):
            raise InputError(
                f"solver {self.name!r} can only undo a step of its pair of states along its path: pass what open "
                "returned, and the paths of driven"
            )
        equation = Equation(self, field, t, dt, state[0].shape, control)
        y, z = (equation.flat(part) for part in state)
        start, end = unit_span(y, 1)
        w: Tensor = motion(self, control, y)(start, end)
        f, g = equation.f(end, z), equation.g(end, z)
        old_z = equation.flat(_where_still(dt, state[1], equation.whole(2 * y - z - f - g * w)))
        y = y - (f + equation.f(start, old_z)) / 2 - (g + equation.g(start, old_z)) * w / 2
        return equation.whole(y), equation.whole(old_z)


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
_register("srk", 1.5, 4, "srk", "ito")
_register("stochastic_heun", 1.0, 2, "heun", "stratonovich")
_register("stratonovich_milstein", 1.0, 1, "milstein", "stratonovich")
# Proven to be of order 1/2 in general and 1 for additive noise; for diagonal noise 1 is what is measured.
_register("reversible_heun", 1.0, 2, "reversible_heun", "stratonovich")
