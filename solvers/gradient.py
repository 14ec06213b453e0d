"""Gradients: how a loss is differentiated through the steps. Each is a value that runs the loop its own way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from solvers.errors import InputError
from solvers.registry import Registry

if TYPE_CHECKING:
    from solvers.loop import Loop
    from solvers.solver import Solver


@dataclass(frozen=True)
class Gradient:
    """How the states of a loop are computed so that a loss on them can be differentiated."""

    name: str

    #: Whether the states may jump between intervals.
    jumps: ClassVar[bool] = True

    def run(self, loop: Loop, state: Tensor) -> list[Any]:
        """The carried states after every interval of the loop, from `state`."""
        raise InputError(f"gradient {self.name!r} defines no run: subclass Gradient and implement it")

    def check(self, field: Any, solver: Solver) -> None:
        """Raise a PairingError if this gradient cannot be had for that field under that solver."""


@dataclass(frozen=True)
class Backprop(Gradient):
    """The exact gradient of the discrete steps: every intermediate result is stored."""

    def run(self, loop: Loop, state: Tensor) -> list[Any]:
        """The plain loop, recorded by autograd."""
        return loop.advance(loop.solver.open(state), 0, len(loop))


def gradient_spec(gradient: Gradient) -> str | dict[str, Any]:
    """What `get_gradient` turns back into this gradient: its name, with the options that differ from the standard."""
    standard = GRADIENTS[gradient.name]
    options = {f.name: getattr(gradient, f.name) for f in dataclasses.fields(gradient) if f.compare}
    changed = {key: value for key, value in options.items() if getattr(standard, key, None) != value}
    return {"name": gradient.name, **changed} if changed else gradient.name


GRADIENTS: Registry[Gradient] = Registry("gradient")
GRADIENTS.add("backprop", Backprop("backprop"))


def get_gradient(gradient: str | dict[str, Any] | Gradient) -> Gradient:
    """The gradient of a name, or of a mapping `{"name": ..., **options}`; a Gradient value is returned as it is."""
    if isinstance(gradient, Gradient):
        return gradient
    if isinstance(gradient, dict):
        stored = dict(gradient)
        base = GRADIENTS[stored.pop("name", "")]
        wrong = sorted(set(stored) - {f.name for f in dataclasses.fields(base)})
        if wrong:
            raise InputError(f"gradient {base.name!r} has no option {', '.join(wrong)}: leave it out")
        return dataclasses.replace(base, **stored)
    if not isinstance(gradient, str):
        raise InputError(
            f"gradient is {gradient!r}, expected a name or a Gradient: choose among {', '.join(GRADIENTS)}"
        )
    return GRADIENTS[gradient]
