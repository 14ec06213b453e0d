"""Benchmark: a training step of the library against a plain PyTorch loop over the published cell.

A training step is forward and backward of the mean square of the last output, parameters only. Every case of a shape
is timed in one process, round by round and interleaved, so that a slow moment of the machine meets all of them. More
shapes are more entries of `SHAPES`, more models more entries of `CASES`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

import neuralosc
from experiments import bench_solvers
from experiments.timing import Report, Timed, empty_table, interleaved, machine, ratios, silent, within
from solvers.errors import InputError, NumericalError

DT, GAMMA, EPSILON = 0.042, 2.7, 4.7
BASELINE = "plain loop"
SUBJECT = "neuralosc CoRNN"


@dataclass(frozen=True)
class Shape:
    """The size of one training step: sequence length, batch and hidden channels (one input per step)."""

    time: int
    batch: int
    hidden: int

    def __str__(self) -> str:
        return f"({self.time}, {self.batch}, {self.hidden})"


SHAPES = (Shape(784, 120, 256), Shape(64, 128, 64))
QUICK_SHAPES = (Shape(64, 128, 64), Shape(32, 16, 32))


class PublishedCell(nn.Module):
    """The published coRNN step: z+ = z + dt (tanh(W [x, z, y] + b) - gamma y - epsilon z), y+ = y + dt z+.

    Source: Rusch and Mishra, "Coupled Oscillatory Recurrent Neural Network (coRNN)", ICLR 2021, eq. (3), with the
    damping explicit as in the authors' code.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.i2h = nn.Linear(input_size + 2 * hidden_size, hidden_size)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """One step from position y and velocity z, each (batch, hidden), under the input x (batch, input)."""
        z = z + DT * (torch.tanh(self.i2h(torch.cat((x, z, y), 1))) - GAMMA * y - EPSILON * z)
        return y + DT * z, z


class PlainLoop(nn.Module):
    """What one writes without a library: the published cell in a Python loop over time."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.cell = PublishedCell(input_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """The last position (batch, hidden) of x (batch, time, input)."""
        y = z = x.new_zeros(x.shape[0], self.hidden_size)
        for sample in x.unbind(1):
            y, z = self.cell(sample, y, z)
        return y


@dataclass(frozen=True)
class Subject:
    """One case made for one shape: `step` does a training step; `model` holds the gradients, None for the floor."""

    step: Callable[[], float]
    model: nn.Module | None = None


def _training_step(model: nn.Module, last: Callable[[], Tensor]) -> Subject:
    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = last().square().mean()
        loss.backward()
        return float(loss.detach())

    return Subject(step, model)


def _plain(shape: Shape) -> PlainLoop:
    torch.manual_seed(0)
    return PlainLoop(1, shape.hidden)


def plain_loop(shape: Shape, x: Tensor) -> Subject:
    """The published cell in a plain Python loop."""
    model = _plain(shape)
    return _training_step(model, lambda: model(x))


def library(shape: Shape, x: Tensor) -> Subject:
    """The library's CoRNN with the plain loop's own weights."""
    rnn, _ = neuralosc.from_reference("cornn", _plain(shape).state_dict(), dt=DT, gamma=GAMMA, epsilon=EPSILON)
    return _training_step(rnn, lambda: rnn(x)[0][:, -1])


def floor(shape: Shape, x: Tensor) -> Subject:
    """The matrix products of the plain loop's hidden state alone, forward and backward, into reused buffers."""
    torch.manual_seed(0)
    chunk = 16
    state, weight = torch.randn(shape.batch, 2 * shape.hidden), torch.randn(2 * shape.hidden, shape.hidden)
    transposed, gradient = weight.t().contiguous(), torch.randn(shape.batch, shape.hidden)
    current, back = torch.empty(shape.batch, shape.hidden), torch.empty(shape.batch, 2 * shape.hidden)
    states = torch.randn(2 * shape.hidden, chunk * shape.batch)
    gradients = torch.randn(chunk * shape.batch, shape.hidden)
    total = torch.zeros(2 * shape.hidden, shape.hidden)

    def step() -> float:
        for _ in range(shape.time):
            torch.mm(state, weight, out=current)
        for t in range(shape.time):
            torch.mm(gradient, transposed, out=back)
            if t % chunk == 0:
                total.addmm_(states, gradients)
        return 0.0

    return Subject(torch.no_grad()(step))


def _builtin(kind: type[nn.RNN] | type[nn.LSTM]) -> Callable[[Shape, Tensor], Subject]:
    def make(shape: Shape, x: Tensor) -> Subject:
        torch.manual_seed(0)
        model = kind(1, shape.hidden, batch_first=True)
        return _training_step(model, lambda: model(x)[0][:, -1])

    return make


