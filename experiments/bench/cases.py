"""The cases of the benchmark of a training step: what is timed, what it is checked against, and its floor.

A training step is forward and backward of the mean square of the last output, parameters only. More models are more
entries of `CASES`, more shapes more entries of `SHAPES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import neuralosc
import solvers
from experiments.bench import jax, loops
from solvers.compiled.products import Products


@dataclass(frozen=True)
class Shape:
    """The size of one training step.

    Attributes:
        name: what `--shapes` takes.
        time, batch, hidden, features: of the sequence, the network and a sample.
        linear: for the linear oscillators, or for the networks.
    """

    name: str
    time: int
    batch: int
    hidden: int
    features: int = 1
    linear: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.time}, {self.batch}, {self.hidden}, {self.features})"


SHAPES = (
    Shape("S1", 784, 120, 256, 1),
    Shape("S2", 500, 50, 128, 2),
    Shape("S3", 784, 128, 128, 1),
    Shape("S4", 64, 128, 64, 1),
    Shape("S5", 17984, 8, 32, 6),
    Shape("L1", 4096, 8, 128, 64, linear=True),
)
QUICK_SHAPES = (Shape("Q1", 64, 32, 32, 1), Shape("Q2", 96, 16, 32, 2), Shape("QL", 128, 4, 16, 8, linear=True))


@dataclass(frozen=True)
class Subject:
    """One case made for one shape.

    Attributes:
        step: does a training step, and waits for its loss.
        model, norm: the first holds the gradients, or the second gives their norm.
        way: says which path the library took.
    """

    step: Callable[[], float]
    model: nn.Module | None = None
    norm: Callable[[], float] | None = None
    way: Callable[[], str] = str

    def gradient_norm(self) -> float:
        """Of all parameters together; 0 for a floor, which has none."""
        if self.norm is not None:
            return self.norm()
        if self.model is None:
            return 0.0
        return math.sqrt(sum(float(p.grad.square().sum()) for p in self.model.parameters() if p.grad is not None))


Maker = Callable[[Shape, Tensor], Subject]


@dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        field: the network.
        what: how it is computed.
        make: gives the training step at a shape.
        floor: the case its time is a multiple of; the name of a case.
        peer: the case that must compute the same.
        tolerance: how far they may be apart.
    """

    field: str
    what: str
    make: Maker
    floor: str
    peer: str | None = None
    tolerance: float = 1e-3

    @property
    def name(self) -> str:
        """The name of the case."""
        return f"{self.field}: {self.what}"


def training_step(model: nn.Module, last: Callable[[], Tensor]) -> Subject:
    """Forward and backward of the mean square of what `last` gives."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = last().square().mean()
        loss.backward()
        return float(loss.detach())

    return Subject(step, model)


# The floors

#: The products of one step of a field, as (how often, rows, columns) of the matrix in units of the hidden size.
Blocks = tuple[tuple[int, int, int], ...]


def floor(blocks: Blocks) -> Maker:
    """The products of a field alone: those of the steps, forward and backward, and one for each matrix's gradient."""

    def make(shape: Shape, x: Tensor) -> Subject:
        matrices = tuple((k * shape.hidden, n * shape.hidden) for count, k, n in blocks for _ in range(count))
        transposed = tuple((n, k) for k, n in matrices)
        run = Products(shape.time, shape.batch, matrices, transposed, matrices).work(device=x.device)

        def step() -> float:
            run()
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            return 0.0

        return Subject(step)

    return make


# The same weights, in a loop and in the library

DT = 0.1
Pair = Callable[[Shape], tuple[nn.Module, neuralosc.ContinuousRNN]]


def cornn(shape: Shape) -> tuple[nn.Module, neuralosc.ContinuousRNN]:
    """coRNN."""
    loop = loops.CoRNNLoop(shape.features, shape.hidden)
    weights = {f"cell.{name}": value for name, value in loop.state_dict().items()}
    settings = {"dt": loop.dt, "gamma": loop.gamma, "epsilon": loop.epsilon}
    return loop, neuralosc.from_reference("cornn", weights, **settings)[0]


