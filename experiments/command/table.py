"""The periodic table: fields in rows, solvers in columns, and in each cell what the literature calls the pairing."""

from __future__ import annotations

import inspect
import math
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import neuralosc
import solvers
from experiments.tables import markdown as as_markdown
from experiments.tasks.adding import Adding
from neuralosc import SequenceModel, fields
from solvers.base.pairing import lacking
from solvers.protocol import STRUCTURES

#: Columns beside the solvers of published networks: a method of high order, a symplectic one, an adaptive one.
REFERENCE = ("rk4", "stormer_verlet", "dopri5")

WORKS, FAILS = "·", "–"
#: Characters between two columns.
GAP = 3

# What a cell is verified with.
HIDDEN, LENGTH, BATCH = 8, 10, 16


@dataclass(frozen=True)
class Row:
    """A vector field.

    Attributes:
        name: what the row is called.
        make: a network of that field from (input_size, hidden_size), under a solver of its own.
        published: what the literature calls it under a solver, by solver.
    """

    name: str
    make: Callable[[int, int], Any]
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def field(self) -> neuralosc.VectorField:
        """One such field, to ask which solvers work with it."""
        with torch.random.fork_rng(devices=[]):
            network = self.make(2, HIDDEN)
        return next(part for part in network.modules() if isinstance(part, neuralosc.VectorField))

    def lacks(self, solver: str) -> tuple[str, ...]:
        """The structures that the solver needs and the field does not declare; none where the pairing works."""
        return lacking(self.field, solvers.get(solver))

    def verify(self, solver: str) -> str:
        """What the pairing cannot do of what `_failure` asks of it; empty if all is well."""
        try:
            return _failure(self, solver)
        except Exception as error:  # whatever fails, the other cells are still to be verified
            return f"{type(error).__name__}: {' '.join(str(error).split())}"


class _Own(neuralosc.VectorField):
    """A field that is `forward` alone."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.V, self.W = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def drive(self, x: Tensor) -> Tensor:
        u: Tensor = self.V(x)
        return u

    def forward(self, t: solvers.Time, state: Tensor, u: Tensor) -> Tensor:
        (h,) = state.unbind(-2)
        return (torch.tanh(self.W(h) + u) - h).unsqueeze(-2)


class _OwnEnergy(neuralosc.Hamiltonian):
    """A field that is an energy alone, which does not separate."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.V, self.w = nn.Linear(input_size, hidden_size), nn.Parameter(torch.rand(hidden_size))

    def drive(self, x: Tensor) -> Tensor:
        u: Tensor = self.V(x)
        return u

    def energy(self, state: Tensor, u: Tensor) -> Tensor:
        q, p = state.unbind(-2)
        return (p.square() * (1 + self.w * q.square()) / 2 + q.square() / 2 - u * q).sum(-1)


def rows() -> list[Row]:
    """The fields of the named networks, those of the library that no network is named after, and one's own."""
    cards: dict[str, list[neuralosc.ModelCard]] = {}
    for card in neuralosc.models():
        if card.field is not None:
            cards.setdefault(card.field, []).append(card)
    named = [Row(name, _made(group[0].name), _published(group)) for name, group in cards.items()]
    unnamed = [Row(name, _layer(kind)) for name, kind in _whole_fields() if name not in cards]
    custom = [Row("your own forward", _layer(_Own)), Row("your own energy", _layer(_OwnEnergy))]
    return [*named, *unnamed, *custom]


def _made(name: str) -> Callable[[int, int], Any]:
    return lambda inputs, hidden: neuralosc.make(name, input_size=inputs, hidden_size=hidden)


def _layer(kind: Callable[[int, int], neuralosc.VectorField]) -> Callable[[int, int], Any]:
    def make(inputs: int, hidden: int) -> neuralosc.ContinuousRNN:
        field = kind(inputs, hidden)
        return neuralosc.ContinuousRNN(field, _fitting("rk4", field), dt=0.1)

    return make


def _fitting(solver: str, vector_field: neuralosc.VectorField) -> str:
    """The solver, or where it does not work with a field the first one that does."""
    able = solvers.compatible(vector_field)
    return solver if solver in able else able[0]


def _whole_fields() -> Iterator[tuple[str, type[neuralosc.VectorField]]]:
    """The fields of the library that are complete once their sizes are known."""
    for name in fields.__all__:
        kind = getattr(fields, name)
        required = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
        if [p.name for p in required] == ["input_size", "hidden_size"] and kind is not neuralosc.Hamiltonian:
            yield name, kind


def _published(cards: Sequence[neuralosc.ModelCard]) -> dict[str, tuple[str, ...]]:
    """The published names of one field, by solver."""
    titles: dict[str, tuple[str, ...]] = {}
    for card in cards:
        default = () if card.solver is None else ((card.solver, card.title),)
        for solver, title in (*default, *card.also.items()):
            name = solvers.get(solver).name
            titles[name] = (*titles.get(name, ()), title)
    return titles


def columns(names: Sequence[str] | None = None) -> list[str]:
    """Solvers by name: those given ("all": every one), else those the literature has used, and `REFERENCE`.

    Raises:
        UnknownNameError: no solver has that name.
    """
    if names and "all" not in names:
        return list(dict.fromkeys(solvers.get(name).name for name in names))
    used = {*REFERENCE, *(solver for row in rows() for solver in row.published)}
    return [name for name in solvers.SOLVERS if names or name in used]


