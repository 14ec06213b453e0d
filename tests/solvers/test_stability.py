"""A-stable methods stay bounded however stiff the linear decay is, and explicit ones do not."""

import pytest
import torch

import solvers
from tests.solvers.ode_problems import LinearOscillator

F64 = torch.float64
STABLE = [info.name for info in solvers.available() if info.implicit or info.family == "exponential"]


class Stiff(LinearOscillator):
    """The rates -1 and -1e4."""

    stiffness, friction = 1e4, 1e4 + 1


def ends(name, steps=40):
    start = torch.tensor([[[1.0, -2.0], [3.0, 1e3]]], dtype=F64)
    solver = solvers.get(name)
    if solver.family == "imex":
        solver = solver.with_options(implicit_terms="both")
    options = {} if solver.adaptive else {"substeps": steps}
    return solvers.integrate(Stiff(), start, [0.0, float(steps)], method=solver, **options).states[0, -1]


@pytest.mark.parametrize("name", STABLE)
def test_bounded_at_minus_ten_thousand(name):
    assert float(ends(name).abs().max()) <= 1e3


def test_the_measure_sees_what_is_not_stable():
    with pytest.raises(solvers.NumericalError):
        ends("rk4", steps=200)
