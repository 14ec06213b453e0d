"""The lab: what the discretization, the gradient and the data do to a network, with the evidence for each sentence.

Every analysis works on a float64 copy of what it is given and returns a frozen result with `table()`, `to_dict()`,
`figure()` and a `verdict`: a sentence, the numbers it rests on and the rule that gave it, or "No claim" and why.
"""

from neuralosc.analysis.controls import Control, Controls, controls
from neuralosc.analysis.convergence import Convergence, convergence
from neuralosc.analysis.gradient_flow import GradientFlow, gradient_flow
from neuralosc.analysis.gradient_gap import GradientGap, gradient_gap
from neuralosc.analysis.hessian import Hessian, hessian
from neuralosc.analysis.landscape import Landscape, landscape
from neuralosc.analysis.lyapunov import Lyapunov, lyapunov
from neuralosc.analysis.results import Result, Verdict
from neuralosc.analysis.robustness import Robustness, robustness
from neuralosc.analysis.samples import Paired, Samples, Score
from neuralosc.analysis.spectrum import Spectrum, spectrum
from neuralosc.analysis.suggest_dt import StepRange, suggest_dt
from neuralosc.analysis.transfer import Transfer, transfer
from solvers.run.claims import FieldCheck, check_field

__all__ = [
    "Control",
    "Controls",
    "Convergence",
    "FieldCheck",
    "GradientFlow",
    "GradientGap",
    "Hessian",
    "Landscape",
    "Lyapunov",
    "Paired",
    "Result",
    "Robustness",
    "Samples",
    "Score",
    "Spectrum",
    "StepRange",
    "Transfer",
    "Verdict",
    "check_field",
    "controls",
    "convergence",
    "gradient_flow",
    "gradient_gap",
    "hessian",
    "landscape",
    "lyapunov",
    "robustness",
    "spectrum",
    "suggest_dt",
    "transfer",
]
