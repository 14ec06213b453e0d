"""What a change of solver takes away: the equation, or the read-out's fit to the trajectories of one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralosc.analysis.drawing import GREY, PALETTE
from neuralosc.analysis.learned import FEWEST
from neuralosc.analysis.results import Result, Row, Verdict, no_claim
from neuralosc.analysis.samples import Paired, Samples, Score, spread
from neuralosc.analysis.subject import continuous, exact, precise, run, under, watched, without_solver
from neuralosc.files import descriptions
from neuralosc.layers.embedding import Embedding
from neuralosc.layers.sequence_model import SequenceModel
from solvers.errors import InputError, NumericalError, PairingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Weight of the squared entries of a read-out that is fitted to standardised features, beside the mean loss.
RIDGE = 1e-4

#: Steps of L-BFGS, which classes need; numbers are fitted at once.
STEPS = 200

RULE = (
    "with every read-out fitted anew on training sequences under the solver it is then used with: of what training "
    "gave the states the exact solution keeps (exact - untrained exact) / (own - untrained own). Claimed of "
    f"{FEWEST} test sequences and more, if trained states are better than untrained ones beyond chance (p below 0.01 "
    "of the paired difference)"
)


@dataclass(frozen=True)
class Control:
    """One solver.

    Attributes:
        solver: what the states were solved by.
        kept: the score with the read-out as it was trained.
        refitted: with a read-out fitted to its states.
        untrained: with a read-out fitted to states of untrained weights; mean over the seeds.
        spread: standard deviation of that over the seeds; NaN of one.
        why: why there are no figures; empty if there are.
    """

    solver: str
    kept: float | None = None
    refitted: float | None = None
    untrained: float | None = None
    spread: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Controls(Result):
    """What `controls` found.

    Attributes:
        lines: a solver each; the first is that of the training.
        score: what is judged.
        samples: sequences that the read-outs were fitted to, and `tested` those they were judged on.
        tested: as said.
    """

    lines: tuple[Control, ...]
    score: str
    samples: int
    tested: int

    heading: ClassVar[str] = "With the read-out fitted anew"

    def rows(self) -> Sequence[Row]:
        """A row for each solver."""
        return [
            {
                "solved by": line.solver,
                "as trained": line.kept,
                "refitted": line.refitted,
                "untrained, fitted": line.untrained,
                "+-": line.spread,
                "why not": line.why,
            }
            for line in self.lines
        ]

    def draw(self, figure: Figure) -> None:
        """Three bars for each solver."""
        axes: Any = figure.subplots()
        known = [line for line in self.lines if line.kept is not None]
        bars = (("kept", "read-out as trained", PALETTE[0]), ("refitted", "read-out fitted anew", PALETTE[2]))
        for i, (name, label, colour) in enumerate((*bars, ("untrained", "untrained states, read-out fitted", GREY))):
            places = [j + 0.27 * (i - 1) for j in range(len(known))]
            values = [getattr(line, name) for line in known]
            drawn = axes.bar(places, values, width=0.25, color=colour, label=label)
            axes.bar_label(drawn, fmt="%.3g", fontsize=8)
        axes.set_xticks(range(len(known)), [line.solver for line in known])
        axes.set(ylabel=f"{self.score} ({self.tested} sequences)", xlabel="solved by")
        axes.margins(y=0.15)
        axes.legend(loc="lower left", fontsize=8)


def controls(
    model: SequenceModel,
    train: Any,
    test: Any,
    solvers: Sequence[str] = (),
    *,
    untrained: Callable[[int], SequenceModel] | None = None,
    seeds: int = 3,
    score: str | Score | None = None,
    samples: int | None = 1024,
    seed: int = 0,
    progress: bool | None = None,
) -> Controls:
    """How much of a loss under another solver is the equation's, and how much the read-out's?

    A linear read-out is fitted anew to what the pooling gives under each solver, from standardised features: for
    classes by the cross-entropy, for numbers by least squares, both with a ridge. The same of untrained weights says
    what states give that have learnt nothing.

    Args:
        model: network and read-out.
        train: samples with targets to fit read-outs to.
        test: samples with targets to judge them on, of other sequences.
        solvers: names of others beside its own and the exact solution.
        untrained: makes an untrained model of a seed; None for one of the same configuration, which a network of a
            name has.
        seeds: how many of them.
        score: "accuracy", "mse" or a `Score`; None for that of the targets.
        samples: how many sequences of each set, drawn by `seed`; None for all.
        seed: draws them.
        progress: show a bar; None where somebody reads along.

    Raises:
        InputError: data without targets, answers at every sample, or a network of which no untrained one can be made.
    """
    if not isinstance(model, SequenceModel) or model.readout.pooling.every:
        given = type(model).__name__ if not isinstance(model, SequenceModel) else "a model that answers at every sample"
        raise InputError(f"model is {given}, expected a neuralosc.SequenceModel with one answer for each sequence")
    fitted, tested = (Samples.of(data).double().take(samples, seed) for data in (train, test))
    judged = Score.of(score, tested.targets)
    why = without_solver(model)
    if why:
        return Controls((), judged.name, len(fitted), len(tested), verdict=no_claim(why, RULE), of="map")
    fresh = untrained_of(model) if untrained is None else untrained
    others = [precise(fresh(number)) for number in range(seeds)]
    study = _Study(precise(model), others, fitted, tested, judged)
    trained = continuous(model, one_way=False).solver.name
    names = [trained, "exact", *(name for name in solvers if name != trained)]
    lines = [study.line(name, own=place == 0) for place, name in enumerate(watched(names, "solvers", progress))]
    said = study.verdict(lines)
    return Controls(tuple(lines), judged.name, len(fitted), len(tested), verdict=said, of="flow, map")


def untrained_of(model: SequenceModel) -> Callable[[int], SequenceModel]:
    """Makes, of a seed, a model of the same configuration with weights that were just drawn.

    Raises:
        InputError: its network has a field of one's own, of which no other can be made.
    """
    rnn: Any = model.rnn
    if rnn.config is None:
        raise InputError(
            f"{type(rnn).__name__} has a field of one's own, of which no untrained one can be made: give untrained=, a "
            "function of a seed that returns a SequenceModel"
        )

    def make(seed: int) -> SequenceModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = descriptions.network(rnn.config, len(rnn.state_dict()))
            own = model.embedding
            embedding = None if own is None else Embedding(own.tokens, own.features, own.dropout)
        made = SequenceModel(network, model.readout, model.collator, model.input_scaler, model.target_scaler, embedding)
        return made.eval()

    return make


class _Study:
    """States of trained and untrained weights under some solvers, and read-outs fitted to them."""

    def __init__(
        self, model: SequenceModel, others: Sequence[SequenceModel], fitted: Samples, tested: Samples, score: Score
    ) -> None:
        self.model, self.others, self.fitted, self.tested, self.score = model, others, fitted, tested, score
        self.why = ""
        self.scores: dict[tuple[str, str], Tensor] = {}

    def line(self, name: str, own: bool) -> Control:
        """One solver."""
        try:
            if name == "exact":
                self.exact = exact(self.model, self.tested)
                self.why = self.exact.why
                if self.why:
                    return Control(name, why=self.why)
            model = self._under(self.model, name, own)
            kept = self._scored(model, model.readout)
            refitted = self._refitted(model)
            untrained = [self._refitted(self._under(other, name, own)) for other in self.others]
        except (NumericalError, PairingError) as error:
            return Control(name, why=str(error))
        self.scores[name, "refitted"] = refitted
        self.scores[name, "untrained"] = torch.stack(untrained).mean(0)
        means = torch.stack([scores.nanmean() for scores in untrained])
        values = (float(kept.nanmean()), float(refitted.nanmean()), float(means.mean()), spread(means))
        return Control(name, *values)

    def _under(self, model: SequenceModel, name: str, own: bool) -> SequenceModel:
        if own and model is self.model:
            return model
        if name == "exact":
            return self.exact.under(model)
        rnn = continuous(self.model, one_way=False)
        return under(model, name, rnn.substeps, **(rnn.solver.options if own else {}))

    def _refitted(self, model: SequenceModel) -> Tensor:
        """Scores of the test set with a read-out fitted to the training set."""
        with torch.no_grad():
            features = self._features(model, self.fitted)
        classes = not self.fitted.targets.is_floating_point()
        outputs = model.readout.answers
        fit = _classes if classes else _numbers
        y = self.fitted.targets if classes else model.scaled(self.fitted.targets.reshape(len(features), -1))
        weight, bias = fit(features, y, outputs)
        with torch.no_grad():
            answers = self._features(model, self.tested) @ weight + bias
            if model.target_scaler is not None:
                answers = model.target_scaler.inverse(answers)
            return self.score.each(answers, self.tested.targets, self.tested.valid)

    def _features(self, model: SequenceModel, samples: Samples) -> Tensor:
        outputs = run(model, samples).outputs
        pooled: Tensor = model.readout.pooling(outputs, samples.valid)
        return pooled

    @torch.no_grad()
    def _scored(self, model: SequenceModel, readout: nn.Module) -> Tensor:
        answers = run(model, self.tested).answers
        assert answers is not None
        return self.score.each(answers, self.tested.targets, self.tested.valid)

    def verdict(self, lines: Sequence[Control]) -> Verdict:
        """What of the training is in the equation."""
        own, solved = lines[0], lines[1]
        numbers: dict[str, float] = {"sequences": len(self.tested)}
        if self.why or own.refitted is None or solved.refitted is None:
            return no_claim(self.why or own.why or solved.why, RULE, numbers)
        assert own.untrained is not None and solved.untrained is not None
        assert own.kept is not None and solved.kept is not None
        numbers |= {"own": own.kept, "exact": solved.kept, "own refitted": own.refitted}
        numbers |= {
            "exact refitted": solved.refitted,
            "untrained own": own.untrained,
            "untrained exact": solved.untrained,
        }
        if len(self.tested) < FEWEST:
            return no_claim(f"{len(self.tested)} test sequences are too few, {FEWEST} are needed", RULE, numbers)
        learnt = Paired.of(self.scores[own.solver, "untrained"], self.scores[own.solver, "refitted"])
        gained = self.score.better * (own.refitted - own.untrained)
        numbers |= {"p": learnt.p, "gained": gained}
        if not (gained > 0 and learnt.apart):
            return no_claim("a read-out fits trained states no better than untrained ones", RULE, numbers)
        share = self.score.better * (solved.refitted - solved.untrained) / gained
        numbers["share kept"] = share
        sentence = (
            f"The equation carries {share:.0%} of what training gave the states: {self.score.name} "
            f"{solved.refitted:.4g} solved exactly with the read-out fitted anew ({solved.kept:.4g} as trained), "
            f"{own.refitted:.4g} under its own step ({own.kept:.4g}), {solved.untrained:.4g} and {own.untrained:.4g} "
            "of untrained weights"
        )
        return Verdict(f"{sentence}, on {len(self.tested)} sequences.", numbers, RULE, "share")


def _standard(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; 1 of one that is constant."""
    deviation = features.std(0)
    return features.mean(0), torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))


def _unstandard(weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight / deviation.unsqueeze(1)
    return weight, bias - mean @ weight


def _classes(features: Tensor, y: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression: weight `(features, classes)` and bias."""
    mean, deviation = _standard(features)
    x = (features - mean) / deviation
    weight = torch.zeros(x.shape[1], outputs, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(outputs, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y) + RIDGE * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return _unstandard(weight.detach(), bias.detach(), mean, deviation)


def _numbers(features: Tensor, y: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Ridge regression, at once."""
    mean, deviation = _standard(features)
    x = (features - mean) / deviation
    ridge = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    center = y.mean(0)
    weight = torch.linalg.solve(x.T @ x + ridge, x.T @ (y - center))
    return _unstandard(weight, center, mean, deviation)