def tables(names: Sequence[str] | None = None, width: int | None = None) -> tuple[list[Table], list[str]]:
    """The periodic table, in as many parts as keep words whole in so many characters, and what its marks mean.

    See `columns`; without a width it has one part, to be written as Markdown.
    """
    chosen, lines = columns(names), rows()
    letters: dict[str, str] = {}
    grid = {name: [_cell(row, name, letters) for row in lines] for name in chosen}
    headings = {name: f"`{name}`" if width is None else name.replace("_", "_\n") for name in chosen}
    needed = {name: _longest(headings[name], *grid[name]) for name in chosen}
    first = _longest(*(row.name.replace(" ", "_") for row in lines))
    parts: list[Table] = []
    for group in _groups(needed, math.inf if width is None else width - first - GAP):
        table = Table(title="fields and solvers", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.pad_edge = False
        table.add_column("field", width=first, no_wrap=True, style="bold")
        for name in group:
            table.add_column(headings[name], width=needed[name])
        for number, row in enumerate(lines):
            heading = row.name if width is not None else _code(row.name)
            table.add_row(heading, *(Text(grid[name][number]) for name in group))
        parts.append(table)
    notes = [f"{letter} needs a {structure} field: {STRUCTURES[structure]}" for structure, letter in letters.items()]
    return parts, [f"{WORKS} works, and nobody has named it", *notes]


def markdown(names: Sequence[str] | None = None) -> str:
    """The periodic table as Markdown."""
    (part,), notes = tables(names)
    return "\n".join((as_markdown(part), "", *(f"- {note}" for note in notes)))


def _longest(*texts: str) -> int:
    return max(len(word) for text in texts for word in text.split())


def _groups(needed: Mapping[str, int], room: float) -> list[list[str]]:
    """The columns that fit beside each other, with a gap between them."""
    groups: list[list[str]] = [[]]
    left = room
    for name, width in needed.items():
        if groups[-1] and width + GAP > left:
            groups.append([])
            left = room
        groups[-1].append(name)
        left -= width + GAP
    return groups


def _code(name: str) -> str:
    prefix, _, what = name.rpartition(" ")
    return f"{prefix} `{what}`".strip()


def _cell(row: Row, solver: str, letters: dict[str, str]) -> str:
    """The content of a cell; a reason that is met for the first time gets the next letter."""
    lacking = row.lacks(solver)
    if not lacking:
        return ", ".join(row.published.get(solver, (WORKS,)))
    marks = [letters.setdefault(structure, string.ascii_lowercase[len(letters)]) for structure in lacking]
    return f"{FAILS} {', '.join(marks)}"


def verified(names: Sequence[str] | None, report: Callable[[str, float], None]) -> Iterator[tuple[str, int, list[str]]]:
    """Run every cell that works, row by row: the name of the row, its number of such cells, a line for each failure."""
    chosen, lines = columns(names), rows()
    for number, row in enumerate(lines):
        able = [solver for solver in chosen if not row.lacks(solver)]
        failed = []
        for place, solver in enumerate(able):
            report(f"{row.name}, {solver}", (number + place / len(able)) / len(lines))
            reason = row.verify(solver)
            failed += [f"{row.name} under {solver}: {reason}"] if reason else []
        yield row.name, len(able), failed


def _failure(row: Row, solver: str) -> str:
    """Forward, backward, to another solver and back, and an optimisation step, on sequences of the adding problem.

    The other is dopri5, but for fields that do not go with it.
    """
    torch.manual_seed(0)
    network = row.make(Adding.input_size, HIDDEN)
    readout = neuralosc.Readout(network.output_size, Adding.output_size)
    method = solvers.get(solver)
    # A cell works or not whatever the tolerance; at its own a method of second order takes thousands of steps.
    method = method.with_options(rtol=1e-4, atol=1e-6) if method.adaptive else method
    model = SequenceModel(network.with_solver(method), readout).double()
    x, y = (part.double() for part in Adding(LENGTH, BATCH, 1, 1).splits()[0][:])

    def loss(model: SequenceModel) -> Tensor:
        # Networks with noise or dropout draw the same each time.
        torch.manual_seed(1)
        return nn.functional.mse_loss(model(x), y)

    # Those of the network alone: the read-out could lower the loss by itself.
    parameters = [p for p in model.rnn.parameters() if p.requires_grad]
    recorded = loss(model)
    before, gradients = recorded.detach(), torch.autograd.grad(recorded, parameters, allow_unused=True)
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    steepness = sum(float(g.square().sum()) for _, g in pairs)
    if not (torch.isfinite(before) and 0 < steepness < float("inf")):
        return f"the loss is {float(before):g}, the square of its gradient {steepness:g}"
    other = _fitting("dopri5", row.field)
    swapped = network.with_solver(other)
    back = swapped.with_solver(method)
    with torch.no_grad():
        if not torch.isfinite(loss(SequenceModel(swapped, readout))):
            return f"under {other} the loss is not finite"
        if not torch.equal(loss(SequenceModel(back, readout)), before):
            return f"after a swap to {other} and back the loss is another one"
    return _step(lambda: loss(model), pairs, float(before), steepness)


@torch.no_grad()
def _step(loss: Callable[[], Tensor], pairs: Sequence[tuple[Tensor, Tensor]], before: float, steepness: float) -> str:
    """One step of steepest descent that promises a hundredth of the loss, or a half, a quarter .. of that."""
    rate, after = 0.01 * before / steepness, before
    for _ in range(16):
        for parameter, gradient in pairs:
            parameter.sub_(rate * gradient)
        after = float(loss())
        if after < before:
            return ""
        for parameter, gradient in pairs:
            parameter.add_(rate * gradient)
        rate /= 2
    return f"a step of steepest descent takes the loss from {before:.6g} to {after:.6g}"
