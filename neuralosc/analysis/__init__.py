"""The lab: what the discretization, the gradient and the data do to a network, with the evidence for each sentence.

Every analysis works on a float64 copy of what it is given and returns a frozen result with `table()`, `to_dict()`,
`figure()` and a `verdict`: a sentence, the numbers it rests on and the rule that gave it, or "No claim" and why.
"""

from neuralosc.analysis.results import Result, Verdict
from neuralosc.analysis.samples import Samples, Score

__all__ = ["Result", "Samples", "Score", "Verdict"]