def _lipschitz(shape: Shape) -> tuple[nn.Module, neuralosc.ContinuousRNN]:
    # The symmetric parts let the state grow: with the steps of short sequences a long one leaves the numbers.
    loop = loops.LipschitzLoop(shape.features, shape.hidden, dt=min(0.03, 24 / shape.time))
    settings = {"eps": loop.dt, "beta": loop.beta, "gamma": loop.gamma}
    return loop, neuralosc.from_reference("lipschitz", loop.state_dict(), **settings)[0]


def _lem(shape: Shape) -> tuple[nn.Module, neuralosc.ContinuousRNN]:
    loop = loops.LEMLoop(shape.features, shape.hidden)
    field = neuralosc.fields.Multiscale(shape.features, shape.hidden)
    names = {"inp2hid": "V", "hid2hid": "coupling", "transform_z": "transform"}
    values = loop.state_dict()
    field.load_state_dict({f"{names[m]}.{p}": values[f"{m}.{p}"] for m in names for p in ("weight", "bias")})
    return loop, neuralosc.ContinuousRNN(field, "semi_implicit_euler", loop.dt)


def unicornn(layers: int) -> Pair:
    """UnICORNN of so many layers."""

    def made(shape: Shape) -> tuple[nn.Module, neuralosc.ContinuousRNN]:
        # Over so many undamped oscillations as long sequences have, rounding errors would decide the gradient.
        loop = loops.UnICORNNLoop(shape.features, shape.hidden, layers, dt=min(0.05, 40 / shape.time))
        weights: dict[str, Tensor] = {}
        for i, layer in enumerate(loop.layers):
            assert isinstance(layer, loops.UnICORNNLayer)
            weights |= {f"DIs.{i}.fc.weight": layer.V.weight, f"DIs.{i}.fc.bias": layer.V.bias}
            weights |= {f"RNNs.{i}.weight_hh": layer.w, f"RNNs.{i}.c_": layer.c}
        return loop, neuralosc.from_reference("unicornn", weights, dt=layer.dt, alpha=layer.alpha)[0]

    return made


def _linoss(kind: type[loops.LinOSSLoop]) -> Pair:
    def made(shape: Shape) -> tuple[nn.Module, neuralosc.ContinuousRNN]:
        loop = kind(shape.features, shape.hidden)
        field = neuralosc.fields.LinearOscillator(shape.features, shape.hidden)
        field.load_state_dict(loop.state_dict())
        return loop, neuralosc.ContinuousRNN(field, "semi_implicit_euler", 1.0)

    return made


def _field(make: Callable[[Shape], neuralosc.VectorField], method: str, **tolerances: float) -> Pair:
    """A field under torchdiffeq, and under rk4 of the library."""

    def made(shape: Shape) -> tuple[nn.Module, neuralosc.ContinuousRNN]:
        field = make(shape)
        return loops.Torchdiffeq(field, DT, method, **tolerances), neuralosc.ContinuousRNN(field, "rk4", DT)

    return made


def _user(shape: Shape) -> neuralosc.VectorField:
    return loops.Leaky(shape.features, shape.hidden)


def _oscillator(shape: Shape) -> neuralosc.VectorField:
    return neuralosc.Oscillator(shape.features, shape.hidden, gamma=2.7, epsilon=4.7)


def written(pair: Pair) -> Maker:
    """The module without the library."""

    def make(shape: Shape, x: Tensor) -> Subject:
        torch.manual_seed(0)
        model = pair(shape)[0].to(x.device)
        return training_step(model, lambda: model(x))

    return make


