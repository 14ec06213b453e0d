"""Contenders: the ways to integrate one set of weights that a comparison sets side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import neuralosc
import solvers
from solvers.errors import InputError

DEFAULT_SOLVERS = ("imex_euler", "stormer_verlet", "rk4", "dopri5")

# Roles of a contender.
TRAINED, PUBLISHED = "trained with", "published step"

# The step sizes and tolerances of the figures.
SUBSTEPS = (1, 2, 4, 8, 16)
TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)

# Steps that an adaptive solver may take between two samples, for an estimate.
ADAPTIVE_STEPS = 8


@dataclass(frozen=True)
class Contender:
    """One way to integrate the weights: a solver by name with its options, and substeps per sample.

    Attributes:
        solver: its registered name.
        substeps: equal steps between two samples, for solvers with fixed steps.
        options: its options.
        role: `TRAINED`, `PUBLISHED` or nothing.
    """

    solver: str
    substeps: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    role: str = ""

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its own steps."""
        return solvers.get(self.solver).adaptive

    @property
    def steps(self) -> str:
        """Its substeps, or its tolerance."""
        if self.adaptive:
            return f"rtol {solvers.get(self.solver, **self.options).options['rtol']:g}"
        return str(self.substeps)

    @property
    def label(self) -> str:
        """The solver with what was chosen for it."""
        if self.adaptive:
            return f"{self.solver} ({self.steps})"
        return f"{self.solver} ({self.substeps} substeps)" if self.substeps > 1 else self.solver

    @property
    def effort(self) -> int:
        """Roughly how many evaluations it spends between two samples, to tell how far a comparison has come."""
        solver = solvers.get(self.solver)
        return solver.stages * (ADAPTIVE_STEPS if solver.adaptive else self.substeps)

    def apply(self, rnn: neuralosc.ContinuousRNN) -> neuralosc.ContinuousRNN:
        """The same weights (shared) under this solver; raises `PairingError` where it cannot work."""
        return self.apply_to(rnn)

    def apply_to(self, model: Any) -> Any:
        """The same of a network or of a model with a read-out."""
        # The gradient is not used here, but one that only fits the run's own solver would be refused.
        return model.with_solver(solvers.get(self.solver, **self.options), substeps=self.substeps, gradient="backprop")


# What others are compared with where no reference was confirmed, of which then nothing is claimed.
FALLBACK = Contender("dopri8", options={"rtol": 1e-10, "atol": 1e-12})


def contenders(
    trained: Contender,
    published: str | None,
    names: Sequence[str] = (),
    substeps: Sequence[int] = (),
    options: Mapping[str, Any] | None = None,
) -> list[Contender]:
    """The contenders of the table: the solvers named (or the run's own and the default ones) at each of `substeps`.

    Args:
        trained: the solver the run was trained with.
        published: name of the network's published step, if it has one.
        names: the solvers to compare; none for the default list.
        substeps: substeps per sample of the solvers with fixed steps; none for the run's own.
        options: options for every solver that takes them.

    Raises:
        UnknownNameError: an unknown solver.
        InputError: substeps below 1, an option that none of the solvers takes, or a value it cannot have.
    """
    options = options or {}
    standard = [trained.solver, *([published] if published else []), *DEFAULT_SOLVERS]
    candidates = [solvers.get(name) for name in names or standard]
    chosen = {solver.name: solver for solver in candidates}
    if any(count < 1 for count in substeps):
        raise InputError(f"substeps is {min(substeps)}: expected whole numbers of at least 1")
    for key in options:
        if not any(key in solver.option_names() for solver in candidates):
            raise InputError(f"none of the solvers {', '.join(chosen)} takes the option {key!r}: leave it out")
    result = []
    for name, solver in chosen.items():
        as_trained = trained.solver == name
        accepted = {key: value for key, value in options.items() if key in solver.option_names()}
        merged = {**(trained.options if as_trained else {}), **accepted}
        solver.with_options(**merged)
        for count in (1,) if solver.adaptive else substeps or (trained.substeps,):
            unchanged = merged == trained.options and (solver.adaptive or count == trained.substeps)
            role = TRAINED if as_trained and unchanged else PUBLISHED if name == published and count == 1 else ""
            result.append(Contender(name, count, merged, role))
    return result


def sweep_of(table: Sequence[Contender]) -> list[Contender]:
    """Every solver of the table at the step sizes and tolerances of the figures."""
    result = []
    for contender in {c.solver: replace(c, role="") for c in table}.values():
        if contender.adaptive:
            result += [replace(contender, options={**contender.options, "rtol": t, "atol": t}) for t in TOLERANCES]
        else:
            result += [replace(contender, substeps=count) for count in SUBSTEPS]
    return result
