"""What is looked at: a precise copy of a model, what it answers, and its states under any solver."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from neuralosc.analysis.samples import Samples
from neuralosc.layers.recurrent import RecurrentLayer
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.sequence_model import SequenceModel
from solvers.errors import InputError, NumericalError, PairingError

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

#: Bytes of states that one pass may keep: more sequences are run in parts.
STATE_BYTES = 256 * 2**20

#: The solution that stands for the equation itself: a method of order 5 with fixed steps, which the compiled loop
#: takes, refined until half as many steps give the same, and another method that must give it too.
REFERENCE, CONFIRMATION = "dopri5_fixed", "rk4"
#: Steps in one of the network's own, from the fewest to the most; how far the half of them may be (relative RMS), which
#: is some thirty times the error of the finer ones.
REFINEMENTS, SETTLED = (4, 8, 16, 32, 64), 1e-6
#: How many sequences settle the refinement and see the other method, and how far anything may be from it.
CONFIRMED, CONFIRMED_TO = 4, 1e-5

UNSOLVED = "the equation could not be solved to many digits"
UNCONFIRMED = "the reference solution is not confirmed"


def precise(model: M) -> M:
    """A copy in float64 and in evaluation mode, on the device it was on; the model itself stays as it is."""
    return copy.deepcopy(model).double().eval()


def network(model: nn.Module) -> RecurrentLayer:
    """The recurrent network of a model, or the network itself.

    Raises:
        InputError: it is neither.
    """
    rnn = model.rnn if isinstance(model, SequenceModel) else model
    if not isinstance(rnn, RecurrentLayer):
        raise InputError(
            f"model is a {type(model).__name__}, expected a neuralosc.SequenceModel or a recurrent network of neuralosc"
        )
    return rnn


def without_solver(model: nn.Module) -> str:
    """Why there is no other solver to put under a network; empty where there is."""
    rnn = network(model)
    if not isinstance(rnn, ContinuousRNN):
        return f"a {type(rnn).__name__} has no solver, so that there is no step to change"
    if rnn.solver.stochastic:
        return f"solver {rnn.solver.name!r} draws noise, and no two of its paths are alike"
    return ""


def continuous(model: nn.Module, one_way: bool = True) -> ContinuousRNN:
    """The network of a model, which must have fields and a solver without noise.

    Raises:
        InputError: it has none, or, where `one_way`, runs in both directions.
    """
    why = without_solver(model)
    rnn = network(model)
    if why or not isinstance(rnn, ContinuousRNN):
        raise InputError(f"{why}: expected a network of fields and a solver")
    if one_way and rnn.bidirectional:
        raise InputError("the network runs in both directions, which is no one map of states: bidirectional=False")
    return rnn


def layer_of(rnn: ContinuousRNN, layer: int) -> int:
    """A layer by number, negative from the last.

    Raises:
        InputError: there is none.
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or not -rnn.num_layers <= layer < rnn.num_layers:
        raise InputError(f"layer is {layer!r}, expected a whole number below {rnn.num_layers}")
    return layer % rnn.num_layers


def shown(model: nn.Module, samples: Samples) -> Samples:
    """Samples as the network is shown them."""
    if not isinstance(model, SequenceModel):
        return samples
    with torch.no_grad():
        return dataclasses.replace(samples, x=model.shown(samples.x, samples.lengths))


def under(model: M, solver: str, substeps: int = 1, **options: Any) -> M:
    """The same weights under another solver, differentiated by backprop.

    Raises:
        PairingError: the solver cannot work with the field.
    """
    swap: Any = model
    swapped: M = swap.with_solver(solver, substeps=substeps, gradient="backprop", **options)
    return swapped


@dataclass(frozen=True)
class Run:
    """What a model made of samples.

    Attributes:
        answers: in the units of the targets; None of a network without a read-out.
        states: after every sample, of each layer, `(batch, time, components, hidden)`.
        outputs: what is read, `(batch, time, features)`.
        evaluations: of the right-hand side, for each sequence, the mean over the parts that were run together.
    """

    answers: Tensor | None
    states: tuple[Tensor, ...]
    outputs: Tensor
    evaluations: float = 0.0