def cast(x: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to a type on the device of x; none where it is None."""
    return torch.autocast(x.device.type, dtype, enabled=dtype is not None)


def library(pair: Pair, backend: str, dtype: torch.dtype | None = None) -> Maker:
    """The library with the same weights, on one of its paths, perhaps under autocast to a type."""

    def make(shape: Shape, x: Tensor) -> Subject:
        torch.manual_seed(0)
        rnn = pair(shape)[1].to(x.device)

        def last() -> Tensor:
            with solvers.backend(backend), cast(x, dtype):
                output: Tensor = rnn(x)[0]
            return output[:, -1]

        return training_step(rnn, last)

    return make


def _diffrax(shape: Shape, x: Tensor) -> Subject:
    torch.manual_seed(0)
    step, norm = jax.leaky_rk4(loops.Leaky(shape.features, shape.hidden), x, DT)
    return Subject(step, norm=norm)


def builtin(kind: Any, dtype: torch.dtype | None = None) -> Maker:
    """A network of torch.nn of the same size, perhaps under autocast to a type."""

    def make(shape: Shape, x: Tensor) -> Subject:
        torch.manual_seed(0)
        model = kind(shape.features, shape.hidden, batch_first=True).to(x.device)

        def last() -> Tensor:
            with cast(x, dtype):
                output: Tensor = model(x)[0]
            return output[:, -1].float()

        return training_step(model, last)

    return make


HALF = "neuralosc, bfloat16"
COMPILED, PLAIN, LOOP, FLOOR = "neuralosc", "neuralosc, plain path", "loop", "floor"
#: What "auto" takes where there is no compiler.
UNCOMPILED = "neuralosc, no compiler"


def _family(field: str, pair: Pair, base: str, peer: str = LOOP, blocks: Blocks = ()) -> list[Case]:
    """A field's floor, what others do, and the paths of the library."""
    other = f"{field}: {peer}"
    family = [
        Case(field, peer, written(pair), base),
        Case(field, COMPILED, library(pair, "compiled"), base, other),
        Case(field, UNCOMPILED, library(pair, "torch"), base, other),
        Case(field, PLAIN, library(pair, "plain"), base, other),
    ]
    return [Case(field, FLOOR, floor(blocks), base), *family] if blocks else family


CORNN_FLOOR = "coRNN: floor"
RK4, SCAN = "torchdiffeq rk4", "associative scan"
_OWN = "own field, rk4"
ADAPTIVE = {"rtol": 1e-3, "atol": 1e-4}

NETWORKS = [
    *_family("coRNN", cornn, CORNN_FLOOR, blocks=((1, 2, 1),)),
    Case("coRNN", HALF, library(cornn, "compiled", torch.bfloat16), CORNN_FLOOR, f"coRNN: {LOOP}", 2e-2),
    *_family("Lipschitz RNN", _lipschitz, "Lipschitz RNN: floor", blocks=((1, 1, 2),)),
    *_family("LEM", _lem, "LEM: floor", blocks=((1, 1, 3), (1, 1, 1))),
    *_family("UnICORNN, 2 layers", unicornn(2), CORNN_FLOOR),
    *_family(_OWN, _field(_user, "rk4"), f"{_OWN}: floor", RK4, ((4, 1, 1),)),
    *([Case(_OWN, "diffrax rk4", _diffrax, f"{_OWN}: floor", f"{_OWN}: {RK4}")] if jax.FOUND else []),
    *_family("coRNN field, rk4", _field(_oscillator, "rk4"), "coRNN field, rk4: floor", RK4, ((4, 2, 1),)),
    Case(
        "coRNN field, dopri5",
        "torchdiffeq dopri5",
        written(_field(_oscillator, "dopri5", **ADAPTIVE)),
        CORNN_FLOOR,
        f"coRNN field, rk4: {PLAIN}",
        2e-2,
    ),
    *(Case("torch.nn", kind.__name__, builtin(kind), CORNN_FLOOR) for kind in (nn.RNN, nn.GRU, nn.LSTM)),
]
LINEAR = [
    *_family("linear oscillators", _linoss(loops.LinOSSLoop), f"linear oscillators: {SCAN}"),
    Case(
        "linear oscillators",
        "neuralosc, scan",
        library(_linoss(loops.LinOSSLoop), "scan"),
        f"linear oscillators: {SCAN}",
        f"linear oscillators: {LOOP}",
    ),
    Case(
        "linear oscillators",
        SCAN,
        written(_linoss(loops.LinOSSScan)),
        f"linear oscillators: {SCAN}",
        f"linear oscillators: {LOOP}",
    ),
]


def beside_loop(model: str, layers: int = 1) -> dict[str, Case]:
    """The loop of a published network, and the library as it runs by default, by name; none where there is no loop."""
    pairs = {"cornn": cornn, "lem": _lem, "lipschitz": _lipschitz, "unicornn": unicornn(layers)}
    if model not in pairs or (layers > 1 and model != "unicornn"):
        return {}
    loop = Case(model, LOOP, written(pairs[model]), "")
    ours = Case(model, COMPILED, library(pairs[model], "auto"), "", loop.name)
    return {case.name: case for case in (loop, ours)}


def cases(shape: Shape) -> dict[str, Case]:
    """The cases of a shape by name."""
    return {case.name: case for case in (LINEAR if shape.linear else NETWORKS)}
