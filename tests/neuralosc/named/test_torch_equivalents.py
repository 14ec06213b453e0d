"""`neuralosc.RNN` and `neuralosc.GRU` are `torch.nn.RNN` and `torch.nn.GRU`, and more when their step is swapped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import neuralosc
from solvers import InputError

F64 = torch.float64
PAIRS = {
    "tanh": (neuralosc.RNN, nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (neuralosc.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (neuralosc.GRU, nn.GRU, {}),
}
BOTH = pytest.mark.parametrize("which", PAIRS)


def pair(which, *sizes, dtype=torch.float32, **shape):
    """A module of torch and the network made from it."""
    kind, torch_kind, options = PAIRS[which]
    module = torch_kind(*sizes, batch_first=True, **options, **shape).to(dtype)
    return module, kind.from_torch(module)


def ours_from(hidden):
    """A state (layers * directions, batch, hidden) as ours."""
    return hidden.unsqueeze(-2) if len(hidden) > 1 else hidden[0].unsqueeze(-2)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    which=st.sampled_from(list(PAIRS)),
    layers=st.integers(1, 3),
    both=st.booleans(),
    bias=st.booleans(),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    started=st.booleans(),
)
def test_equal_on_padded_and_packed_input(which, layers, both, bias, sizes, lengths, started):
    torch.manual_seed(sum(lengths) + 10 * layers)
    module, rnn = pair(which, *sizes, num_layers=layers, bidirectional=both, bias=bias)
    x = torch.randn(len(lengths), max(lengths), sizes[0])
    hidden = torch.randn(layers * (1 + both), len(lengths), sizes[1]) if started else None
    state = None if hidden is None else ours_from(hidden)
    close = {"rtol": 0, "atol": 1e-6}

    expected, end = module(x, hidden)
    output, last = rnn(x, state)
    torch.testing.assert_close(output, expected, **close)
    torch.testing.assert_close(last, ours_from(end), **close)

    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    expected, end = module(packed, hidden)
    output, last = rnn(packed, state)
    assert isinstance(output, PackedSequence)
    torch.testing.assert_close(output.data, expected.data, **close)
    torch.testing.assert_close(last, ours_from(end), **close)

    padded, padded_end = rnn(x, state, lengths=lengths)
    torch.testing.assert_close(padded_end, ours_from(end), **close)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(padded[i, :n], pad_packed_sequence(expected, True)[0][i, :n], **close)


@BOTH
def test_equal_over_a_long_sequence_on_the_compiled_path(which):
    module, rnn = pair(which, 3, 32, num_layers=2, bidirectional=True)
    x = torch.randn(5, 300, 3)
    torch.testing.assert_close(rnn(x)[0], module(x)[0], rtol=0, atol=1e-6)
    explanation = rnn.explain(x, show=False)
    assert [layer.name for layer in explanation.layers] == ["0", "0_rev", "1", "1_rev"]
    assert {(layer.path, layer.reason) for layer in explanation.layers} == {("compiled", "")}


@BOTH
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_torch(which, bias, relative_error):
    module, rnn = pair(which, 2, 5, dtype=F64, num_layers=2, bidirectional=True, bias=bias)
    x = torch.randn(3, 70, 2, dtype=F64)
    weight = torch.randn(3, 70, 10, dtype=F64)
    for network in (module, rnn):
        (network(x)[0] * weight).sum().backward()
    for index, field in enumerate(rnn.fields):
        suffix = f"l{index // 2}{'_reverse' * (index % 2)}"
        for field_name, name in (("V", "ih"), ("W", "hh")):
            for kind in ("weight", "bias") if bias else ("weight",):
                gradient = field.get_parameter(f"{field_name}.{kind}").grad
                assert relative_error(gradient, getattr(module, f"{kind}_{name}_{suffix}").grad) < 1e-10


@BOTH
def test_one_seed_gives_both_the_same_weights(which):
    kind, torch_kind, options = PAIRS[which]
    for shape in ({}, {"num_layers": 2, "bidirectional": True}, {"bias": False}):
        torch.manual_seed(7)
        module = torch_kind(3, 4, **options, **shape)
        torch.manual_seed(7)
        rnn = kind(3, 4, **options, **shape)
        converted = kind.from_torch(module)
        assert sum(p.numel() for p in rnn.parameters()) == sum(p.numel() for p in module.parameters())
        assert rnn.config == converted.config
        for a, b in zip(rnn.parameters(), converted.parameters(), strict=True):
            assert torch.equal(a, b)


@BOTH
def test_conversion_keeps_dtype_mode_and_dropout_and_copies(which):
    kind, torch_kind, options = PAIRS[which]
    module = torch_kind(3, 4, num_layers=2, dropout=0.25, **options).double().eval()
    before = torch.random.get_rng_state()
    rnn = kind.from_torch(module, solver="dopri5")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(rnn, kind) and not rnn.training and rnn.dropout == 0.25 and rnn.solver.name == "dopri5"
    assert {p.dtype for p in rnn.parameters()} == {F64} and all(p.requires_grad for p in rnn.parameters())
    with torch.no_grad():
        module.weight_ih_l0.add_(1.0)
    assert not torch.equal(rnn.fields[0].V.weight, module.weight_ih_l0)
    x = torch.randn(5, 2, 3, dtype=F64)
    rnn = kind.from_torch(module)
    # Time first is how the module was made; ours is batch first.
    torch.testing.assert_close(rnn(x.transpose(0, 1))[0].transpose(0, 1), module(x)[0], rtol=0, atol=1e-14)


def test_what_cannot_be_converted(one_line):
    for ours, module, words in (
        (neuralosc.GRU, nn.LSTM(2, 3), ["LSTM", "torch.nn.GRU"]),
        (neuralosc.RNN, nn.GRU(2, 3), ["GRU", "torch.nn.RNN"]),
        (neuralosc.RNN, "rnn", ["str", "torch.nn.RNN"]),
    ):
        with pytest.raises(InputError) as error:
            ours.from_torch(module)
        one_line(error, *words)
    with pytest.raises(InputError) as error:
        neuralosc.RNN.from_torch(nn.RNN(2, 3), num_layers=2, nonlinearity="relu", solver="rk4")
    one_line(error, "nonlinearity, num_layers was given", "leave it out")
    for settings_, words in (
        ({"nonlinearity": "sigmoid"}, ["nonlinearity 'sigmoid'", "relu, tanh"]),
        ({"bias": 1}, ["bias is 1", "True or False"]),
    ):
        with pytest.raises(InputError) as error:
            neuralosc.RNN(2, 3, **settings_)
        one_line(error, *words)


@BOTH
def test_swapped_saved_and_fed_one_sample_at_a_time(which, tmp_path):
    module, rnn = pair(which, 2, 3, dtype=F64, num_layers=2)
    x, spans = torch.randn(4, 6, 2, dtype=F64), 0.5 + torch.rand(4, 6, dtype=F64)
    fine = rnn.with_solver("rk4", substeps=50)
    tight = rnn.with_solver({"name": "native_dopri5", "rtol": 1e-9, "atol": 1e-11})
    torch.testing.assert_close(fine(x, timespans=spans)[0], tight(x, timespans=spans)[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(rnn.with_solver("rk4").with_solver("euler")(x)[0], rnn(x)[0])
    again = neuralosc.load(neuralosc.save(rnn, tmp_path / "net"))
    assert type(again) is type(rnn) and torch.equal(again(x)[0], module(x)[0]) is torch.equal(rnn(x)[0], module(x)[0])
    assert torch.equal(again(x)[0], rnn(x)[0])
    state, outputs = None, []
    for sample in x.unbind(1):
        output, state = rnn.step(sample, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), module(x)[0], rtol=0, atol=1e-14)


def test_the_linear_part_of_the_vanilla_rnn_is_its_decay():
    field = neuralosc.Relaxation(2, 3).double()
    state, u = torch.randn(4, 1, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(field.linear(state) + field.nonlinear(0.0, state, u), field(0.0, state, u))
    assert torch.equal(field.linear(state), -state)
    # Without weights the state decays: an exponential step is exact.
    rnn = neuralosc.RNN(2, 3, bias=False, solver="exponential_euler", dt=0.7).double()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.zero_()
    _, end = rnn(torch.ones(4, 5, 2, dtype=F64), state)
    torch.testing.assert_close(end, state * torch.exp(torch.tensor(-3.5, dtype=F64)), rtol=1e-13, atol=0)
