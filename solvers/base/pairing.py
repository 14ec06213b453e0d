"""The one place that says which field, solver and gradient can work together, before the first step."""

from __future__ import annotations

from typing import Any

from solvers.base.control import CONTROLS, Control
from solvers.base.gradient import GRADIENTS, Gradient
from solvers.base.solver import SOLVERS, Solver
from solvers.base.values import exporting
from solvers.errors import PairingError, listed
from solvers.protocol import STRUCTURES, describe, structure


def lacking(field: Any, solver: Solver) -> tuple[str, ...]:
    """The structures that `solver` needs and `field` does not declare.

    All that a field may declare is of a right-hand side, but for a closed form: without one nothing else is missed.
    """
    declared = structure(field)
    if "differential" not in declared and "closed_form" not in solver.needs:
        return ("differential",)
    return tuple(need for need in solver.needs if need not in declared)


def compatible(field: Any) -> list[str]:
    """Names of the registered solvers that work with `field`."""
    return [name for name in SOLVERS if not lacking(field, SOLVERS[name])]


def _varied(names: list[str]) -> list[str]:
    """The names, first of each family first, so that a list cut short still shows every kind."""
    place: dict[str, int] = {}
    seen: dict[str, int] = {}
    for name in names:
        family = SOLVERS[name].family
        place[name] = seen.get(family, 0)
        seen[family] = place[name] + 1
    return sorted(names, key=place.__getitem__)


def remark(field: Any, solver: Solver) -> str:
    """What a user should know of a pairing that works; empty if nothing."""
    declared = structure(field)
    if solver.symplectic and solver.split and "hamiltonian" in declared and "conformal" not in declared:
        return (
            f"the energy of {describe(field)} is not declared separable, so that the steps of {solver.name!r} are not "
            "symplectic: 'gauss_legendre4' or 'implicit_midpoint' are"
        )
    return ""


def check(field: Any, solver: Solver, gradient: Gradient | None = None, control: Control | None = None) -> None:
    """Refuse a pairing that cannot work.

    Raises:
        PairingError: which structure is missing and which solvers would do; an adaptive solver while exporting; or a
            control that jumps, for a field driven by its derivative.
    """
    absent = lacking(field, solver)
    if absent:
        needs = " and ".join(f"a {name} field ({STRUCTURES.get(name, name)})" for name in absent)
        raise PairingError(
            f"solver {solver.name!r} needs {needs}, which {describe(field)} does not declare: "
            f"use one of {listed(_varied(compatible(field)))}"
        )
    if control is not None and control.derivatives is None and "controlled" in structure(field):
        able = [name for name in CONTROLS if CONTROLS[name].derivatives is not None]
        raise PairingError(
            f"{describe(field)} is driven by the derivative of its input in time, which control {control.name!r} does "
            f"not have: use one of {listed(able)}"
        )
    if exporting():
        _check_program(solver)
    if gradient is not None:
        if "impulsive" in structure(field) and not gradient.jumps:
            able = [name for name in GRADIENTS if GRADIENTS[name].jumps]
            raise PairingError(
                f"gradient {gradient.name!r} cannot go back through the jumps of {describe(field)} at its samples: "
                f"use one of {listed(able)}"
            )
        gradient.check(field, solver)


def check_steps(field: Any, substeps: int, max_dt: float | None) -> None:
    """Refuse to cut an interval where the map of a field is no flow: twice over half of it is another map.

    Raises:
        PairingError: more than one step in an interval, or a bound on the step.
    """
    if "differential" in structure(field) or (substeps == 1 and max_dt is None):
        return
    given, leave = (f"substeps is {substeps}", "substeps at 1") if substeps > 1 else (f"max_dt is {max_dt!r}", "it out")
    raise PairingError(
        f"{given}, and two steps of {describe(field)} are another map than one over both, since it is a closed form "
        f"and no solution of a differential equation: leave {leave}"
    )


def _check_program(solver: Solver) -> None:
    """Refuse what an exported program, which does the same for all values, cannot do."""
    if solver.adaptive:
        raise PairingError(
            f"solver {solver.name!r} chooses its steps by the values it meets, and an exported program does the same "
            "for all values: use a solver with fixed steps, such as 'rk4'"
        )
    if solver.stochastic:
        raise PairingError(
            f"solver {solver.name!r} draws noise anew in each solve, and an exported program does the same in all: "
            "use a solver without noise, such as 'euler'"
        )
