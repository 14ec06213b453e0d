"""Read-outs: from the outputs of a recurrent layer to an answer, for each sequence or for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from neuralosc import arguments
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from solvers.base.registry import Registry
from solvers.errors import InputError


class Pooling(nn.Module):
    """What is read off the outputs of a sequence.

    Args:
        features: features of an output.
        bidirectional: the second half of them is that of the reverse direction.
    """

    #: Whether there is one value for each sample, `(batch, time, features)`, not one for each sequence.
    every = False
    #: Whether the padding is to repeat the last valid output; else it may hold anything.
    repeated = True

    def __init__(self, features: int, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional

    def forward(self, output: Tensor, valid: Tensor | None) -> Tensor:
        """The value `(batch, features)`.

        Args:
            output: `(batch, time, features)`, where `repeated` with the last valid output in the padding.
            valid: which samples count, `(batch, time)`; None for all.
        """
        raise NotImplementedError


#: What is said of each answer.
LIKELIHOODS = {"none": "a number for each answer", "gaussian": "a mean and a standard deviation for each"}

READOUTS: Registry[type[Pooling]] = Registry("readout")


def pooling(name: str) -> Callable[[type[Pooling]], type[Pooling]]:
    """Register a pooling under its name."""

    def register(kind: type[Pooling]) -> type[Pooling]:
        return READOUTS.add(name, kind)

    return register


@pooling("last")
class Last(Pooling):
    """The output when a direction has seen the whole sequence: after the last valid sample.

    The reverse direction has seen it after the first sample.
    """

    repeated = False

    def forward(self, output: Tensor, valid: Tensor | None) -> Tensor:
        """The value, zero where there is no valid sample."""
        last = output[:, -1] if valid is None else inputs.last_valid(output, valid)[:, 0]
        if not self.bidirectional:
            return last
        half = output.shape[-1] // 2
        first = output[:, 0, half:] if valid is None else torch.where(valid[:, :1], output[:, 0, half:], 0)
        return torch.cat((last[..., :half], first), dim=-1)


@pooling("mean")
class Mean(Pooling):
    """The mean of the outputs at the valid samples."""

    repeated = False

    def forward(self, output: Tensor, valid: Tensor | None) -> Tensor:
        """The value."""
        if valid is None:
            return output.mean(1)
        return torch.where(valid.unsqueeze(-1), output, 0).sum(1) / valid.sum(1, keepdim=True).clamp_min(1)


@pooling("attention")
class Attention(Pooling):
    """A mean of the outputs h_t at the valid samples with weights that they decide themselves.

        a_t = softmax over t of w . tanh(A h_t + c),  value = sum_t a_t h_t

    Source: Yang et al., Hierarchical Attention Networks for Document Classification, NAACL 2016, eq. 5-7; A is square.
    """

    def __init__(self, features: int, bidirectional: bool) -> None:
        super().__init__(features, bidirectional)
        self.hidden = nn.Linear(features, features)
        self.score = nn.Linear(features, 1, bias=False)

    def weights(self, output: Tensor, valid: Tensor | None) -> Tensor:
        """a_t, `(batch, time)`, which sum to 1 over the valid samples and are 0 elsewhere."""
        score: Tensor = self.score(torch.tanh(self.hidden(output))).squeeze(-1)
        if valid is None:
            return score.softmax(dim=1)
        # Without any valid sample all are taken, and then none.
        taken = valid | ~valid.any(dim=1, keepdim=True)
        return torch.where(valid, score.masked_fill(~taken, -torch.inf).softmax(dim=1), 0.0)

    def forward(self, output: Tensor, valid: Tensor | None) -> Tensor:
        """The value."""
        return (self.weights(output, valid).unsqueeze(-1) * output).sum(1)


@pooling("every")
class Every(Pooling):
    """Each output by itself: an answer for every sample, and in the padding that of the last valid one."""

    every = True

    def forward(self, output: Tensor, valid: Tensor | None) -> Tensor:
        """The outputs."""
        return output


class Readout(nn.Linear):
    """Answer = W p + b, where p is read off the outputs of a recurrent layer.

    Padding does not count, whatever it holds. Of a sequence without any sample (length 0) p is zero, and the answer b.

    Args:
        features: features of an output, `rnn.output_size`.
        answers: features of an answer.
        kind: a name of `READOUTS`: "last", the output after the last valid sample (of the reverse direction of a
            bidirectional layer: after the first one, which is its last); "mean" of the valid ones; "attention", a mean
            with learned weights; "every", an answer for every sample.
        bidirectional: whether the second half of the features is that of the reverse direction.
        bias: with b.
        likelihood: what an answer is: "none", a number for each of the `answers`; "gaussian", a normal distribution for
            each: all means, and then the logarithms of all standard deviations.

    Raises:
        UnknownNameError: no such kind.
        InputError: sizes that cannot be used, or no such likelihood.
    """

    def __init__(
        self,
        features: int,
        answers: int,
        kind: str = "last",
        bidirectional: bool = False,
        bias: bool = True,
        likelihood: str = "none",
    ) -> None:
        arguments.count("features", features)
        if arguments.flag("bidirectional", bidirectional) and features % 2:
            raise InputError(f"features is {features}, expected an even number: two directions of one size")
        chosen = READOUTS[kind]
        likelihood = arguments.choice("likelihood", likelihood, LIKELIHOODS)
        answers = arguments.count("answers", answers)
        numbers = answers * (1 + (likelihood == "gaussian"))
        super().__init__(features, numbers, arguments.flag("bias", bias))
        self.answers, self.likelihood = answers, likelihood
        self.kind, self.pooling = kind, chosen(features, bidirectional)

    @overload
    def forward(self, input: Tensor, lengths: Lengths | None = None) -> Tensor: ...

    @overload
    def forward(self, input: PackedSequence, lengths: None = None) -> Tensor | PackedSequence: ...

    def forward(self, input: Tensor | PackedSequence, lengths: Lengths | None = None) -> Tensor | PackedSequence:
        """The answers.

        Args:
            input: output of the layer, `(batch, time, features)` or a PackedSequence.
            lengths: number of valid samples of each sequence, `(batch,)`.

        Returns:
            `(batch, answers)`; of "every", `(batch, time, answers)`, or a PackedSequence where one was given. Of
            "gaussian" twice as many.

        Raises:
            InputError: shapes or lengths that do not fit.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise InputError("lengths was given with a PackedSequence, which carries its own: leave it out")
            padded, lengths = pad_packed_sequence(input, batch_first=True)
            answer = self(padded, lengths)
            return inputs.pack_like(answer, lengths, input) if self.pooling.every else answer
        inputs.check_sequence(input, self.in_features, self)
        valid = None if lengths is None else inputs.valid_steps(lengths, input)
        if valid is not None and self.pooling.repeated:
            input = inputs.without_padding(input, valid)
        return super().forward(self.pooling(input, valid))

    def each(self, output: Tensor) -> Tensor:
        """The answers to outputs `(.., features)`, each by itself.

        Raises:
            InputError: a kind whose answer is one to many outputs.
        """
        if self.kind not in ("last", "every"):
            raise InputError(
                f"the read-out {self.kind!r} answers to all samples together, and one of them, or one time, is asked "
                "for: use 'last' or 'every'"
            )
        return super().forward(output)

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        likelihood = "" if self.likelihood == "none" else f", likelihood={self.likelihood!r}"
        return f"{super().extra_repr()}, kind={self.kind!r}{likelihood}"
