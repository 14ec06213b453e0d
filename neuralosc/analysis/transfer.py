"""Trained under one step, solved by another: what the answers of a network owe to its solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from neuralosc.analysis.drawing import INK, PALETTE
from neuralosc.analysis.learned import Evidence, agreement
from neuralosc.analysis.learned import verdict as rule_on
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Paired, Samples, Score, spread
from neuralosc.analysis.subject import Exact, Run, distance, exact, network, precise, run, under, watched
from neuralosc.analysis.subject import without_solver as unsolved
from neuralosc.layers.sequence_model import SequenceModel
from solvers.base.solver import get
from solvers.errors import InputError, NumericalError, PairingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Solvers that are tried where nobody says which.
SOLVERS = ("semi_implicit_euler", "imex_euler", "stormer_verlet", "euler", "rk4")

#: How much finer its own step is made at least, to see its states approach the exact ones.
FINER = 4

#: The column of the equation solved exactly.
EXACT = "exact"


@dataclass(frozen=True)
class Cell:
    """One network under one solver.

    Attributes:
        row: what it was trained under.
        seed: which of the trainings.
        solver: what it is solved by.
        substeps: steps per interval; 0 of what chooses its own.
        score: the mean over the sequences; None where it failed.
        paired: against the step that it was trained with.
        agreement: of its answers with those of the step that it was trained with.
        deviation: of its states from the exact ones, relative RMS; None without them.
        own: whether this is the step it was trained with.
        why: why there are no figures; empty if there are.
    """

    row: str
    seed: int
    solver: str
    substeps: int
    score: float | None = None
    paired: Paired | None = None
    agreement: float | None = None
    deviation: float | None = None
    own: bool = False
    why: str = ""

    @property
    def column(self) -> str:
        """What the table calls its solver."""
        return self.solver if self.substeps == 0 else f"{self.solver} x{self.substeps}"


@dataclass(frozen=True)
class Transfer(Result):
    """What `transfer` found.

    Attributes:
        cells: one for each training, solver and refinement.
        verdicts: of each row, the first of its trainings.
        score: what the cells are.
        samples: how many sequences.
    """

    cells: tuple[Cell, ...]
    verdicts: Mapping[str, Verdict]
    score: str
    samples: int

    heading: ClassVar[str] = "Trained under one solver, solved by another"

    @property
    def columns(self) -> tuple[str, ...]:
        """The solvers in their order, each from its coarsest step to its finest, and the exact solution."""
        place = {name: i for i, name in enumerate(dict.fromkeys(cell.solver for cell in self.cells))}
        place[EXACT] = len(place)
        ordered = sorted(self.cells, key=lambda cell: (place[cell.solver], cell.substeps))
        return tuple(dict.fromkeys(cell.column for cell in ordered))

    @property
    def size(self) -> tuple[float, float]:
        """As wide and high as its cells need."""
        return 3.6 + 0.72 * len(self.columns), 2.2 + 0.55 * len({cell.row for cell in self.cells})

    def mean(self, row: str, column: str) -> tuple[float, float] | None:
        """Mean over trainings and their standard deviation (NaN of one); None where none succeeded."""
        found = [c.score for c in self.cells if (c.row, c.column) == (row, column) and c.score is not None]
        if not found:
            return None
        values = torch.tensor(found, dtype=torch.float64)
        return float(values.mean()), spread(values)

    def rows(self) -> Sequence[Row]:
        """A row for each cell."""
        return [
            {
                "trained under": cell.row,
                "seed": cell.seed,
                "solved by": f"{cell.column} (own)" if cell.own else cell.column,
                self.score: cell.score,
                "against own": None if cell.paired is None else cell.paired.difference,
                "low": None if cell.paired is None else cell.paired.low,
                "high": None if cell.paired is None else cell.paired.high,
                "agreement": cell.agreement,
                "states off by": cell.deviation,
                "why not": cell.why,
            }
            for cell in self.cells
        ]

    def notes(self) -> Sequence[str]:
        """A verdict for each row, where there are several."""
        return [f"{row}: {said}" for row, said in self.verdicts.items()] if len(self.verdicts) > 1 else []

    def draw(self, figure: Figure) -> None:
        """The matrix: rows are trainings, columns solvers; framed what they were trained under."""
        from matplotlib.patches import Rectangle

        rows, columns = list(dict.fromkeys(cell.row for cell in self.cells)), self.columns
        axes: Any = figure.subplots()
        means = [[self.mean(row, column) for column in columns] for row in rows]
        values = [[float("nan") if cell is None else cell[0] for cell in line] for line in means]
        image = axes.imshow(values, aspect="auto", cmap="viridis")
        low, high = image.get_clim()
        for i, line in enumerate(means):
            for j, cell in enumerate(line):
                text = "-" if cell is None else f"{cell[0]:.3g}" + ("" if cell[1] != cell[1] else f"\n+- {cell[1]:.2g}")
                dark = cell is not None and cell[0] < (low + high) / 2
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
        for row, column in {(cell.row, cell.column) for cell in self.cells if cell.own}:
            at = (columns.index(column) - 0.5, rows.index(row) - 0.5)
            axes.add_patch(Rectangle(at, 1, 1, fill=False, edgecolor=PALETTE[1], linewidth=2.5, zorder=3))
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(False)
        axes.set(xlabel="solved by", ylabel="trained under", title=f"{self.score} ({self.samples} sequences)")
        figure.colorbar(image, ax=axes, label=self.score)


def transfer(
    models: Any,
    data: Any,
    solvers: Sequence[str] = SOLVERS,
    substeps: Sequence[int] = (1, 2, 4),
    *,
    score: str | Score | None = None,
    samples: int | None = 512,
    seed: int = 0,
    progress: bool | None = None,
) -> Transfer:
    """Does what a network answers depend on the solver it was trained with?

    Every network is solved by its own step, by each solver at each refinement of its step, and exactly; scores are
    compared sequence by sequence, since all see the same ones.

    The verdict of each row is that of `neuralosc.analysis.learned`: an equation was learnt if the exact solution
    keeps all but 5 % of the gain over the best constant answer, a step if it loses more, no claim if the interval
    holds both or the evidence is not enough. Of several rows the verdict of all says how many of each.

    Args:
        models: a `SequenceModel`; or by name (the solver they were trained under, say) models, or sequences of them,
            which differ in the seed of their training and give the spread.
        data: samples with targets, as `Samples.of` takes them.
        solvers: names of fixed-step methods to solve by; one that does not fit a field has no figures, and why.
        substeps: how often each step of the training is divided.
        score: "accuracy", "mse" or a `Score`; None for that of the targets.
        samples: how many sequences, drawn by `seed`; None for all.
        seed: draws them.
        progress: show a bar; None where somebody reads along.

    Raises:
        InputError: data without targets, or no models.

    Source: Ott, Katiyar, Hennig & Tiemann, ICLR 2021; Queiruga et al., arXiv 2008.02389.
    """
    chosen = Samples.of(data).double().take(samples, seed)
    judged = Score.of(score, chosen.targets)
    trained = _trained(models)
    cells: list[Cell] = []
    verdicts: dict[str, Verdict] = {}
    for name, number, model in watched(trained, "networks", progress):
        row = _Row(name, number, model, chosen, judged)
        cells += row.cells(solvers, substeps)
        if number == 0:
            verdicts[name] = row.verdict
    whole = next(iter(verdicts.values())) if len(verdicts) == 1 else _of_all(verdicts)
    return Transfer(tuple(cells), verdicts, judged.name, len(chosen), verdict=whole, of="flow, map")


def _trained(models: Any) -> list[tuple[str, int, SequenceModel]]:
    if isinstance(models, nn.Module):
        rnn = network(models)
        models = {getattr(getattr(rnn, "solver", None), "name", type(rnn).__name__): models}
    if not isinstance(models, Mapping) or not models:
        raise InputError(f"models is {type(models).__name__}, expected a SequenceModel or models by name, one at least")
    found = []
    for name, group in models.items():
        for number, model in enumerate([group] if isinstance(group, nn.Module) else group):
            if not isinstance(model, SequenceModel):
                raise InputError(f"models[{name!r}] has a {type(model).__name__}, expected a neuralosc.SequenceModel")
            found.append((str(name), number, model))
    return found


class _Row:
    """One training under all solvers."""

    def __init__(self, name: str, seed: int, model: SequenceModel, samples: Samples, score: Score) -> None:
        self.name, self.seed, self.samples, self.score = name, seed, samples, score
        self.why = unsolved(model)
        self.model = precise(model)
        self.verdict = no_claim(self.why, "a network without a solver has no step that could be changed")

    def cells(self, solvers: Sequence[str], substeps: Sequence[int]) -> list[Cell]:
        """Its own step, every other, and the exact solution."""
        if self.why:
            return [Cell(self.name, self.seed, self.name, 0, own=True, why=self.why)]
        rnn: Any = self.model.rnn
        name, count = rnn.solver.name, 0 if rnn.solver.adaptive else 1
        try:
            own = run(self.model, self.samples)
        except NumericalError as error:
            self.verdict = no_claim(f"its own step fails ({error})", "a network must run to be looked at")
            return [Cell(self.name, self.seed, name, count, own=True, why=str(error))]
        reference = exact(self.model, self.samples)
        self.scores = self._scored(own)
        found = [replace(self._cell(name, count, own, own, reference), own=True)]
        deviations = [] if reference.run is None else [found[0].deviation or 0.0]
        for name in dict.fromkeys([rnn.solver.name, *solvers]):
            if get(name).adaptive:
                continue
            for count in substeps:
                if name == rnn.solver.name and count == 1:
                    continue
                cell = self._under(name, count, rnn.substeps, own, reference)
                found.append(cell)
                if name == rnn.solver.name and cell.deviation is not None:
                    deviations.append(cell.deviation)
        if reference.run is not None:
            found.append(self._cell(EXACT, 0, reference.run, own, reference))
        if reference.run is not None and FINER not in substeps and not rnn.solver.adaptive:
            # The rule asks whether finer steps approach the exact states, whatever the table shows.
            cell = self._under(rnn.solver.name, FINER, rnn.substeps, own, reference)
            deviations += [] if cell.deviation is None else [cell.deviation]
        self.verdict = rule_on(self._evidence(own, reference, deviations), f"the network trained under {self.name}")
        return found

    def _under(self, name: str, count: int, per_interval: int, own: Run, reference: Exact) -> Cell:
        try:
            found = run(under(self.model, name, per_interval * count), self.samples)
        except (PairingError, NumericalError, InputError) as error:
            return Cell(self.name, self.seed, name, count, why=str(error))
        return self._cell(name, count, found, own, reference)

    def _cell(self, name: str, count: int, found: Run, own: Run, reference: Exact) -> Cell:
        scores = self._scored(found)
        deviation = None
        if reference.run is not None:
            deviation = distance(found, reference.run, self.samples)
        paired = Paired.of(self.scores, scores)
        return Cell(
            self.name, self.seed, name, count, float(scores.nanmean()), paired, self._agreement(found, own), deviation
        )

    def _scored(self, found: Run) -> Tensor:
        assert found.answers is not None
        return self.score.each(found.answers, self.samples.targets, self.samples.valid)

    def _agreement(self, found: Run, own: Run) -> float:
        assert found.answers is not None and own.answers is not None
        return agreement(own.answers, found.answers, self.score.name == "accuracy", self.samples.valid)

    def _evidence(self, own: Run, reference: Exact, deviations: Sequence[float]) -> Evidence:
        assert own.answers is not None
        guess = self.score.guess(own.answers, self.samples.targets, self.samples.valid)
        if reference.run is None:
            return Evidence(self.scores, None, guess, self.score, float("nan"), deviations, reference.why)
        scores, agreed = self._scored(reference.run), self._agreement(reference.run, own)
        return Evidence(self.scores, scores, guess, self.score, agreed, deviations, reference.why)


def _of_all(verdicts: Mapping[str, Verdict]) -> Verdict:
    rule = "the verdicts of the rows, counted"
    claims = {name: said for name, said in verdicts.items() if said.claim}
    steps = [name for name, said in claims.items() if said.answer == "step"]
    equations = [name for name in claims if name not in steps]
    numbers = {"rows": len(verdicts), "equations": len(equations), "steps": len(steps)}
    if not claims:
        return no_claim("of none of the rows anything can be said", rule, numbers)
    parts = [(equations, "the equation was learnt under"), (steps, "the step was learnt under")]
    said = "; ".join(f"{words} {', '.join(names)}" for names, words in parts if names)
    left = [name for name in verdicts if name not in claims]
    rest = f"; no claim of {', '.join(left)}" if left else ""
    answer = "mixed" if steps and equations else "step" if steps else "equation"
    return Verdict(f"Of {len(verdicts)} trainings {said}{rest}.", numbers, rule, answer)