@torch.no_grad()
def run(model: nn.Module, samples: Samples) -> Run:
    """Answers and states of all layers, in parts that fit the memory.

    Raises:
        NumericalError: the solver fails.
    """
    rnn = continuous(model, one_way=False)
    each = 8 * samples.x.shape[1] * rnn.num_layers * rnn.components * rnn.output_size
    answers, states, outputs, evaluations = [], [], [], 0
    for part in shown(model, samples).parts(max(1, STATE_BYTES // each)):
        solution = rnn.solve(**part.inputs)  # type: ignore[arg-type]
        states.append(solution.layers)
        outputs.append(solution.output)
        evaluations += solution.evaluations * len(part)
        if isinstance(model, SequenceModel):
            answers.append(model.unscaled(model.readout(solution.output, part.lengths)))
    layers = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
    return Run(torch.cat(answers) if answers else None, layers, torch.cat(outputs), evaluations / len(samples))


@dataclass(frozen=True)
class Exact:
    """The solution that stands for the equation, if another confirms it.

    Attributes:
        run: it; None where it failed.
        error: how far half as many steps are from it, relative RMS of the states, on all sequences.
        substeps: steps of `REFERENCE` in an interval.
        why: why it cannot be used; empty if it can.
    """

    run: Run | None
    error: float = float("nan")
    substeps: int = 0
    why: str = ""

    def under(self, model: M) -> M:
        """A model solved like this."""
        return under(model, REFERENCE, self.substeps)


def exact(model: nn.Module, samples: Samples) -> Exact:
    """Solve the equation to many digits, and again by other steps and another method to know that it is solved."""
    own = settled(model, samples.pick(slice(CONFIRMED)))
    if own.why:
        return own
    try:
        found = run(own.under(model), samples)
        error = distance(run(under(model, REFERENCE, own.substeps // 2), samples), found, samples)
    except (NumericalError, InputError) as failed:
        return Exact(None, why=f"{UNSOLVED} ({failed})")
    # A difference that is not a number is no confirmation.
    if not error <= CONFIRMED_TO:
        why = f"on all sequences half as many steps differ by {error:.1e}, more than {CONFIRMED_TO:g}"
        return Exact(found, error, own.substeps, f"{UNCONFIRMED} ({why})")
    return Exact(found, error, own.substeps)


def settled(model: nn.Module, few: Samples) -> Exact:
    """How many steps the exact solution takes, found on a few sequences, whose it is, and confirmed there."""
    try:
        return _settled(model, few)
    except (PairingError, NumericalError, InputError) as failed:
        return Exact(None, why=f"{UNSOLVED} ({failed})")


def _settled(model: nn.Module, few: Samples) -> Exact:
    own = continuous(model, one_way=False).substeps
    apart, coarse = float("inf"), run(under(model, REFERENCE, own * REFINEMENTS[0]), few)
    for count in REFINEMENTS[1:]:
        fine = run(under(model, REFERENCE, own * count), few)
        apart, coarse = distance(coarse, fine, few), fine
        if apart <= SETTLED:
            break
    if not apart <= CONFIRMED_TO:
        why = (
            f"halving the steps of {REFERENCE} at {own * REFINEMENTS[-1]} in an interval still moves it by {apart:.1e}"
        )
        return Exact(None, apart, why=f"{UNCONFIRMED} ({why})")
    other = distance(run(under(model, CONFIRMATION, 2 * own * count), few), fine, few)
    if not other <= CONFIRMED_TO:
        why = f"{REFERENCE} and {CONFIRMATION} differ by {other:.1e}, more than {CONFIRMED_TO:g}"
        return Exact(None, other, why=f"{UNCONFIRMED} ({why})")
    return Exact(fine, max(apart, other), own * count)


def distance(found: Run, reference: Run, samples: Samples) -> float:
    """The largest relative RMS difference of the states of a layer."""
    pairs = zip(found.states, reference.states, strict=True)
    return max(relative_rms(one, other, samples.valid) for one, other in pairs)


def relative_rms(states: Tensor, reference: Tensor, valid: Tensor | None = None) -> float:
    """Root of the mean square of the difference over that of the reference, over all valid samples and components."""
    if valid is not None:
        states, reference = states[valid], reference[valid]
    size = reference.square().mean()
    return float(((states - reference).square().mean() / size.clamp_min(1e-300)).sqrt())


def watched(parts: Iterable[T], what: str, show: bool | None, total: int | None = None) -> Iterator[T]:
    """Go through parts under a bar that says how far it is.

    Args:
        parts: what is gone through.
        what: what is being done.
        show: whether there is a bar; None for one where somebody reads along, on a terminal.
        total: how many parts, where they do not say it.
    """
    show = sys.stderr.isatty() if show is None else show
    try:
        from tqdm import tqdm
    except ImportError:
        show = False
    yield from tqdm(parts, desc=what, total=total, leave=False) if show else parts
