"""Numerical integration of driven first- and second-order systems, in batches whose samples have their own clocks.

`available()` lists the solvers, `get(name, **options)` makes one, `solve` steps a field over a sampled input. The
package names no network and can be used without any.
"""

# A module registers its methods when it is imported, and tables, hints and the help of the command line follow that
# order: it is this one.
# isort: off
from solvers.methods import explicit as explicit
from solvers.methods import exponential as exponential
from solvers.methods import relaxing as relaxing
from solvers.methods import closed_form as closed_form
from solvers.methods import imex as imex
from solvers.methods import implicit as implicit
from solvers.adaptive import native_implicit as native_implicit
from solvers.methods import partitioned as partitioned
from solvers.gradients.adjoint import Adjoint
from solvers.gradients.checkpoint import Checkpoint
from solvers.adaptive.shared import Adaptive
from solvers.methods.stochastic import Stochastic
from solvers.methods.reversible import ReversiblePair
from solvers.gradients.reversible import Reversible
from solvers.gradients.truncated import Truncated
from solvers.gradients.feedback import FeedbackAlignment
from solvers.gradients.forward import Forward
# isort: on

from solvers.adaptive.driver import Status
from solvers.adaptive.events import Event, Occurrences
from solvers.adaptive.native import Native
from solvers.base.clock import Clock
from solvers.base.control import CONTROLS, Control, get_control
from solvers.base.counted import Counted
from solvers.base.gradient import GRADIENTS, Backprop, Gradient, get_gradient, gradient_spec
from solvers.base.loop import Loop
from solvers.base.pairing import check, compatible
from solvers.base.registry import Registry
from solvers.base.solver import SOLVERS, Solver, SolverInfo, available, get, register, spec
from solvers.errors import (
    InputError,
    NonFiniteStateError,
    NumericalError,
    PairingError,
    StepLimitError,
    StepUnderflowError,
    UnknownNameError,
)
from solvers.methods.explicit import RungeKutta, runge_kutta
from solvers.methods.exponential import ExponentialRungeKutta
from solvers.methods.imex import ImexEuler, ImexRungeKutta
from solvers.methods.partitioned import Composition
from solvers.numerics.linear import DenseOperator, DiagonalOperator, LinearOperator, OscillatorOperator, SkewOperator
from solvers.numerics.tableau import ButcherTableau, ExponentialTableau, ImexTableau, Splitting
from solvers.protocol import STRUCTURES, Field, Time
from solvers.run.audit import audit
from solvers.run.choice import backend, get_backend, set_backend
from solvers.run.claims import Claim, FieldCheck, check_field
from solvers.run.integrate import Integration, Statistics, integrate
from solvers.run.record import Record
from solvers.run.sampled import Sampled
from solvers.run.solve import Trajectory, solve
from solvers.run.stability import stability
from solvers.run.transition import Transition, slope, transition
from solvers.run.trust import field_checks, set_field_checks

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
    "Claim",
    "Clock",
    "Composition",
    "Control",
    "Counted",
    "DenseOperator",
    "DiagonalOperator",
    "Event",
    "ExponentialRungeKutta",
    "ExponentialTableau",
    "FeedbackAlignment",
    "Field",
    "FieldCheck",
    "Forward",
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
    "Transition",
    "Truncated",
    "UnknownNameError",
    "audit",
    "available",
    "backend",
    "check",
    "check_field",
    "compatible",
    "field_checks",
    "get",
    "get_backend",
    "get_control",
    "get_gradient",
    "gradient_spec",
    "integrate",
    "register",
    "runge_kutta",
    "set_backend",
    "set_field_checks",
    "slope",
    "solve",
    "spec",
    "stability",
    "transition",
]
