"""Numerical integration of driven first- and second-order systems, in batches whose samples have their own clocks.

`available()` lists the solvers, `get(name, **options)` makes one, `solve` steps a field over a sampled input. The
package names no network and can be used without any.
"""

from solvers import explicit as explicit
from solvers import imex as imex
from solvers import partitioned as partitioned
from solvers.adaptive import Adaptive
from solvers.clock import Clock
from solvers.control import CONTROLS, Control, get_control
from solvers.errors import (
    InputError,
    NonFiniteStateError,
    NumericalError,
    PairingError,
    StepLimitError,
    StepUnderflowError,
    UnknownNameError,
)
from solvers.explicit import RungeKutta, runge_kutta
from solvers.gradient import GRADIENTS, Adjoint, Backprop, Gradient, get_gradient
from solvers.imex import ImexEuler
from solvers.linear import DenseOperator, LinearOperator, OscillatorOperator
from solvers.loop import Loop, Trajectory, solve
from solvers.pairing import check, compatible
from solvers.partitioned import SemiImplicitEuler, StormerVerlet
from solvers.protocol import STRUCTURES, Field, Time
from solvers.registry import Registry
from solvers.solver import SOLVERS, Solver, SolverInfo, available, get, register, spec
from solvers.statistics import Counted
from solvers.tableau import ButcherTableau

__all__ = [
    "CONTROLS",
    "GRADIENTS",
    "SOLVERS",
    "STRUCTURES",
    "Adaptive",
    "Adjoint",
    "Backprop",
    "ButcherTableau",
    "Clock",
    "Control",
    "Counted",
    "DenseOperator",
    "Field",
    "Gradient",
    "ImexEuler",
    "InputError",
    "LinearOperator",
    "Loop",
    "NonFiniteStateError",
    "NumericalError",
    "OscillatorOperator",
    "PairingError",
    "Registry",
    "RungeKutta",
    "SemiImplicitEuler",
    "Solver",
    "SolverInfo",
    "StepLimitError",
    "StepUnderflowError",
    "StormerVerlet",
    "Time",
    "Trajectory",
    "UnknownNameError",
    "available",
    "check",
    "compatible",
    "get",
    "get_control",
    "get_gradient",
    "register",
    "runge_kutta",
    "solve",
    "spec",
]
