"""What a solve costs: the evaluations of its field, and what every sample had of them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.errors import InputError
from solvers.protocol import Time, describe

_interpreters: Any = torch._C._functorch.peek_interpreter_stack


class Tally:
    """What every sample of a solve has cost so far, `(samples,)` integers each.

    Attributes:
        steps, rejections, evaluations: accepted steps, rejected ones, evaluations of the field.
        entered: whether a method has entered anything, as those do that choose their steps.
    """

    def __init__(self, samples: int) -> None:
        self.steps, self.rejections, self.evaluations = (np.zeros(samples, np.int64) for _ in range(3))
        self.entered = False

    def enter(self, steps: Any, rejections: Any, evaluations: Any) -> None:
        """Add what an interval cost, of each sample or of every one."""
        self.steps += steps
        self.rejections += rejections
        self.evaluations += evaluations
        self.entered = True


class Counted:
    """A field that counts evaluations of its right-hand side; everything else is passed on to the field.

    A partitioned method evaluates `force`, an implicit-explicit one `nonlinear` (or `frozen`), that of relaxing fields
    the `relaxation` of all components, that of closed forms `propagate`, all others the field itself: one evaluation
    each. The velocity of an oscillator and the solves with its linear part are not counted.
    """

    def __init__(self, field: Any) -> None:
        self.field, self.evaluations = field, 0
        #: Where methods that choose their steps enter them; None where nobody will ask.
        self.tally: Tally | None = None
        #: A context for the next evaluation of the right-hand side, or None.
        self.watch: AbstractContextManager[Any] | None = None
        #: What implicit methods keep of the field for their backward pass, once for all steps.
        self.snapshot: Any = None
        self._foreign: bool | None = None
        self.__name__ = describe(field)
        # Asked for at every step, which is slow for an attribute that is not there.
        self.time_scale = getattr(field, "time_scale", None)

    def __call__(self, t: Time, state: Tensor, u: Any) -> Tensor:
        """The right-hand side, counted."""
        self.evaluations += 1
        if self.watch is not None:
            watch, self.watch = self.watch, None
            with watch:
                watched: Tensor = self._guarded(self.field, t, state, u)
            return watched
        slope: Tensor = self._guarded(self.field, t, state, u)
        return slope

    def force(self, t: Time, q: Tensor, p: Tensor, u: Any) -> Tensor:
        """The force, counted."""
        self.evaluations += 1
        force: Tensor = self._guarded(self.field.force, t, q, p, u)
        return force

    def nonlinear(self, t: Time, state: Tensor, u: Any, terms: frozenset[str] | None = None) -> Tensor:
        """The part outside the linear operator, counted."""
        self.evaluations += 1
        slope: Tensor = self._guarded(self.field.nonlinear, t, state, u, terms)
        return slope

    def frozen(self, t: Time, state: Tensor, u: Any) -> Any:
        """The linear operator and the rest at a state, counted."""
        self.evaluations += 1
        return self._guarded(self.field.frozen, t, state, u)

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Any) -> tuple[Time, Tensor]:
        """Rate and target of a component; those of the first are counted, for all."""
        self.evaluations += place == 0

        def relax(*tensors: Any) -> tuple[Time, Tensor]:
            rate, target = self.field.relaxation(place, t, tensors[:-1], tensors[-1])
            if target.shape != components[place].shape:
                raise InputError(
                    f"the relaxation of {describe(self.field)} gave a target of shape {tuple(target.shape)} for a "
                    f"component of shape {tuple(components[place].shape)}: return the shape of the component"
                )
            return rate, target

        both: tuple[Time, Tensor] = self._guarded(relax, *components, u)
        return both

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Any) -> Tensor:
        """The closed form, counted."""
        self.evaluations += 1
        after: Tensor = self._guarded(self.field.propagate, t, dt, state, u)
        return after

    def _guarded(self, evaluate: Any, *arguments: Any) -> Any:
        """What an evaluation returns, copied where it lies in memory that the next evaluation may write over.

        Raises:
            InputError: it wrote over its arguments.
        """
        if torch.compiler.is_compiling() or _interpreters() is not None:
            return evaluate(*arguments)
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        try:
            before = [tensor._version for tensor in tensors]
        except RuntimeError:
            # Tensors of inference mode do not count their changes.
            return evaluate(*arguments)
        result = evaluate(*arguments)
        if before != [tensor._version for tensor in tensors]:
            raise InputError(
                f"{describe(self.field)} changed the state, the input or the time in place, which the solver still "
                "needs: compute new tensors, such as x * 2 in place of x.mul_(2)"
            )
        return result.clone() if isinstance(result, Tensor) and self._is_buffer(result) else result

    def _is_buffer(self, result: Tensor) -> bool:
        """Whether a result has been written into since it was made, or lies in memory of numpy as the first one did."""
        if self._foreign is None:
            self._foreign = result.layout is torch.strided and not result.untyped_storage().resizable()
        return self._foreign or result._version > 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)


class Converted(Counted):
    """A counted field between a solve and a field in different types: it gets times, states and inputs in its own.

    Its slopes come back in the type of the state that they belong to.

    Args:
        field: the field.
        dtype: of the states that the field knows, and of its times.
        late: leave times in the precision of the clock, since `dtype` could not tell them apart.
    """

    def __init__(self, field: Any, dtype: torch.dtype, late: bool = False) -> None:
        super().__init__(field)
        self.dtype, self.late = dtype, late

    def __call__(self, t: Time, state: Tensor, u: Any) -> Tensor:
        """The right-hand side, counted."""
        return super().__call__(self.time(t), state.to(self.dtype), self._own(u)).to(state.dtype)

    def velocity(self, t: Time, q: Tensor, p: Tensor, u: Any) -> Tensor:
        """The velocity of an oscillator."""
        velocity: Tensor = self.field.velocity(self.time(t), q, p, self._own(u))
        return velocity.to(q.dtype)

    def force(self, t: Time, q: Tensor, p: Tensor, u: Any) -> Tensor:
        """The force, counted."""
        return super().force(self.time(t), q, p, self._own(u)).to(q.dtype)

    def nonlinear(self, t: Time, state: Tensor, u: Any, terms: frozenset[str] | None = None) -> Tensor:
        """The part outside the linear operator, counted."""
        return super().nonlinear(self.time(t), state, self._own(u), terms).to(state.dtype)

    def frozen(self, t: Time, state: Tensor, u: Any) -> Any:
        """The linear operator and the rest at a state, counted."""
        operator, rest = super().frozen(self.time(t), state, self._own(u))
        return operator, rest.to(state.dtype)

    def relaxation(self, place: int, t: Time, components: tuple[Tensor, ...], u: Any) -> tuple[Time, Tensor]:
        """Rate and target of a component, counted."""
        own = tuple(component.to(self.dtype) for component in components)
        rate, target = super().relaxation(place, self.time(t), own, self._own(u))
        kind = components[place].dtype
        return rate.to(kind) if isinstance(rate, Tensor) else rate, target.to(kind)

    def propagate(self, t: Time, dt: Time, state: Tensor, u: Any) -> Tensor:
        """The closed form, counted."""
        return super().propagate(self.time(t), self._own(dt), state.to(self.dtype), self._own(u)).to(state.dtype)

    def diffusion(self, t: Time, state: Tensor, u: Any) -> Tensor:
        """The noise of a stochastic field."""
        noise: Tensor = self.field.diffusion(self.time(t), state, self._own(u))
        return noise.to(state.dtype)

    def jump(self, t: Time, state: Tensor, u: Any) -> Tensor:
        """The state after a sample."""
        after: Tensor = self.field.jump(self.time(t), state, self._own(u))
        return after.to(state.dtype)

    def time(self, t: Time) -> Time:
        """A time as the field gets it."""
        return t if self.late or not isinstance(t, Tensor) else t.to(self.dtype)

    def _own(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def bare(field: Any) -> Any:
    """The field itself, whatever counts or converts around it."""
    while isinstance(field, Counted):
        field = field.field
    return field


def again(counted: Any, field: Any) -> Counted:
    """What counts, and converts, around another field."""
    if isinstance(counted, Converted):
        return Converted(field, counted.dtype, counted.late)
    return Counted(field)


def enter(field: Any, steps: Any, rejections: Any, evaluations: Any) -> None:
    """Enter what an interval cost in the tally of its solve, if `field` belongs to one that keeps a tally."""
    if isinstance(field, Counted) and field.tally is not None:
        field.tally.enter(steps, rejections, evaluations)
