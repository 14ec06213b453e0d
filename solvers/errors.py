"""Every way a solve can fail, and the one place where a failure becomes a message.

Two families: `InputError` for what was asked (wrong before the first step, nothing is lost) and `NumericalError` for
what happened on the way (a status with the sample, step and time where it happened).
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Bad input: one line that says what was given, what was expected and what to do."""


class UnknownNameError(InputError):
    """A name that no registry knows; the message lists the nearest names."""


class PairingError(InputError):
    """A field, solver, gradient or control that cannot work together."""


class ChangedTensorError(InputError, RuntimeError):
    """A tensor that was changed in place between forward and backward pass; a RuntimeError, as that of autograd is."""


class NumericalError(RuntimeError):
    """A solve that failed on the way.

    Attributes:
        sample: index in the batch, or None when unknown.
        step: index of the interval (the sample of the input sequence) in which it happened, or None.
        time: time at the start of that interval, in the units of dt, or None.
    """

    advice = "use a smaller dt or more substeps, or an implicit or adaptive solver"

    def __init__(
        self, what: str, *, sample: int | None = None, step: int | None = None, time: float | None = None
    ) -> None:
        self.what, self.sample, self.step, self.time = what, sample, step, time
        super().__init__(what)

    def __reduce__(self) -> Any:
        """As a copy and another process make it anew, whatever its class was made with."""
        return _restored, (type(self), self.args), self.__dict__

    def at(self, *, step: int, time: float | None) -> NumericalError:
        """The same failure, now knowing in which interval it happened."""
        if self.step is None:
            self.step, self.time = step, time
        return self

    def __str__(self) -> str:
        where = [
            f"sample {self.sample}" if self.sample is not None else "",
            f"step {self.step}" if self.step is not None else "",
            f"time {self.time:.6g}" if self.time is not None else "",
        ]
        place = ", ".join(part for part in where if part)
        return f"{self.what}{f' at {place}' if place else ''}: {self.advice}"


class NonFiniteStateError(NumericalError):
    """A state that became NaN or infinite."""

    def adaptively(self) -> NonFiniteStateError:
        """The same under a solver that has chosen its steps: shorter ones are no help then."""
        self.__dict__.setdefault(
            "advice", "the solution may leave every bound here, or the field be undefined: end before"
        )
        return self


class StepLimitError(NumericalError):
    """An adaptive solver that used up its steps inside one interval."""

    advice = "raise max_steps, loosen rtol and atol, or use an implicit solver if the field is stiff"


class StepUnderflowError(NumericalError):
    """An adaptive solver whose step shrank to nothing."""

    advice = "loosen rtol and atol, use float64, or use an implicit solver if the field is stiff"


class ConvergenceError(NumericalError):
    """An implicit stage, or the linear system for its gradient, that an iteration did not solve.

    Attributes:
        samples: every sample it did not solve; `sample` is the first of them.
        residual: the largest entry by which the equations of that one are missed, or None when unknown.
        iterations: how many were made, or None.
    """

    advice = "use a smaller dt or more substeps, raise max_iterations, or choose linear_solver 'newton'"

    def __init__(
        self, what: str, *, samples: tuple[int, ...], residual: float | None = None, iterations: int | None = None
    ) -> None:
        super().__init__(what, sample=samples[0])
        self.samples, self.residual, self.iterations = samples, residual, iterations


def _restored(kind: type[NumericalError], args: tuple[Any, ...]) -> NumericalError:
    """An error without what it says of the place, which follows."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


def unknown(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for a `name` that is not among the `known` ones of its `kind`, nearest names first."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}: {hint}known: {listed(names)}")


def listed(names: Iterable[str], width: int = 280) -> str:
    """Names as part of a one-line message, cut where they would make it unreadable."""
    return textwrap.shorten(", ".join(names) or "none", width, placeholder=" ...")
