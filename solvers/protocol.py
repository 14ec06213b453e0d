"""What a solver may ask of a field.

Only `forward` is required, or `propagate` in its stead. The rest is structure: a field declares it in `structure`, and
a solver lists in `needs` what it cannot do without. Nothing is guessed from the presence of a method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from solvers.errors import InputError

#: A time or a step size: a number, or a tensor that broadcasts against one component `(*batch, hidden)` of the state
#: (so `(batch, 1)` for one clock per sample).
Time = float | Tensor

#: A state: one tensor `(*batch, components, hidden)`, or its components taken apart.
State = Tensor | tuple[Tensor, ...]

#: The input current u at a time, as a solver asks for it at its stages.
ControlPath = Callable[[Time], Any]

#: The structures a field can declare, and what each one promises.
STRUCTURES = {
    "partitioned": "velocity(t, q, p, u) and force(t, q, p, u)",
    "separable": "a velocity that sees only p and a force that sees only q",
    "conformal": "a separable field, or one but for linear damping -damping() p in the force",
    "newtonian": "a conformal field whose velocity is p",
    "semilinear": "operator(terms) and nonlinear(t, state, u, terms) of f = L x + N(t, x, u)",
    "quasilinear": "semilinear, or frozen(t, state, u) with the L and N of f = L x + N at that state",
    "linear": "a semilinear field whose N(t, u) does not see the state",
    "relaxing": "relaxation(place, t, components, u), rate r and target m of the component x' = r (m - x) at a place",
    "hamiltonian": "a scalar energy(state, u)",
    "closed_form": "propagate(t, dt, state, u), the state after a time dt in which the input is u",
    "differential": "a right-hand side forward(t, state, u), which propagate, where there is one, solves exactly",
    "impulsive": "jump(t, state, u), the state after a sample from the one before it",
    "controlled": "forward(t, state, du) that is given the derivative du/dt of its input, not the input",
    "stochastic": "diffusion(t, state, u), the noise g of dx = f dt + g dW for each entry of the state",
}


@runtime_checkable
class Field(Protocol):
    """The least a solver works with: the right-hand side of d state/dt = f(t, state, u).

    `state` is `(*batch, components, hidden)`, `u` is `(*batch, channels)`, and the result has the shape of `state`.
    `t` is a number or a tensor `(*batch, 1)`.
    """

    def __call__(self, t: Time, state: Tensor, u: Tensor, /) -> Tensor:
        """The slope of the state."""
        ...


def structure(field: object) -> frozenset[str]:
    """The structures that `field` declares (none for a bare function), and those that they imply.

    Every field is differential but one that declares a closed_form and not that: its map is all that there is.
    """
    declared = frozenset(getattr(field, "structure", ()))
    if "closed_form" not in declared:
        declared |= {"differential"}
    if declared & {"separable", "newtonian"}:
        declared |= {"conformal"}
    return declared | {"quasilinear"} if "semilinear" in declared else declared


def instantaneous(field: object) -> bool:
    """Whether a sample acts on the state in no time: by a jump, or by a map that is no flow and free at 0."""
    declared = structure(field)
    return "impulsive" in declared or "differential" not in declared


def describe(field: object) -> str:
    """The name of a field in messages."""
    return getattr(field, "__name__", None) or type(field).__name__


def check_slope(field: object, state: Tensor, slope: Tensor) -> Tensor:
    """The slope, refused if it does not have the shape of the state.

    Raises:
        InputError: most often u or t was broadcast against the whole state instead of one component.
    """
    if slope.shape != state.shape:
        raise InputError(
            f"{describe(field)} turned a state of shape {tuple(state.shape)} into a slope of shape "
            f"{tuple(slope.shape)}: forward must return the shape of the state (*batch, components, hidden), while u "
            "and t broadcast against one component (*batch, hidden); take components apart with state.unbind(-2)"
        )
    return slope


def check_arguments(what: str, function: Any, names: tuple[str, ...]) -> None:
    """Refuse a function that cannot be called with so many arguments.

    Raises:
        InputError: it cannot.
    """
    try:
        signature = inspect.signature(function.forward if hasattr(function, "forward") else function)
    except (TypeError, ValueError):
        # Nothing is known of what is written in C.
        return
    try:
        signature.bind(*names)
    except TypeError:
        raise InputError(
            f"{what} takes {signature}, expected ({', '.join(names)}): give it these arguments, used or not"
        ) from None


def bind(field: Any) -> Any:
    """The field with everything that depends on its parameters alone computed once, if it offers that."""
    offered = getattr(field, "bind", None)
    return field if offered is None else offered()
