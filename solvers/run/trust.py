"""A field of one's own is tried once, before a solver takes what it declares at its word.

A declaration that is not true changes no shape and raises no error: the solver integrates another equation. So the
first time that a field from outside this project is stepped by a method that needs a structure, all that the field
declares is tried on two random states. It costs some milliseconds.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.base.clock import Clock
from solvers.base.solver import Solver
from solvers.base.values import concrete
from solvers.errors import InputError, NumericalError
from solvers.protocol import ControlPath
from solvers.run.claims import check_field

#: Packages whose fields have tests of their own for what they declare.
OWN = ("neuralosc", "solvers")

#: States that a field is tried at.
STATES = 2

_tried: weakref.WeakSet[Any] = weakref.WeakSet()


class _Choice(threading.local):
    on: bool | None = None


_process, _thread = True, _Choice()


def set_field_checks(on: bool) -> None:
    """Whether fields of one's own are tried the first time that a solver relies on what they declare: on by default."""
    global _process
    _process = bool(on)


@contextlib.contextmanager
def field_checks(on: bool) -> Iterator[None]:
    """The same inside a `with` block, in this thread."""
    before, _thread.on = _thread.on, bool(on)
    try:
        yield
    finally:
        _thread.on = before


def trusted(field: Any, solver: Solver, paths: Sequence[ControlPath], clock: Clock, state: Tensor) -> None:
    """Try a field once, if a solver relies on what it declares.

    Raises:
        InputError: a promise of the field is broken; the message names it, with numbers.
    """
    relied = set(solver.needs) - {"differential"}
    if not relied or not len(clock) or type(field).__module__.partition(".")[0] in OWN:
        return
    if not (_process if _thread.on is None else _thread.on) or torch.compiler.is_compiling() or not concrete(state):
        return
    try:
        if field in _tried:
            return
        _tried.add(field)
    except TypeError:
        # What can neither be hashed nor referred to weakly cannot be remembered.
        return
    found = None
    # What cannot be tried is no broken promise: a field that does not run says so when it is stepped.
    with contextlib.suppress(InputError, NumericalError, RuntimeError, TypeError, ValueError, AttributeError):
        found = _tried_on(field, paths, clock, state)
    if found is not None and found.wrong:
        raise InputError(f"{found.verdict} (solvers.set_field_checks(False) leaves this check out)")


def _tried_on(field: Any, paths: Sequence[ControlPath], clock: Clock, state: Tensor) -> Any:
    rows = min(STATES, len(state))
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, *state.shape[1:], generator=generator, dtype=torch.float64).to(state.device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        at = clock.time_at(0, 0)
        given = paths[0](at)
        u = given[:rows].detach() if isinstance(given, Tensor) and given.dim() > 1 else given
        return check_field(field, states, u, float(at))
