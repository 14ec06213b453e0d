"""What is looked at: a precise copy of a model, what it answers, and its states under any solver."""

from __future__ import annotations

import copy
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

#: The solution that stands for the equation itself, and the second method that must confirm it.
REFERENCE: tuple[str, dict[str, Any]] = ("dopri8", {"rtol": 1e-10, "atol": 1e-12})
CONFIRMATION = ("rk4", 64)
#: How many sequences the second method runs, and how far apart the two may be (relative RMS).
CONFIRMED, CONFIRMED_TO = 4, 1e-6


def precise(model: M) -> M:
    """A copy in float64 and in evaluation mode, on the processor it was on; the model itself stays as it is."""
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
    """Samples on the scale of the network."""
    scaler = model.input_scaler if isinstance(model, SequenceModel) else None
    if scaler is None:
        return samples
    return Samples(scaler(samples.x), samples.y, samples.timespans, samples.lengths)


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
    """

    answers: Tensor | None
    states: tuple[Tensor, ...]
    outputs: Tensor


@torch.no_grad()
def run(model: nn.Module, samples: Samples) -> Run:
    """Answers and states of all layers, in parts that fit the memory.

    Raises:
        NumericalError: the solver fails.
    """
    rnn = continuous(model, one_way=False)
    each = 8 * samples.x.shape[1] * rnn.num_layers * rnn.components * rnn.output_size
    answers, states, outputs = [], [], []
    for part in shown(model, samples).parts(max(1, STATE_BYTES // each)):
        solution = rnn.solve(**part.inputs)  # type: ignore[arg-type]
        states.append(solution.layers)
        outputs.append(solution.output)
        if isinstance(model, SequenceModel):
            answers.append(model.unscaled(model.readout(solution.output, part.lengths)))
    layers = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
    return Run(torch.cat(answers) if answers else None, layers, torch.cat(outputs))


@dataclass(frozen=True)
class Exact:
    """The solution that stands for the equation, if a second method confirms it.

    Attributes:
        run: it; None where it failed.
        error: how far the second method is from it on some sequences, relative RMS of the states.
        why: why it cannot be used; empty if it can.
    """

    run: Run | None
    error: float
    why: str = ""


def exact(model: nn.Module, samples: Samples) -> Exact:
    """Solve the equation to many digits, and once more by another method to know that it is solved."""
    method, options = REFERENCE
    second, substeps = CONFIRMATION
    few = samples.pick(slice(CONFIRMED))
    try:
        found = run(under(model, method, **options), samples)
        other = run(under(model, second, substeps), few)
    except (PairingError, NumericalError) as error:
        return Exact(None, float("nan"), f"the equation could not be solved to many digits ({error})")
    pairs = zip(other.states, found.states, strict=True)
    valid = few.valid
    apart = max(relative_rms(one, whole[:CONFIRMED], valid) for one, whole in pairs)
    # A difference that is not a number is no confirmation.
    if not apart <= CONFIRMED_TO:
        rejected = f"{method} and {second} with {substeps} substeps differ by {apart:.1e}, more than {CONFIRMED_TO:g}"
        return Exact(found, apart, f"the reference solution is not confirmed ({rejected})")
    return Exact(found, apart)


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
