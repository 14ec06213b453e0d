"""Which path each layer of a network takes, why, what it keeps, and how far it is from the fastest there could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import solvers
from neuralosc.layers.solution import run
from solvers.base.pairing import remark
from solvers.compiled.products import shortest
from solvers.run.audit import SavedMemory

if TYPE_CHECKING:
    from neuralosc.layers.inputs import Lengths
    from neuralosc.layers.solution import Solution
    from neuralosc.layers.stack import Stack


@dataclass(frozen=True)
class LayerPath:
    """What one layer, or one direction of it, does in a training step.

    Attributes:
        name: number of the layer, with "_rev" the reverse direction.
        field: its vector field.
        path: of `solvers.Record`: "compiled", "torch", "scan", "plain", ..
        reason: why not a faster one; empty for the compiled path.
        saved: bytes kept for the backward pass, parameters not counted.
        units: the same in units of one number for each time, sample and channel.
        seconds: of forward and backward of the last output's mean square; of forward alone where nothing is trained.
        floor: seconds of the matrix products in it alone; None where it has none, or they are not known.
        source: the generated code.
        remark: what there is to know of the pairing of field and solver; empty if nothing.
    """

    name: str
    field: str
    path: str
    reason: str
    saved: int
    units: float
    seconds: float
    floor: float | None
    source: str
    remark: str = ""

    @property
    def floors(self) -> float | None:
        """The time as a multiple of the floor."""
        return None if self.floor is None else self.seconds / self.floor


@dataclass(frozen=True)
class Explanation:
    """A line for every layer; printing it shows a table.

    Attributes:
        title: what was run.
        layers: from the first to the last.
        sources: show the generated code too.
    """

    title: str
    layers: tuple[LayerPath, ...]
    sources: bool = False

    def __str__(self) -> str:
        head = (
            f"{'layer':<6}{'field':<22}{'path':<10}{'saved':>12}{'T B H':>8}{'step':>12}{'products':>12}{'floors':>8}"
        )
        lines = [self.title, head]
        for layer in self.layers:
            floor = "-" if layer.floor is None else f"{1e3 * layer.floor:.2f} ms"
            floors = "-" if layer.floors is None else f"{layer.floors:.2f}"
            lines.append(
                f"{layer.name:<6}{layer.field:<22}{layer.path:<10}{layer.saved / 2**20:>8.2f} MiB{layer.units:>8.2f}"
                f"{1e3 * layer.seconds:>9.2f} ms{floor:>12}{floors:>8}"
            )
            lines += [f"      not faster: {layer.reason}"] if layer.reason else []
            lines += [f"      note: {layer.remark}"] if layer.remark else []
        if self.sources:
            different: dict[str, str] = {}
            for layer in self.layers:
                different.setdefault(layer.source, layer.name)
            lines += [f"\nlayer {name}:\n{source}" for source, name in different.items() if source]
        return "\n".join(lines)


def explain(
    rnn: Stack,
    x: Tensor,
    state: Tensor | None = None,
    timespans: Tensor | None = None,
    lengths: Lengths | None = None,
    source: bool = False,
    show: bool = True,
) -> Explanation:
    """See `ContinuousRNN.explain`."""
    with torch.random.fork_rng(devices=[]):
        solution = run(rnn, x, state, timespans, lengths, positions_only=False)
        layers = tuple(_layer(rnn, i, solution) for i in range(len(rnn.fields)))
    batch, length = x.shape[:2]
    title = (
        f"batch {batch}, {length} samples x {rnn.substeps} steps, hidden {rnn.hidden_size}, {x.dtype}, solver "
        f"{rnn.solver.name!r}, gradient {rnn.gradient.name!r}, backend {solvers.get_backend()!r}, "
        f"threads {torch.get_num_threads()}"
    )
    explanation = Explanation(title, layers, source)
    if show:
        print(explanation)
    return explanation


def _layer(rnn: Stack, index: int, solution: Solution) -> LayerPath:
    record = solution.trajectories[index].record
    saved, seconds = _measured(rnn, index, solution)
    x = solution.inputs[index]
    units = saved / max(1, x.shape[0] * x.shape[1] * rnn.hidden_size * x.element_size())
    floor = record.products.seconds(x.dtype, device=x.device) if record.products else None
    name = f"{index // rnn.directions}{'_rev' if solution.direction(index).reverse else ''}"
    field = type(rnn.layer(index)).__name__
    noted = remark(rnn.layer(index), rnn.solver)
    return LayerPath(name, field, record.path, record.reason, saved, units, seconds, floor, record.source, noted)


def _measured(rnn: Stack, index: int, solution: Solution) -> tuple[int, float]:
    """Bytes that a training step of a layer keeps, and the shortest time of three such steps."""
    x, start, spans = solution.inputs[index].detach(), solution.start[index].detach(), solution.spans(index).detach()
    uniform = spans.dim() == 1 and bool((spans == 1).all())
    wanted = [p for p in rnn.layer(index).parameters() if p.requires_grad]

    def loss() -> Tensor:
        return rnn.run_from(index, x, start, None if uniform else spans).positions()[:, -1:].square().mean()

    def step() -> None:
        value = loss()
        if value.requires_grad:
            torch.autograd.grad(value, wanted, allow_unused=True)

    # What a backward pass computes again and keeps meanwhile is not kept until then.
    with SavedMemory((x, *rnn.layer(index).parameters())) as memory:
        loss()
    return memory.total, shortest(step, 3, x.device)
