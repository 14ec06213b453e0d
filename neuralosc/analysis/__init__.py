"""The lab: what the discretization, the gradient and the data do to a network, with the evidence for each sentence.

Every analysis works on a float64 copy of what it is given and returns a frozen result with `table()`, `to_dict()`,
`figure()` and a `verdict`: a sentence, the numbers it rests on and the rule that gave it, or "No claim" and why.
"""

from neuralosc.analysis.controls import Control, Controls, controls
from neuralosc.analysis.convergence import Convergence, convergence
from neuralosc.analysis.energy_drift import EnergyDrift, energy_drift
from neuralosc.analysis.fixed_points import FixedPoints, fixed_points
from neuralosc.analysis.gradient_flow import GradientFlow, gradient_flow
from neuralosc.analysis.gradient_gap import GradientGap, gradient_gap
from neuralosc.analysis.hessian import Hessian, hessian
from neuralosc.analysis.koopman import Koopman, Similarity, koopman, similarity
from neuralosc.analysis.landscape import Landscape, landscape
from neuralosc.analysis.lyapunov import Lyapunov, lyapunov
from neuralosc.analysis.modified_equation import ModifiedEquation, modified_equation
from neuralosc.analysis.reconstruction import Reconstruction, reconstruction
from neuralosc.analysis.results import Result, Verdict
from neuralosc.analysis.robustness import Robustness, robustness
from neuralosc.analysis.samples import Paired, Samples, Score
from neuralosc.analysis.spectrum import Spectrum, spectrum
from neuralosc.analysis.suggest_dt import StepRange, suggest_dt
from neuralosc.analysis.transfer import Transfer, transfer
from neuralosc.analysis.work_precision import WorkPrecision, work_precision
from solvers.run.claims import FieldCheck, check_field

__all__ = [
    "Control",
    "Controls",
    "Convergence",
    "EnergyDrift",
    "FieldCheck",
    "FixedPoints",
    "GradientFlow",
    "GradientGap",
    "Hessian",
    "Koopman",
    "Landscape",
    "Lyapunov",
    "ModifiedEquation",
    "Paired",
    "Reconstruction",
    "Result",
    "Robustness",
    "Samples",
    "Score",
    "Similarity",
    "Spectrum",
    "StepRange",
    "Transfer",
    "Verdict",
    "WorkPrecision",
    "check_field",
    "controls",
    "convergence",
    "energy_drift",
    "fixed_points",
    "gradient_flow",
    "gradient_gap",
    "hessian",
    "koopman",
    "landscape",
    "lyapunov",
    "modified_equation",
    "reconstruction",
    "robustness",
    "similarity",
    "spectrum",
    "suggest_dt",
    "transfer",
    "work_precision",
]
