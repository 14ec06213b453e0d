"""Vector fields: the right-hand side of a network, with whatever structure it declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from solvers.base.modules import has_hooks
from solvers.base.precision import unlowered
from solvers.base.series import Mapped, Series
from solvers.base.sharing import refresh, view
from solvers.errors import InputError
from solvers.numerics.linear import DiagonalOperator, LinearOperator, linear_part
from solvers.protocol import Time

if TYPE_CHECKING:
    from typing_extensions import Self


class VectorField(nn.Module):
    """The right-hand side of d state/dt = time_scale * f(t, state, u(t)).

    A field of one's own needs `forward` and, to map its input in one product, `drive`:

        class Leaky(neuralosc.VectorField):
            def __init__(self, input_size, hidden_size):
                super().__init__(input_size, hidden_size)
                self.V, self.W = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

            def drive(self, x):
                return self.V(x)

            def forward(self, t, state, u):
                (h,) = state.unbind(-2)
                return (torch.tanh(self.W(h) + u) - h).unsqueeze(-2)

    Attributes:
        input_size: features of a sample of the input.
        hidden_size: channels of each component of the state.
        components: 1 for a first-order field, 2 for an oscillator (position, velocity).
        timed: whether it looks at t, so that a state alone does not say how it goes on; a step then gives a stream.
        dynamics: names of parameters, or of modules, that are constants of the equation (frequencies, dampings, steps,
            thresholds, also where they are matrices) and no weights. Training can leave them without decay and give
            them a learning rate of their own; nothing else looks at them.
    """

    #: What a bound field has of its own, all else being the field's: its constants, and the operators it made.
    __slots__ = ("_bound", "_operators")

    components: int = 1
    timed: bool = False
    dynamics: tuple[str, ...] = ()
    input_size: int
    hidden_size: int

    def __init__(
        self, input_size: int | None = None, hidden_size: int | None = None, components: int | None = None
    ) -> None:
        super().__init__()
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("components", components)):
            if size is None:
                continue
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}, expected a positive integer")
            setattr(self, name, size)
        for name, size, other in (("input_size", input_size, hidden_size), ("hidden_size", hidden_size, input_size)):
            if size is None and other is not None and getattr(self, name, None) is None:
                raise InputError(f"{name} is None, expected a positive integer")

    @property
    def structure(self) -> frozenset[str]:
        """The structures this field declares, out of `solvers.STRUCTURES`."""
        return frozenset()

    def drive(self, x: Tensor) -> Tensor:
        """The input current u `(*batch, time, channels)` of the inputs x `(*batch, time, input)`; x itself here."""
        return x

    def currents(self, x: Tensor) -> Series:
        """`drive(x)`, sample by sample."""
        return Series(self.drive(x))

    def initial_state(self, x: Tensor) -> Tensor | None:
        """The state `(batch, components, hidden)` to start from, of the first sample `(batch, input)`; None for zeros.

        A layer asks for it where it is given no state. A sequence without samples starts from zeros.
        """
        return None

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The whole right-hand side, the shape of `state`.

        Args:
            t: time, a number or a tensor `(*batch, 1)`.
            state: `(*batch, components, hidden)`.
            u: input current at t, `(*batch, channels)`; of a controlled field its derivative in time.
        """
        raise InputError(f"{type(self).__name__} defines no forward(t, state, u): write its right-hand side there")

    def time_scale(self) -> Time | None:
        """A positive factor on dt, a number or `(hidden,)`, or None for 1. Solvers apply it; `forward` does not."""
        return None

    def prepare(self) -> dict[str, Any]:
        """What depends on parameters alone and is worth computing once for a whole sequence, by name."""
        return {}

    @property
    def constants(self) -> dict[str, Any]:
        """The values of `prepare`: stored ones in a bound field, computed anew in a free one."""
        bound: dict[str, Any] | None = getattr(self, "_bound", None)
        return self._prepared() if bound is None else bound

    @property
    def operators(self) -> dict[Any, LinearOperator] | None:
        """The operators that a bound field made, by their terms; a free field makes them anew (`linear_part`)."""
        return getattr(self, "_operators", None)

    def bind(self, constants: dict[str, Any] | None = None) -> Self:
        """This field, with its `constants` computed once (or given).

        It is the same field in all else: what it writes on itself in a step (a count of its evaluations, say) is
        written on the field. With constants given it stands in for the field, whose attributes it leaves as they are.
        """
        refresh(self)
        return self._bound_with(self._prepared() if constants is None else constants, apart=constants is not None)

    def _prepared(self) -> dict[str, Any]:
        """What `prepare` gives, in the precision of the parameters."""
        parameter = next(self.parameters(), None)
        with unlowered("cpu" if parameter is None else parameter.device.type):
            return self.prepare()

    def _bound_with(self, constants: dict[str, Any], apart: bool) -> Self:
        """A view of this field that is bound; see `bind` and `view`."""
        bound = view(self, apart)
        object.__setattr__(bound, "_bound", constants)
        object.__setattr__(bound, "_operators", {})
        return bound

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which are free fields."""
        return self.__dict__.copy()


class LinearDrive(VectorField):
    """A field whose input current is u = V x + b.

    Attributes:
        V: the input map.
    """

    V: nn.Linear

    def drive(self, x: Tensor) -> Tensor:
        """V x + b."""
        u: Tensor = self.V(x)
        return u

    def currents(self, x: Tensor) -> Series:
        """`drive(x)`, sample by sample; whatever stands in for V or for `drive` is called as it is."""
        plain = type(self).drive is LinearDrive.drive and type(self.V) is nn.Linear and not has_hooks(self.V)
        return Mapped(x, self.V.weight, self.V.bias) if plain else super().currents(x)


class Partitioned(VectorField):
    """A field in position q and velocity p: dq = velocity(t, q, p, u), dp = force(t, q, p, u).

    Attributes:
        separable: velocity sees only p; force sees only q, or is such a force minus `damping()` times p.
    """

    components = 2
    separable: bool = False

    @property
    def structure(self) -> frozenset[str]:
        """Partitioned; conformal, and separable without damping, if declared so; newtonian if the velocity is p too."""
        declared = super().structure | {"partitioned"}
        if not self.separable:
            return declared
        declared |= {"conformal"} if self.damping() is not None else {"conformal", "separable"}
        return declared | ({"newtonian"} if type(self).velocity is Partitioned.velocity else set())

    def velocity(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """dq/dt, `(*batch, hidden)`; p itself here."""
        return p

    def force(self, t: Time, q: Tensor, p: Tensor, u: Tensor) -> Tensor:
        """dp/dt, `(*batch, hidden)`, damping included."""
        raise InputError(f"{type(self).__name__} defines no force(t, q, p, u): write dp/dt there")

    def damping(self) -> float | Tensor | None:
        """G of the linear damping -G p inside the force, a number or `(hidden,)`; None when there is none."""
        return None

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """(velocity, force)."""
        q, p = state.unbind(-2)
        return torch.stack((self.velocity(t, q, p, u), self.force(t, q, p, u)), dim=-2)


class Relaxing(VectorField):
    """A field whose components relax, each towards a target at a rate: x' = r(t, state, u) (m(t, state, u) - x)."""

    @property
    def structure(self) -> frozenset[str]:
        """Adds relaxing, and quasilinear where there is one component."""
        return super().structure | ({"relaxing"} if self.components > 1 else {"relaxing", "quasilinear"})

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Tensor) -> tuple[Time, Tensor]:
        """Rate r and target m of the component at a place, `(*batch, hidden)` each; r may be a number.

        Args:
            place: which component.
            t: time, a number or a tensor `(*batch, 1)`.
            components: the state, taken apart; of those after `place` a solver gives what they have become.
            u: input current at t, `(*batch, channels)`.
        """
        raise InputError(
            f"{type(self).__name__} defines no relaxation(place, t, components, u): return rate and target"
        )

    def frozen(self, t: Time, state: Tensor, u: Tensor) -> tuple[DiagonalOperator, Tensor]:
        """-r and r m of the one component."""
        rate, target = self.relaxation(0, t, state.unbind(-2), u)
        if isinstance(rate, Tensor):
            rate = rate.unsqueeze(-2)
        return DiagonalOperator(-rate), rate * target.unsqueeze(-2)


