"""What is served: scaling, a recurrent network, a read-out and the unit of time as one object."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from neuralosc import arguments
from neuralosc.data.collate import Batch, Collator
from neuralosc.data.series import asked_for, on_clock, taken
from neuralosc.data.times import Unit, read
from neuralosc.layers import inputs
from neuralosc.layers.embedding import Embedding
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.queries import FUTURES, sample_times, states_at
from neuralosc.layers.readout import Readout
from neuralosc.layers.recurrent import RecurrentLayer, recurrent, single, stepped
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.scaling import Scaler
from solvers.errors import InputError


class SequenceModel(nn.Module):
    """From what was measured to an answer: z = (x - mean) / scale, a network over z, a read-out, its units again.

        answer = s * (W p + b) + m,    p read off the outputs of the network over z

    Of a read-out with the likelihood "gaussian" an answer is all means, and then all standard deviations, both in the
    units of the targets; a call gives the logarithms of those of scaled targets, as `gaussian_nll` takes them.

    Call it in training, where it answers on the scale of `scaled(targets)`; `predict` and `step` answer in the units
    of the targets. Scaling is part of it: `neuralosc.save`, `load`, `export` and `export_onnx` take it as they take a
    network, and what is loaded predicts from times and values as they are.

    With an `Embedding` x is a sequence of tokens, `(batch, time, 1)` numbers or `(batch, time)` integers, of which the
    network is shown the vectors, in the place of scaled features.

    Args:
        rnn: the recurrent network.
        readout: from its outputs to answers.
        collator: how times become timespans: the unit of time, the first gap, and what is done with times that are
            equal or out of order. Collate the training set with it. None where samples are one step apart.
        input_scaler: of the features of x; None for none, which `fit_scaling` makes.
        target_scaler: of the answers; None for none, as for classes.
        embedding: of the tokens that x holds; None where it holds features.

    Raises:
        InputError: parts that do not fit each other, or a unit of time that was never fitted.
    """

    def __init__(
        self,
        rnn: RecurrentLayer,
        readout: Readout,
        collator: Collator | None = None,
        input_scaler: Scaler | None = None,
        target_scaler: Scaler | None = None,
        embedding: Embedding | None = None,
    ) -> None:
        super().__init__()
        self.rnn, self.readout = recurrent(rnn), _readout(readout, rnn)
        self.collator = _collator(collator, rnn)
        self.input_scaler = _scaler("input_scaler", input_scaler, rnn.input_size)
        self.target_scaler = _scaler("target_scaler", target_scaler, readout.answers)
        self.embedding = None if embedding is None else _embedding(embedding, self)

    @property
    def bidirectional(self) -> bool:
        """Whether the network sees the samples in both orders."""
        return self.rnn.bidirectional

    def fit_scaling(self, x: Tensor, lengths: Lengths | None = None, targets: Tensor | None = None) -> SequenceModel:
        """Take the scales of a training set, before training; returns itself. Tokens have none, their targets may.

        Args:
            x: `(batch, time, input)`, NaN where there is no value.
            lengths: number of valid samples of each sequence.
            targets: `(batch, answers)`, or `(batch, time, answers)` where there is an answer for every sample; left
                out, targets keep the scale they have. Leave out classes.

        Raises:
            InputError: shapes that do not fit, infinite values, or a feature of which there is no value.
        """
        fitted = {}
        if self.embedding is None:
            decay = self.rnn.decay
            if decay is not None and bool(decay.mean.any()):
                raise InputError(
                    "rnn.decay.mean is set, and the means of scaled features are 0: leave it at 0, or the scaling out"
                )
            fitted["input_scaler"] = Scaler(self.rnn.input_size).to(self.readout.weight).fit(x, lengths)
        elif targets is None:
            raise InputError("x holds tokens, which have no scale: give targets, or leave fit_scaling out")
        if targets is not None:
            self._check_targets(targets)
            every = lengths if self.readout.pooling.every else None
            fitted["target_scaler"] = Scaler(self.readout.answers).to(self.readout.weight).fit(targets, every)
        for name, scaler in fitted.items():
            own = getattr(self, name)
            if own is None:
                setattr(self, name, scaler)
            else:
                # Models under other solvers have it in common.
                own.load_state_dict(scaler.state_dict())
        return self

    def scaled(self, targets: Tensor) -> Tensor:
        """Targets on the scale that a call answers on: `loss(model(**batch.inputs), model.scaled(targets))`."""
        self._check_targets(targets)
        scaled: Tensor = targets if self.target_scaler is None else self.target_scaler(targets)
        return scaled

    def unscaled(self, answers: Tensor) -> Tensor:
        """Answers of a call in the units of the targets; of "gaussian" means, and then standard deviations."""
        if self.readout.likelihood == "gaussian":
            mean, log_std = answers.chunk(2, -1)
            std = log_std.exp()
            if self.target_scaler is not None:
                mean, std = self.target_scaler.inverse(mean), std * self.target_scaler.scale
            return torch.cat((mean, std), -1)
        return answers if self.target_scaler is None else self.target_scaler.inverse(answers)

    def forward(self, x: Tensor, timespans: Tensor | None = None, lengths: Lengths | None = None) -> Tensor:
        """Answers on the scale of `scaled(targets)`, `(batch, answers)`, or `(batch, time, answers)` of "every".

        Args:
            x: `(batch, time, input)` as measured: scaling is done here. Of tokens `(batch, time, 1)`, of any type that
                holds them exactly, or integers `(batch, time)`; NaN where there is none.
            timespans: time since the sample before, as for the network, in units (`collator.unit`).
            lengths: number of valid samples of each sequence; what follows them does not count.
        """
        self._timed(timespans, "timespans", "them: a batch of its collator has them in batch.inputs")
        output, _ = self.rnn(self.shown(x, lengths), timespans=timespans, lengths=lengths)
        answers: Tensor = self.readout(output, lengths)
        return answers

    def run(
        self, x: Tensor, state: Any = None, timespans: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Any]:
        """Answers in the units of the targets, and the state after the last sample; see `RecurrentLayer.forward`."""
        output, after = self.rnn(self.shown(x, lengths), state, timespans, lengths)
        return self.unscaled(self.readout(output, lengths)), after

    def step(self, x: Tensor, state: Any = None, timespan: Tensor | float | None = None) -> tuple[Tensor, Any]:
        """One sample at a time: the answer after it, in the units of the targets, is that of `predict` up to it.

        Args:
            x: the sample `(batch, input)` as measured; a token `(batch, 1)`, or as integers `(batch,)`.
            state: what the step before returned; None, or what `rnn.begin` gives, at the beginning.
            timespan: time since the sample before, in units (`collator.unit`); before the first sample
                `collator.first`. Left out, and 1, for a model without a collator.

        Returns:
            answers `(batch, answers)`, and what the next step needs; see `ContinuousRNN.step`.

        Raises:
            InputError: a read-out, network or control that needs all samples, or what a step of the network refuses.
        """
        self._timed(timespan, "timespan", "the time since the sample before, and before the first `collator.first`")
        if self.embedding is not None:
            x = self._vector(x)
        elif self.input_scaler is not None:
            # The checks of the network come before any arithmetic.
            single(x, self.rnn)
            x = self.input_scaler(x)
        output, after = stepped(self.rnn, x, state, timespan)
        return self.unscaled(self.readout.each(output)), after

    def predict(self, times: Any, values: Any, at: Any = None, future: str = "zero") -> Any:
        """Answers in the units of the targets, from times and values as they were recorded, in evaluation mode.

        Args:
            times: of one series `(samples,)`: numbers, dates or durations, whatever `collate` takes; or a sequence of
                such, one for each series. None for samples that are one step apart, for a model without a collator.
            values: of one series `(samples, input)`, NaN where there is none (a network with missing="error" refuses
                that), or a sequence of such. Tokens of one series `(samples,)`, of several a sequence of such.
            at: times that are asked for, of the same kind as `times`, `(times,)`: what the model answers then, from
                what was known then; no later sample is used. A sequence of such gives each series its own. Of a
                read-out "last" or "every".
            future: what drives the network from the last sample known on: "zero", or "hold" for that sample.

        Returns:
            arrays of NumPy. Of one series `(answers,)`, or `(samples, answers)` of "every", a row for each row of
            `values`, or with `at` `(times, answers)`. Of several series `(series, answers)`, or a list of such arrays.

        Raises:
            InputError: what `collate` refuses; times of another kind than the unit; values of which there are not as
                many features as the network takes; a question that the network cannot answer.
        """
        arguments.choice("future", future, FUTURES)
        if (times is None) != (self.collator is None):
            raise InputError(
                "times were given to a model without a unit of time, whose samples are one step apart: give None, or "
                "make it with collator=neuralosc.Collator(unit=..), and train it so"
                if self.collator is None
                else f"times is None, and the model has a unit of time ({self.collator.unit}): give the times"
            )
        pairs, alone = taken(times, values, self.embedding is not None)
        with _evaluated(self):
            batch = self._collated(pairs)
            if at is not None:
                answers = self._at(batch, pairs, asked_for(at, len(pairs), alone), future)
            else:
                spans = None if self.collator is None else batch.timespans
                answers = self._each(self.run(batch.x, None, spans, batch.lengths)[0], pairs)
        listed = at is not None or self.readout.pooling.every
        return answers[0] if alone else answers if listed else np.stack(answers)

    def with_solver(self, solver: Any, **choices: Any) -> SequenceModel:
        """The same model under another solver, weights and scalers shared; see `ContinuousRNN.with_solver`.

        Raises:
            InputError: a network that has no solver.
        """
        swap = getattr(self.rnn, "with_solver", None)
        if swap is None:
            raise InputError(f"a {type(self.rnn).__name__} has no solver: there is none to choose")
        network = swap(solver, **choices)
        other = SequenceModel(
            network, self.readout, self.collator, self.input_scaler, self.target_scaler, self.embedding
        )
        other.training = self.training
        return other

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return "" if self.collator is None else f"unit={self.collator.unit}, first={self.collator.first:g}"

    def shown(self, x: Tensor | PackedSequence, lengths: Lengths | None = None) -> Any:
        """What the network is shown of x: the features on one scale, or the vectors of tokens."""
        if self.embedding is not None:
            return self._vectors(x, lengths)
        if self.input_scaler is None:
            return x
        if isinstance(x, PackedSequence):
            return PackedSequence(self.input_scaler(x.data), *x[1:])
        # The checks of the network come before any arithmetic.
        inputs.check_sequence(x, self.rnn.input_size, self.rnn)
        return self.input_scaler(x)

    def _vectors(self, x: Tensor | PackedSequence, lengths: Lengths | None = None) -> Any:
        """The vectors of tokens; what stands in the padding is not looked at."""
        assert self.embedding is not None
        if isinstance(x, PackedSequence):
            return PackedSequence(self.embedding(x.data.view(len(x.data), -1)), *x[1:])
        if isinstance(x, Tensor) and x.dim() == 2 and not x.is_floating_point() and not x.is_nested:
            x = x.unsqueeze(-1)
        inputs.check_sequence(x, 1, self.embedding, tokens=True)
        return self.embedding(x, None if lengths is None else inputs.valid_steps(lengths, x))

    def _vector(self, x: Tensor) -> Tensor:
        """The vector of one token of each sequence."""
        assert self.embedding is not None
        if self.training and self.embedding.dropout:
            raise InputError("a step with dropout of tokens would draw a mask of its own: call model.eval() first")
        tensor = isinstance(x, Tensor) and not x.is_nested
        if tensor and x.dim() == 1 and not x.is_floating_point():
            x = x.unsqueeze(-1)
        if not tensor or x.dim() != 2 or x.shape[1] != 1:
            given = f"has shape {tuple(x.shape)}" if tensor else f"is a {type(x).__name__}"
            raise InputError(f"x {given}, expected one token (batch, 1), or integers (batch,)")
        vector: Tensor = self._vectors(x.unsqueeze(1)).squeeze(1)
        return vector

    def _timed(self, spans: Any, name: str, what: str) -> None:
        if spans is None and self.collator is not None:
            raise InputError(f"{name} is left out, and the model has a unit of time, {self.collator.unit}: give {what}")

    def _check_targets(self, targets: Tensor) -> None:
        every, answers = self.readout.pooling.every, self.readout.answers
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        if not isinstance(targets, Tensor) or targets.dim() != 2 + every or targets.shape[-1] != answers:
            # A column that is missing would be broadcast in a loss.
            raise InputError(f"targets are {shape}, expected (batch, {'time, ' * every}{answers})")

    def _collated(self, pairs: list[tuple[Any, Any]]) -> Batch:
        """The series as a batch for the network."""
        weight, tokens = self.readout.weight, self.embedding is not None
        features = 1 if tokens else self.rnn.input_size
        # A network in half precision still has more tokens than such numbers tell apart.
        dtype = torch.promote_types(weight.dtype, torch.float32) if tokens else weight.dtype
        batch = dataclasses.replace(self.collator or Collator(), dtype=dtype)(pairs)
        if batch.x.shape[-1] != features and not bool(batch.lengths.any()):
            # A series without samples need not say of how many features.
            batch = dataclasses.replace(batch, x=batch.x.new_zeros(len(batch), 1, features))
        if batch.x.shape[-1] != features:
            raise InputError(f"values have {batch.x.shape[-1]} features, expected {features}, as in training")
        return batch.to(weight.device)

    def _each(self, answers: Tensor, pairs: list[tuple[Any, Any]]) -> list[np.ndarray]:
        """The answer to each series, of "every" a row for each row of its values."""
        arrays = [_array(answer) for answer in answers]
        if not self.readout.pooling.every:
            return arrays
        collator = self.collator or Collator()
        # Samples may have been sorted and merged.
        return [array[collator.samples(times)[1]] for array, (times, _) in zip(arrays, pairs, strict=True)]

    def _at(self, batch: Batch, pairs: list[tuple[Any, Any]], asked: list[Any], future: str) -> list[np.ndarray]:
        """The answers to each series at the times that are asked of it."""
        rnn, collator = self._queried(), self.collator or Collator()
        spans = None if self.collator is None else batch.timespans
        solution = rnn.solve(self.shown(batch.x, batch.lengths), timespans=spans, lengths=batch.lengths)
        clock = sample_times(rnn, solution).cpu().double().numpy()
        rows = []
        for number, ((times, _), wanted) in enumerate(zip(pairs, asked, strict=True)):
            name = f"at of series {number}"
            samples = collator.samples(times)[0]
            rows.append(on_clock(clock[number], samples, read(wanted, name), batch.unit, name))
        table = np.zeros((len(rows), max(1, *map(len, rows))))
        for row, times in zip(table, rows, strict=True):
            row[: len(times)] = times
        states = states_at(rnn, solution, torch.from_numpy(table), True, future)
        answers = self.unscaled(self.readout.each(states[..., 0, :]))
        return [_array(answer[: len(times)]) for answer, times in zip(answers, rows, strict=True)]

    def _queried(self) -> ContinuousRNN:
        """The network, which must have states at all times that know nothing of what comes."""
        rnn, advice = self.rnn, "leave out at"
        if not isinstance(rnn, ContinuousRNN):
            raise InputError(f"at asks between samples, where a {type(rnn).__name__} has no states: {advice}")
        if rnn.bidirectional:
            raise InputError(f"at asks what was known then, and a bidirectional network knows what follows: {advice}")
        if not rnn.control.causal:
            raise InputError(f"at asks what was known then, and control {rnn.control.name!r} looks ahead: {advice}")
        if rnn.residual:
            raise InputError(f"at asks between samples, where residual=True has no sample to add: {advice}")
        return rnn


def _readout(readout: Any, rnn: RecurrentLayer) -> Readout:
    """A read-out that fits the network."""
    if not isinstance(readout, Readout):
        raise InputError(f"readout is a {type(readout).__name__}, expected a neuralosc.Readout")
    if readout.in_features != rnn.output_size:
        raise InputError(
            f"readout takes {readout.in_features} features, and the network gives {rnn.output_size}: make it with "
            "rnn.output_size"
        )
    if readout.pooling.bidirectional != rnn.bidirectional:
        raise InputError(
            f"readout has bidirectional={readout.pooling.bidirectional}, and the network {rnn.bidirectional}: make "
            "them equal"
        )
    return readout


def _collator(collator: Any, rnn: RecurrentLayer) -> Collator | None:
    """A collator that knows its unit, for a network that knows time."""
    if collator is None:
        return None
    if not isinstance(collator, Collator):
        raise InputError(
            f"collator is {reprlib.repr(collator)}, expected a neuralosc.Collator: Collator(unit={'1h'!r}), say"
        )
    if not isinstance(collator.unit, Unit):
        raise InputError(
            "the unit of the collator is 'median' and was never fitted: give collator.fit(training_series)"
        )
    if getattr(rnn, "timespans", None) == "refuse":
        raise InputError(
            f"a collator was given, and {type(rnn).__name__} knows no time between its samples: make it with "
            "timespans='feature', or leave the collator out"
        )
    return collator


def _scaler(name: str, scaler: Any, features: int) -> Scaler | None:
    """A scaler of so many features, or none."""
    if scaler is not None and (not isinstance(scaler, Scaler) or scaler.features != features):
        given = f"of {scaler.features} features" if isinstance(scaler, Scaler) else f"a {type(scaler).__name__}"
        raise InputError(f"{name} is {given}, expected a neuralosc.Scaler({features}), or None")
    return scaler


def _embedding(embedding: Any, model: SequenceModel) -> Embedding:
    """An embedding that fits the other parts."""
    features, collator = model.rnn.input_size, model.collator
    if not isinstance(embedding, Embedding) or embedding.features != features:
        own = isinstance(embedding, Embedding)
        given = f"of {embedding.features} features" if own else f"a {type(embedding).__name__}"
        raise InputError(f"embedding is {given}, expected a neuralosc.Embedding(tokens, {features}), or None")
    if model.input_scaler is not None:
        raise InputError("input_scaler and embedding are given, and tokens have no scale: leave input_scaler out")
    if collator is not None and collator.duplicates == "mean":
        raise InputError("the collator takes the mean of samples of one time, which is no token: use duplicates='last'")
    return embedding


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each part has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _array(answers: Tensor) -> np.ndarray:
    """As an array; NumPy has no bfloat16."""
    answers = answers.detach().cpu()
    array: np.ndarray = (answers if answers.element_size() > 2 else answers.float()).numpy()
    return array
