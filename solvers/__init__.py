"""Numerical integration of driven first- and second-order systems, in batches whose samples have their own clocks.

`available()` lists the solvers, `get(name, **options)` makes one, `solve` steps a field over a sampled input. The
package names no network and can be used without any.
"""

from solvers import explicit as explicit
from solvers import exponential as exponential
from solvers import imex as imex
from solvers import implicit as implicit
from solvers import native_implicit as native_implicit
from solvers import partitioned as partitioned
from solvers.adaptive import Adaptive
from solvers.adjoint import Adjoint
from solvers.audit import audit
from solvers.checkpoint import Checkpoint
from solvers.clock import Clock
from solvers.compiled import Record, backend, get_backend, set_backend
from solvers.control import CONTROLS, Control, get_control
from solvers.driver import Status
from solvers.errors import (
    InputError,
    NonFiniteStateError,
    NumericalError,
    PairingError,
    StepLimitError,
    StepUnderflowError,
    UnknownNameError,
)
from solvers.events import Event, Occurrences
from solvers.explicit import RungeKutta, runge_kutta
from solvers.exponential import ExponentialRungeKutta
from solvers.gradient import GRADIENTS, Backprop, Gradient, get_gradient, gradient_spec
from solvers.imex import ImexEuler, ImexRungeKutta
from solvers.integrate import Integration, Statistics, integrate
from solvers.linear import DenseOperator, DiagonalOperator, LinearOperator, OscillatorOperator, SkewOperator
from solvers.loop import Loop, Trajectory, solve
from solvers.native import Native
from solvers.pairing import check, compatible
from solvers.partitioned import Composition
from solvers.protocol import STRUCTURES, Field, Time
from solvers.registry import Registry
from solvers.reversible import Reversible, ReversiblePair
from solvers.sampled import Sampled
from solvers.solver import SOLVERS, Solver, SolverInfo, available, get, register, spec
from solvers.statistics import Counted
from solvers.stochastic import Stochastic
from solvers.tableau import ButcherTableau, ExponentialTableau, ImexTableau, Splitting

__all__ = [
    "CONTROLS",
    "GRADIENTS",
    "SOLVERS",
    "STRUCTURES",
    "Adaptive",
    "Adjoint",
    "Backprop",
    "ButcherTableau",
    "Checkpoint",
    "Clock",
    "Composition",
    "Control",
    "Counted",
    "DenseOperator",
    "DiagonalOperator",
    "Event",
    "ExponentialRungeKutta",
    "ExponentialTableau",
    "Field",
    "Gradient",
    "ImexEuler",
    "ImexRungeKutta",
    "ImexTableau",
    "InputError",
    "Integration",
    "LinearOperator",
    "Loop",
    "Native",
    "NonFiniteStateError",
    "NumericalError",
    "Occurrences",
    "OscillatorOperator",
    "PairingError",
    "Record",
    "Registry",
    "Reversible",
    "ReversiblePair",
    "RungeKutta",
    "Sampled",
    "SkewOperator",
    "Solver",
    "SolverInfo",
    "Splitting",
    "Statistics",
    "Status",
    "StepLimitError",
    "StepUnderflowError",
    "Stochastic",
    "Time",
    "Trajectory",
    "UnknownNameError",
    "audit",
    "available",
    "backend",
    "check",
    "compatible",
    "get",
    "get_backend",
    "get_control",
    "get_gradient",
    "gradient_spec",
    "integrate",
    "register",
    "runge_kutta",
    "set_backend",
    "solve",
    "spec",
]