class ClosedForm(VectorField):
    """A field that says itself where an interval leads: x(t + dt) = propagate(t, dt, x, u), u being the input in it.

    Its map need not solve any differential equation: such a field has no `forward`, and an interval is one step. Where
    it does solve one exactly, the field has that right-hand side as well and declares itself differential, too.
    """

    @property
    def structure(self) -> frozenset[str]:
        """Adds closed_form."""
        return super().structure | {"closed_form"}

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """None, but for a field that is differential, too."""
        raise InputError(
            f"{type(self).__name__} is a closed form alone and has no right-hand side: call propagate(t, dt, state, u)"
        )

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Tensor) -> Tensor:
        """The state after an interval, the shape of `state`.

        Args:
            t: time at its start, a number or a tensor `(*batch, 1)`.
            dt: its length, a number or what broadcasts against `(*batch, hidden)`, times the `time_scale()`.
            state: `(*batch, components, hidden)`.
            u: input current in it, `(*batch, channels)`.
        """
        raise InputError(
            f"{type(self).__name__} defines no propagate(t, dt, state, u): return the state after the interval"
        )


class Semilinear(VectorField):
    """A field f = L x + N(t, x, u) whose linear part is known in closed form.

    `terms` names the parts of L that a solver may choose to treat implicitly; None means all of them.
    """

    @property
    def structure(self) -> frozenset[str]:
        """Adds semilinear."""
        return super().structure | {"semilinear"}

    def operator(self, terms: frozenset[str] | None = None) -> LinearOperator:
        """L, with the chosen terms."""
        raise InputError(
            f"{type(self).__name__} defines no operator(terms): return a solvers.LinearOperator such as "
            "solvers.OscillatorOperator"
        )

    def linear(self, state: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """L x."""
        return linear_part(self, terms).apply(state)

    def nonlinear(self, t: Time, state: Tensor, u: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """N(t, x, u) = f - L x."""
        slope: Tensor = self(t, state, u)
        return slope - self.linear(state, terms)

    def solve(self, dt: Time, state: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """(1 - dt L)^-1 x."""
        return linear_part(self, terms).solve(dt, state)

    def flow(self, dt: Time, state: Tensor, terms: frozenset[str] | None = None) -> Tensor:
        """exp(dt L) x."""
        return linear_part(self, terms).flow(dt, state)
