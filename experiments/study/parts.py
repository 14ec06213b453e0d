"""The parts of a study: which analysis, how much of it, and what it means for the network in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from experiments.study.runs import Studied
from neuralosc.analysis.controls import controls, untrained_of
from neuralosc.analysis.convergence import convergence
from neuralosc.analysis.gradient_flow import gradient_flow
from neuralosc.analysis.gradient_gap import gradient_gap
from neuralosc.analysis.hessian import hessian
from neuralosc.analysis.learned import FEWEST
from neuralosc.analysis.lyapunov import lyapunov
from neuralosc.analysis.results import Result
from neuralosc.analysis.robustness import robustness
from neuralosc.analysis.spectrum import spectrum
from neuralosc.analysis.transfer import transfer
from solvers import GRADIENTS


@dataclass(frozen=True)
class Part:
    """One analysis of a study.

    Attributes:
        run: it, on so many sequences.
        few, most: how many sequences it is tried on first, to see how long it takes, and how many it needs at most.
        about: what it asks, in plain words.
        means: what an answer means for the network, in plain words, by the answer of the verdict; of "" that nothing is
            claimed.
        title: what a page calls it; the heading of the result when empty.
        weight: of its share of the time.
        named: it takes long, and is carried out where it is asked for by name.
    """

    run: Callable[[Studied, int], Result]
    few: int
    most: int
    about: str
    means: Mapping[str, str]
    title: str = ""
    named: bool = False
    weight: float = 1.0

    def words(self, result: Result) -> str:
        """What the result means."""
        return self.means.get(result.verdict.answer, self.means[""])


@dataclass(frozen=True)
class Done:
    """A part of a study.

    Attributes:
        name: of the part.
        part: what it is.
        result: what was found; None where there is nothing.
        why: why there is nothing.
        samples: sequences that were looked at.
        seconds: that it took.
    """

    name: str
    part: Part
    result: Result | None
    why: str
    samples: int
    seconds: float


#: Disturbances that need no loss to attack.
KINDS = ("white", "dropped", "jitter")

#: Gradients that cost no more than some training steps: real-time learning carries the derivatives of every state.
CHEAP = tuple(name for name in GRADIENTS if name != "forward")

#: Training sequences that a read-out is fitted to.
FITTED = 512

_NOTHING = (
    "The numbers below are what was measured; by the rule that stands with the verdict they do not carry a statement "
    "about this network, and none is made."
)

PARTS: dict[str, Part] = {
    "transfer": Part(
        lambda s, n: transfer(s.rows, s.samples("test"), samples=n, progress=False),
        weight=4.0,
        few=FEWEST,
        most=2048,
        about="The trained weights are kept and the solver is changed. If the network has learnt an equation, every "
        "solver that is accurate enough gives the same answers; if it has learnt a recipe of steps, only its own does.",
        means={
            "equation": "You may change the solver of this network: use a cheaper one, or an adaptive one on irregular "
            "data, and expect the same answers as long as its steps are accurate.",
            "step": "The solver belongs to this network like its weights. Keep it, with its step, wherever the network "
            "is used; read nothing about the equation out of it; and do not call it a model in continuous time. "
            "Training under a step of higher order, or with more substeps, gives weights that do not depend on it.",
            "mixed": "Which solver a network was trained under decides whether an equation was learnt: compare the "
            "rows.",
            "": _NOTHING,
        },
    ),
    "convergence": Part(
        lambda s, n: convergence(s.model, s.samples("test"), samples=n, progress=False),
        weight=4.0,
        few=FEWEST,
        most=2048,
        about="The steps are made finer and, where that is possible, coarser. A model in continuous time gets no worse "
        "under finer steps; one that was fitted to its step is best exactly there.",
        means={
            "equation": "Finer steps change nothing that counts. The step can be chosen for speed, up to the critical "
            "one in the table.",
            "step": "Finer steps make it worse, so its step is part of what it has learnt. Do not refine it to be more "
            "accurate: it will be less.",
            "": _NOTHING,
        },
    ),
    "controls": Part(
        # A read-out that is fitted to fewer sequences tells of these more than of the states.
        lambda s, n: controls(
            s.model, s.samples("train").take(FITTED), s.samples("test").take(n), samples=None, seeds=1, progress=False
        ),
        weight=4.0,
        few=FEWEST,
        most=1024,
        about="Under another solver the states change, and the read-out was fitted to the old ones. It is fitted anew "
        "to the states of each solver, and to those of weights that were never trained, which says what the states "
        "themselves are worth.",
        means={
            "share": "If the share is near 100 %, the equation is good, and what fails under another solver is the "
            "read-out alone: fit it anew and the network can be used with any. If it is small, the dynamics "
            "themselves depend on the step. Where untrained weights do nearly as well, little was learnt in them.",
            "": _NOTHING,
        },
    ),
    "spectrum": Part(
        lambda s, n: spectrum(s.model, s.samples("test").take(max(n, 1)), points=max(n, 1), progress=False),
        few=2,
        most=16,
        about="The field is linearised at states it visits. Its eigenvalues, times the step, must lie where the solver "
        "does not make grow what the equation lets decay.",
        means={
            "stable": "No stability limit is near: what changes under another step is accuracy. The table says how "
            "much longer a step could be.",
            "unstable": "At some states a step grows what the equation does not. Take a shorter step, or an implicit "
            "method; a network that was trained so may rely on that growth.",
            "": _NOTHING,
        },
    ),
    "gradients": Part(
        lambda s, n: gradient_flow(s.model, s.samples("test"), samples=n, progress=False),
        few=2,
        most=8,
        about="The derivatives of the steps are multiplied back through time: what a change of an early state still "
        "does to the last one, which is what training has to see to learn long memories.",
        means={
            "arrives": "Training sees the whole sequence. If long memories are not learnt all the same, the cause lies "
            "elsewhere.",
            "vanishes": "What happened at the beginning no longer reaches the end, and cannot be learnt from there. A "
            "smaller dt, less damping, or a network that keeps volume would carry it further.",
            "explodes": "Small changes at the beginning become large ones. Clip gradients, shorten the step, or damp "
            "more; predictions over as long a time are sensitive in the same way.",
            "": _NOTHING,
        },
    ),
    "gradients_untrained": Part(
        lambda s, n: gradient_flow(
            untrained_of(s.model)(s.first.config.seed), s.samples("test"), samples=n, progress=False
        ),
        few=2,
        most=8,
        about="The same of weights that were just drawn, which is what training begins with.",
        means={
            "arrives": "Training began with gradients that reach the whole sequence.",
            "vanishes": "Training began without a gradient from the beginning of a sequence: what the trained network "
            "remembers of it was learnt step by step backwards, or from another seed might not be learnt.",
            "explodes": "Training began with gradients that explode: it depends on clipping, or on luck.",
            "": _NOTHING,
        },
        title="Gradients by lag, before training",
    ),
    "lyapunov": Part(
        lambda s, n: lyapunov(s.model, s.samples("test"), samples=n, progress=False),
        few=2,
        most=8,
        about="Two states that differ by very little see the same input. The rates at which they part or meet, "
        "averaged along the samples, are the exponents of the steps that are taken.",
        means={
            "meet": "The network forgets how it started: its state is decided by its input, over the time that the "
            "exponent says.",
            "part": "Small differences grow along the samples: states are sensitive to noise and rounding, and long "
            "predictions are not to be trusted beyond a few of its times.",
            "": _NOTHING,
        },
    ),
    "robustness": Part(
        lambda s, n: robustness(s.model, s.samples("test"), KINDS, samples=n, progress=False),
        few=16,
        most=512,
        about="The samples are disturbed: by noise, by losing some of them, and by a clock that is off. What is lost "
        "of the score is told from chance, sequence by sequence.",
        means={
            "worse": "From the strengths on that the verdict names, the answers are worse than on clean samples: below "
            "them the network can be used on data of that kind.",
            "unchanged": "At none of the strengths that were tried a loss is seen on these sequences. A small one may "
            "be there all the same: the intervals in the table say how small.",
            "": _NOTHING,
        },
    ),
    "gradient_gap": Part(
        lambda s, n: gradient_gap(s.model, s.samples("train"), gradients=CHEAP, samples=n, progress=False),
        few=2,
        most=16,
        about="Every way to differentiate is taken on the same weights and samples and set against backprop, which is "
        "the gradient of the steps that are taken.",
        means={
            "agree": "They give one gradient: choose by memory and time.",
            "apart": "Those that are named differ from the gradient of the loss that is trained. Where the gap closes "
            "with the step it is that of the equation solved better; where it does not, it is another gradient.",
            "": _NOTHING,
        },
        named=True,
    ),
    "hessian": Part(
        lambda s, n: hessian(
            s.model, s.samples("train"), top=1, trace=False, steps=16, products="difference", samples=n, progress=False
        ),
        few=2,
        most=64,
        about="The curvature of the training loss at the trained weights: how steep the steepest direction is, and "
        "whether the loss still curves down somewhere.",
        means={
            "up": "On these sequences the weights lie where no direction curves down: training has nothing left to "
            "gain nearby.",
            "down": "The loss curves down along some direction: the weights are no minimum of it on these sequences, "
            "which is usual after early stopping.",
            "": _NOTHING,
        },
    ),
}