CASES: dict[str, Callable[[Shape, Tensor], Subject]] = {
    SUBJECT: library,
    BASELINE: plain_loop,
    "floor (products alone)": floor,
    "torch.nn.RNN": _builtin(nn.RNN),
    "torch.nn.LSTM": _builtin(nn.LSTM),
}


@dataclass(frozen=True)
class Timing(Timed):
    """The times in seconds of one case at one shape, and their ratios to the plain loop of the same rounds."""

    shape: Shape
    case: str
    seconds: tuple[float, ...]
    ratio_of_medians: float
    ratio_of_minima: float


def _gradient_norm(model: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))


def check_equal(subject: Subject, baseline: Subject) -> None:
    """Run both once and raise `NumericalError` unless loss and gradient norm agree: a ratio of unlike work is void."""
    losses = subject.step(), baseline.step()
    if subject.model is None or baseline.model is None:
        raise InputError("only cases with parameters can be checked for equality; the floor has none")
    norms = _gradient_norm(subject.model), _gradient_norm(baseline.model)
    for what, (ours, theirs) in (("loss", losses), ("gradient norm", norms)):
        if not abs(ours - theirs) <= 1e-3 * abs(theirs):
            raise NumericalError(f"{SUBJECT} and the plain loop disagree on the {what}: {ours:.6g} and {theirs:.6g}")


def run(shapes: Sequence[Shape], repeats: int, report: Report = silent) -> list[Timing]:
    """Time every case at every shape.

    Args:
        shapes: sizes of the training step.
        repeats: timed rounds at each shape.
        report: called with what is being done and the fraction that is done.

    Raises:
        InputError: no repeats.
        NumericalError: the library and the plain loop do not compute the same.
    """
    if repeats < 1:
        raise InputError(f"--repeats is {repeats}: expected a whole number of at least 1")
    # The share of the work: products of all steps.
    work = [shape.time * shape.batch * shape.hidden**2 for shape in shapes]
    timings: list[Timing] = []
    for number, shape in enumerate(shapes):
        before, own = sum(work[:number]) / sum(work), work[number] / sum(work)
        timings += measure(shape, repeats, within(report, before, own))
    return timings


def measure(shape: Shape, repeats: int, report: Report = silent) -> list[Timing]:
    """Time every case at `shape`: one step each to warm up and to check, then `repeats` interleaved rounds."""
    torch.manual_seed(1)
    x = torch.rand(shape.batch, shape.time, 1)
    report(f"{shape} warming up", 0.0)
    subjects = {name: make(shape, x) for name, make in CASES.items()}
    check_equal(subjects[SUBJECT], subjects[BASELINE])
    for subject in subjects.values():
        subject.step()
    steps = {name: subject.step for name, subject in subjects.items()}
    seconds = interleaved(steps, repeats, str(shape), report)
    return [Timing(shape, name, times, *ratios(times, seconds[BASELINE])) for name, times in seconds.items()]


def table(timings: Sequence[Timing]) -> Table:
    """The timings as a table, one section per shape."""
    result = empty_table(
        "Training step: forward and backward of the last output's mean square",
        f"Shape: (time, batch, hidden). Ratio: time over the time of the {BASELINE}, smaller is faster. float32.",
        ("shape", "case"),
        ("median ms", "min ms", "ratio of medians", "ratio of minima"),
    )
    previous: Shape | None = None
    for timing in timings:
        if previous is not None and timing.shape != previous:
            result.add_section()
        result.add_row(
            str(timing.shape) if timing.shape != previous else "",
            timing.case,
            f"{1e3 * timing.median:.2f}",
            f"{1e3 * timing.minimum:.2f}",
            f"{timing.ratio_of_medians:.2f}",
            f"{timing.ratio_of_minima:.2f}",
            style="bold" if timing.case == SUBJECT else "",
        )
        previous = timing.shape
    return result


def write_json(timings: Sequence[Timing], path: Path, solving: Sequence[bench_solvers.Timing] = ()) -> None:
    """Write machine and timings (seconds of every round included) to `path`."""
    rows = [
        {
            **asdict(timing.shape),
            "case": timing.case,
            "median": timing.median,
            "minimum": timing.minimum,
            "ratio_of_medians": timing.ratio_of_medians,
            "ratio_of_minima": timing.ratio_of_minima,
            "seconds": list(timing.seconds),
        }
        for timing in timings
    ]
    alone = [{**asdict(timing), "median": timing.median, "minimum": timing.minimum} for timing in solving]
    values = {"machine": machine(), "timings": rows, "solving": alone}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
