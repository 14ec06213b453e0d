"""Gradients: how a loss is differentiated through the steps. Each is a value that runs the loop its own way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from solvers.base.loop import Loop
from solvers.base.registry import Registry
from solvers.base.segments import Cut
from solvers.base.solver import Solver
from solvers.errors import InputError


@dataclass(frozen=True)
class Gradient:
    """How the states of a loop are computed so that a loss on them can be differentiated."""

    name: str

    #: Whether it is the derivative of the states, or comes as close to it as the solves are accurate; otherwise it is
    #: another direction, and says itself which.
    exact: ClassVar[bool] = True
    #: Whether it gives the gradient of what differs from interval to interval too: the input and the times.
    inputs: ClassVar[bool] = True
    #: Whether the states may jump between intervals.
    jumps: ClassVar[bool] = True
    #: Whether kernels may run the loop, in the segments of `cut`; a class with a `run` of its own says it anew.
    compilable: ClassVar[bool] = False
    #: Whether a segment's start is rebuilt from its end by the solver's `unstep`, and measured where it is stored.
    undoes: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "run" in vars(cls) and "compilable" not in vars(cls):
            cls.compilable = False

    def run(self, loop: Loop, state: Tensor) -> list[Any]:
        """The carried states after every interval of the loop, from `state`."""
        raise InputError(f"gradient {self.name!r} defines no run: subclass Gradient and implement it")

    def cut(self, loop: Loop, carried: Any, fitting: int) -> Cut | None:
        """The segments in which kernels run a loop; None where all that the backward pass needs is kept.

        Args:
            loop: of one start state.
            carried: that state, as the solver carries it.
            fitting: steps for which there is memory at a time.
        """
        return None

    def measure(self, loop: Loop, rebuilt: tuple[Tensor, ...], stored: tuple[Tensor, ...], step: int) -> None:
        """Compare a state that was rebuilt with the one stored at the same step; for a gradient that `undoes`."""

    def check(self, field: Any, solver: Solver) -> None:
        """Raise a PairingError if this gradient cannot be had for that field under that solver."""


@dataclass(frozen=True)
class Backprop(Gradient):
    """The exact gradient of the discrete steps: every intermediate result is stored."""

    compilable: ClassVar[bool] = True

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
