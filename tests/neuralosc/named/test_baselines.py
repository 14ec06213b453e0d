"""LSTM and GRU of torch under the interface of the layer: torch's own numbers, and nothing silently dropped."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import neuralosc
from neuralosc import Baseline
from solvers import InputError

F64 = torch.float64
CARDS = [card for card in neuralosc.models() if isinstance(card.make, type) and issubclass(card.make, Baseline)]
NAMES = [card.name for card in CARDS]
BOTH = pytest.mark.parametrize("name", NAMES)
LENGTHS = [5, 2, 6, 1]


def network(name, **settings):
    return neuralosc.make(name, input_size=2, hidden_size=3, **settings).double()


def inputs(batch=4, time=6):
    return torch.randn(batch, time, 2, dtype=F64)


def whole(end, count):
    """The state of torch as ours."""
    state = torch.stack(end if isinstance(end, tuple) else (end,), -2)
    return state if count > 1 else state[0]


def test_the_baselines_are_listed():
    assert NAMES == ["lstm", "torch_gru"]
    for card in CARDS:
        rnn = card.make(2, 3)
        assert card.field is None and card.solver is None and card.paper and card.equation
        assert rnn.config == {"model": card.name, "input_size": 2, "hidden_size": 3, **card.defaults}
        assert (rnn.components, rnn.output_size, rnn.num_layers) == (2 if card.name == "lstm" else 1, 3, 1)
    assert isinstance(neuralosc.LSTM(2, 3).core, nn.LSTM) and isinstance(neuralosc.TorchGRU(2, 3).core, nn.GRU)


@BOTH
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_numbers_are_those_of_torch(name, layers, both, bias):
    rnn, x, count = network(name, num_layers=layers, bidirectional=both, bias=bias), inputs(), layers * (1 + both)
    hidden = tuple(torch.randn(count, 4, 3, dtype=F64) for _ in range(rnn.components))
    state, torch_state = whole(hidden, count), hidden if rnn.components == 2 else hidden[0]
    assert state.shape == ((count, 4, rnn.components, 3) if count > 1 else (4, rnn.components, 3))
    for start, begun in ((state, torch_state), (None, None)):
        output, end = rnn(x, start)
        expected, last = rnn.core(x, begun)
        assert torch.equal(output, expected) and torch.equal(end, whole(last, count))
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    output, end = rnn(packed, state)
    expected, last = rnn.core(packed, torch_state)
    assert isinstance(output, PackedSequence) and torch.equal(output.data, expected.data)
    assert torch.equal(end, whole(last, count))


@BOTH
@pytest.mark.parametrize("both", [False, True])
def test_lengths_equal_truncation_in_values_and_gradients(name, both):
    rnn, x = network(name, num_layers=2, bidirectional=both), inputs()
    padded = x.clone()
    for i, n in enumerate(LENGTHS):
        padded[i, n:] = torch.nan
    padded.requires_grad_()
    # Longer than the longest sequence: torch would cut that off.
    more = torch.cat((padded, torch.full((4, 2, 2), torch.inf, dtype=F64)), 1)
    output, state = rnn(more, lengths=LENGTHS)
    assert output.shape == (4, 8, 3 * (1 + both)) and torch.isfinite(output).all()
    (gradient,) = torch.autograd.grad(output[:, :1].sum() + state.square().sum(), padded)
    for i, n in enumerate(LENGTHS):
        one = x[i : i + 1, :n].clone().requires_grad_()
        alone, end = rnn(one)
        torch.testing.assert_close(output[i : i + 1, :n], alone, rtol=0, atol=1e-14)
        torch.testing.assert_close(state[:, i : i + 1], end, rtol=0, atol=1e-14)
        assert torch.equal(output[i, n:], output[i, n - 1 : n].expand(8 - n, -1))
        (expected,) = torch.autograd.grad(alone[:, :1].sum() + end.square().sum(), one)
        torch.testing.assert_close(gradient[i : i + 1, :n], expected, rtol=0, atol=1e-13)
        assert not gradient[i, n:].any()


@BOTH
def test_timespans_are_refused_or_a_feature(name, one_line):
    x, spans = inputs(), torch.rand(4, 6, dtype=F64)
    with pytest.raises(InputError) as error:
        network(name)(x, timespans=spans)
    one_line(error, repr(name), 'timespans="feature"')
    rnn = network(name, timespans="feature")
    assert (rnn.input_size, rnn.core.input_size) == (2, 3)
    expected, _ = rnn.core(torch.cat((x, spans.unsqueeze(-1)), -1))
    assert torch.equal(rnn(x, timespans=spans)[0], expected)
    shared, _ = rnn.core(torch.cat((x, spans[:1].expand(4, 6).unsqueeze(-1)), -1))
    assert torch.equal(rnn(x, timespans=spans[0])[0], shared)
    assert torch.equal(rnn(x)[0], rnn(x, timespans=torch.ones(6))[0])
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(rnn(x, lengths=LENGTHS)[0][i, :n], rnn(x)[0][i, :n], rtol=0, atol=1e-14)
        valid = rnn(x, timespans=spans, lengths=LENGTHS)[0][i, :n]
        torch.testing.assert_close(valid, expected[i, :n], rtol=0, atol=1e-14)
    packed = pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    output, _ = pad_packed_sequence(rnn(packed, timespans=spans)[0], batch_first=True)
    torch.testing.assert_close(output[0, :5], expected[0, :5], rtol=0, atol=1e-14)


@BOTH
def test_missing_values_are_refused_or_held(name, one_line):
    x = inputs()
    x[1, 3, 0] = torch.nan
    with pytest.raises(InputError) as error:
        network(name)(x)
    one_line(error, "sample 1, step 3, feature 0", "hold")
    rnn, filled = network(name, missing="hold"), x.clone()
    filled[1, 3, 0] = x[1, 2, 0]
    assert torch.equal(rnn(x)[0], rnn(filled)[0])


@BOTH
def test_dropout_is_that_of_torch_between_the_layers(name):
    rnn, x = network(name, num_layers=2, dropout=0.5), inputs()
    assert rnn.core.dropout == 0.5 and not torch.equal(rnn(x)[0], rnn(x)[0])
    assert torch.equal(rnn.eval()(x)[0], rnn(x)[0])
    # Torch has nowhere to drop anything with one layer, and warns: here that is what the docstring says.
    alone = network(name, dropout=0.5)
    assert alone.dropout == 0.5 and torch.equal(alone(x)[0], alone(x)[0])


@BOTH
def test_files_copies_and_state_dicts(name, tmp_path):
    rnn = network(name, num_layers=2, bidirectional=True, timespans="feature", missing="hold", dropout=0.2).eval()
    x = inputs()
    expected = rnn(x)[0]
    again = neuralosc.load(neuralosc.save(rnn, tmp_path / "net")).eval()
    assert type(again) is type(rnn) and again.config == rnn.config and again.missing == "hold"
    for other in (again, copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert torch.equal(other(x)[0], expected)
    smaller = neuralosc.make(name, input_size=2, hidden_size=2)
    with pytest.raises(InputError, match="does not fit"):
        neuralosc.load(tmp_path / "net", into=smaller)
    assert rnn.float()(x.float())[0].dtype == torch.float32


@BOTH
def test_bad_arguments(name, one_line):
    x = inputs()
    for call, words in (
        (lambda: network(name, timespans="drop"), ["timespans is 'drop'", "'refuse'", "'feature'"]),
        (lambda: network(name, missing="skip"), ["missing is 'skip'", "'hold'"]),
        (lambda: network(name, bidirectional=1), ["bidirectional is 1", "True or False"]),
        (lambda: network(name, bias="no"), ["bias is 'no'"]),
        (lambda: network(name, num_layers=0), ["num_layers is 0", "positive integer"]),
        (lambda: network(name, dropout=1.0), ["dropout is 1.0", "below 1"]),
        (lambda: neuralosc.make(name, input_size=2, hidden_size=0), ["hidden_size is 0"]),
        (lambda: network(name, solver="rk4"), [f"'{name}' takes", "not solver"]),
        (lambda: network(name)(x[..., :1]), ["(4, 6, 1)", "(batch, time, 2)"]),
        (lambda: network(name)(x.float()), ["float32", "float64"]),
        (lambda: network(name)(x, lengths=[7, 1, 1, 1]), ["lengths[0] is 7"]),
        (lambda: network(name)(x, torch.zeros(4, 3, dtype=F64)), ["state has shape (4, 3)"]),
        (lambda: network(name)(x, torch.full((4, network(name).components, 3), torch.nan, dtype=F64)), ["NaN"]),
    ):
        with pytest.raises(InputError) as error:
            call()
        one_line(error, *words)


@BOTH
def test_degenerate_sizes(name):
    rnn = network(name, num_layers=2, bidirectional=True)
    for lengths in (None, []):
        output, state = rnn(inputs(batch=0), lengths=lengths)
        assert output.shape == (0, 6, 6) and state.shape == (4, 0, rnn.components, 3)
    assert rnn(inputs(1, 1), lengths=[1])[0].shape == (1, 1, 6)


def test_the_gru_of_torch_is_the_gru_of_the_table():
    baseline, x = network("torch_gru", num_layers=2, bidirectional=True), inputs()
    rnn = neuralosc.GRU.from_torch(baseline.core)
    torch.testing.assert_close(rnn(x, lengths=LENGTHS)[0], baseline(x, lengths=LENGTHS)[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(rnn(x, lengths=LENGTHS)[1], baseline(x, lengths=LENGTHS)[1], rtol=0, atol=1e-14)
