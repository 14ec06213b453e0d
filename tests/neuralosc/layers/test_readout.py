"""Read-outs: each against its formula, sequence by sequence, whatever stands in the padding."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import neuralosc
import solvers
from neuralosc import READOUTS, Readout
from solvers import InputError

F64 = torch.float64
KINDS = pytest.mark.parametrize("kind", list(READOUTS))


def pooled(readout, h):
    """What is read off the outputs (time, features) of one sequence."""
    if readout.kind == "last" and readout.pooling.bidirectional:
        half = h.shape[1] // 2
        return torch.cat((h[-1, :half], h[0, half:]))
    if readout.kind == "last":
        return h[-1]
    if readout.kind == "mean":
        return h.sum(0) / len(h)
    if readout.kind == "attention":
        layer, score = readout.pooling.hidden, readout.pooling.score.weight[0]
        weights = torch.exp(torch.tanh(h @ layer.weight.T + layer.bias) @ score)
        return (weights / weights.sum()) @ h
    return h


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(list(READOUTS)),
    both=st.booleans(),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    hole=st.sampled_from([0.0, 3.0, float("nan"), float("inf")]),
    seed=st.integers(0, 1000),
)
def test_lengths_equal_truncation_in_values_and_gradients(kind, both, lengths, hole, seed):
    torch.manual_seed(seed)
    readout = Readout(4, 3, kind, bidirectional=both).double()
    h = torch.randn(len(lengths), max(lengths), 4, dtype=F64)
    for i, n in enumerate(lengths):
        h[i, n:] = hole
    h.requires_grad_()
    answers = readout(h, lengths)
    assert answers.shape == ((len(lengths), max(lengths), 3) if readout.pooling.every else (len(lengths), 3))
    gradient = torch.autograd.grad(answers.square().sum(), h)[0]
    for i, n in enumerate(lengths):
        alone = h[i, :n].detach().requires_grad_()
        expected = pooled(readout, alone) @ readout.weight.T + readout.bias
        answer = answers[i, :n] if readout.pooling.every else answers[i]
        torch.testing.assert_close(answer, expected, rtol=1e-12, atol=1e-12)
        loss = expected.square().sum()
        if readout.pooling.every:
            # The padding has the answer of the last valid sample.
            assert torch.equal(answers[i, n:], answers[i, n - 1 : n].expand(max(lengths) - n, 3))
            loss = loss + (max(lengths) - n) * expected[-1].square().sum()
        torch.testing.assert_close(gradient[i, :n], torch.autograd.grad(loss, alone)[0], rtol=1e-11, atol=1e-11)
        assert not gradient[i, n:].any()


@KINDS
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("hole", [3.0, float("nan")])
def test_of_no_sample_the_answer_is_the_bias(kind, both, hole):
    readout = Readout(4, 3, kind, bidirectional=both).double()
    h = torch.full((2, 5, 4), hole, dtype=F64)
    h[1] = 1.0
    answer = readout(h, [0, 5])[0]
    torch.testing.assert_close(answer, readout.bias.expand_as(answer), rtol=0, atol=1e-15)


@KINDS
def test_without_lengths_every_sample_counts(kind):
    readout, h = Readout(4, 3, kind).double(), torch.randn(2, 5, 4, dtype=F64)
    torch.testing.assert_close(readout(h), readout(h, [5, 5]), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(readout(h[:, :1], [1, 1]), readout(h[:, :1]), rtol=1e-13, atol=1e-13)
    assert readout(h[:0]).shape[0] == 0


@KINDS
def test_a_packed_sequence(kind):
    rnn = neuralosc.CoRNN(2, 3, bidirectional=True).double()
    readout = Readout(rnn.output_size, 2, kind, rnn.bidirectional).double()
    x, lengths = torch.randn(4, 6, 2, dtype=F64), [5, 2, 6, 1]
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    answers, expected = readout(rnn(packed)[0]), readout(rnn(x, lengths=lengths)[0], lengths)
    if not readout.pooling.every:
        return torch.testing.assert_close(answers, expected, rtol=1e-13, atol=1e-13)
    assert isinstance(answers, PackedSequence)
    padded, _ = pad_packed_sequence(answers, batch_first=True)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(padded[i, :n], expected[i, :n], rtol=1e-13, atol=1e-13)


def test_the_last_of_both_directions_is_their_final_state():
    rnn, x, lengths = neuralosc.CoRNN(2, 3, bidirectional=True), torch.randn(4, 6, 2), [5, 2, 6, 1]
    readout = Readout(6, 6, "last", bidirectional=True)
    with torch.no_grad():
        readout.weight.copy_(torch.eye(6)), readout.bias.zero_()
    output, state = rnn(x, lengths=lengths)
    torch.testing.assert_close(readout(output, lengths), torch.cat((state[0, :, 0], state[1, :, 0]), -1))


def test_attention_weights_are_a_distribution_over_the_valid_samples():
    readout, h = Readout(4, 3, "attention"), torch.randn(3, 6, 4)
    valid = torch.arange(6) < torch.tensor([[6], [2], [1]])
    weights = readout.pooling.weights(h, valid).detach()
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (weights[valid] > 0).all() and not weights[~valid].any() and float(weights[2, 0]) == 1.0


@KINDS
def test_modes_copies_dtypes_and_transforms(kind):
    readout, h, lengths = Readout(4, 3, kind), torch.randn(2, 5, 4), torch.tensor([5, 2])
    expected = readout(h, lengths)
    for other in (copy.deepcopy(readout), pickle.loads(pickle.dumps(readout))):
        assert torch.equal(other(h, lengths), expected)
    fresh = Readout(4, 3, kind)
    fresh.load_state_dict(readout.state_dict())
    assert torch.equal(fresh(h, lengths), expected) and f"kind={kind!r}" in repr(readout)
    answers = torch.vmap(lambda h, n: readout(h.unsqueeze(0), n.unsqueeze(0))[0])(h, lengths)
    torch.testing.assert_close(answers, expected)
    torch.testing.assert_close(readout.double()(h.double(), lengths), expected.double(), rtol=1e-5, atol=1e-6)
    assert readout.bfloat16()(h.bfloat16(), lengths).dtype == torch.bfloat16


def test_bad_arguments(one_line):
    h = torch.randn(2, 5, 4)
    for call, words in (
        (lambda: Readout(4, 3, "lst"), ["unknown readout 'lst'", "'last'"]),
        (lambda: Readout(0, 3), ["features is 0", "positive integer"]),
        (lambda: Readout(4, 2.5), ["answers is 2.5", "positive integer"]),
        (lambda: Readout(5, 3, bidirectional=True), ["features is 5", "even"]),
        (lambda: Readout(4, 3, bidirectional=1), ["bidirectional is 1"]),
        (lambda: Readout(4, 3)(h[..., :3]), ["(2, 5, 3)", "(batch, time, 4)"]),
        (lambda: Readout(4, 3)(h[:, -1]), ["(2, 4)", "(batch, time, 4)"]),
        (lambda: Readout(4, 3)(h, [5, 6]), ["lengths[1] is 6", "between 0 and 5"]),
        (lambda: Readout(4, 3)(h.double()), ["float64", "float32"]),
        (
            lambda: Readout(4, 3)(pack_padded_sequence(h, torch.tensor([5, 5]), batch_first=True), [5, 5]),
            ["PackedSequence", "leave it out"],
        ),
    ):
        with pytest.raises(InputError) as error:
            call()
        one_line(error, *words)
    with pytest.raises(solvers.UnknownNameError):
        Readout(4, 3, "first")
