"""The stability function of a solver, by its name."""

from __future__ import annotations

from solvers.adaptive.embedded import ImplicitPair
from solvers.base.solver import Solver, get
from solvers.errors import PairingError
from solvers.methods.partitioned import Composition
from solvers.numerics.stability import ImexStability, RationalStability, SplittingStability
from solvers.numerics.tableau import ButcherTableau, ImexTableau, ImplicitTableau


def stability(solver: str | Solver) -> RationalStability | SplittingStability | ImexStability:
    """What a step of a solver makes of a linear equation, as a function of the step, from its coefficients.

    A Runge-Kutta method gives R(z) of x' = lambda x, z = h lambda (`RationalStability`; of a method that chooses its
    steps that of each step); a composition of drifts and kicks the matrix of an oscillation, z = h w
    (`SplittingStability`); an implicit-explicit one R(z, v) of an explicit and an implicit part (`ImexStability`).

    >>> solvers.stability("rk4").limit(math.pi / 2)         # of an oscillation: h w up to 2 sqrt 2
    2.828...

    Args:
        solver: a solver, or its name.

    Raises:
        PairingError: the method has no coefficients of these kinds.
    """
    method = get(solver) if isinstance(solver, str) else solver
    if isinstance(method, Composition) and method.splitting is not None:
        return SplittingStability(method.splitting)
    # What an exponential method does to the linear part is no function of its tableau alone.
    tableau = None if method.family == "exponential" else getattr(method, "tableau", getattr(method, "pair", None))
    if isinstance(tableau, ButcherTableau | ImplicitTableau | ImplicitPair):
        return RationalStability.of(tableau)
    if isinstance(tableau, ImexTableau):
        return ImexStability(tableau)
    raise PairingError(
        f"solver {method.name!r} has no tableau and no splitting from which a stability function follows: expected an "
        "explicit, implicit or implicit-explicit Runge-Kutta method or a composition, such as 'rk4' or 'stormer_verlet'"
    )
