"""Samples between which no time passes, and sequences without any sample."""

import warnings

import pytest
import torch

import neuralosc
import solvers

FIELDS = [card.name for card in neuralosc.models() if card.field]
JUMPING = [name for name in FIELDS if getattr(neuralosc.make(name, input_size=3, hidden_size=8), "jumps", False)]
#: Their state rests until the first sample, which they start from.
CONTROLLED = ["ncde"]


@pytest.mark.parametrize("name", JUMPING)
@pytest.mark.parametrize("backend", ["plain", "auto"])
def test_a_field_that_jumps_does_so_whatever_the_timespan(name, backend):
    torch.manual_seed(0)
    rnn, x = neuralosc.make(name, input_size=3, hidden_size=8), torch.randn(2, 5, 3)
    spans = torch.tensor([[0.0, 1.0, 0.0, 0.0, 2.0], [1.0, 0.0, 1.0, 0.0, 0.0]])
    with warnings.catch_warnings(), solvers.backend(backend):
        warnings.simplefilter("error")
        expected, _ = rnn(x, timespans=spans + 1e-7)
        torch.testing.assert_close(rnn(x, timespans=spans)[0], expected, rtol=1e-5, atol=1e-5)
        # In the padding it does not jump.
        output, state = rnn(x, timespans=spans, lengths=[5, 2])
        torch.testing.assert_close(state[1], rnn(x[1:, :2], timespans=spans[1:, :2])[1][0])
        torch.testing.assert_close(output[1, 2:], output[1, 1:2].expand(3, -1))
    state = None
    for i in range(5):
        output, state = rnn.step(x[:, i], state, timespan=spans[:, i])
    torch.testing.assert_close(output, expected[:, -1], rtol=1e-5, atol=1e-5)


def test_a_jump_at_a_timespan_of_zero_has_the_gradient_of_the_flow():
    torch.manual_seed(0)
    rnn, x = neuralosc.make("cayley", input_size=3, hidden_size=4).double(), torch.randn(2, 3, 3).double()
    grads = []
    for first in (0.0, 1e-9):
        spans = torch.tensor([1.0, first, 1.0], dtype=torch.float64, requires_grad=True)
        grads.append(torch.autograd.grad(rnn(x, timespans=spans)[0].square().sum(), [spans, *rnn.parameters()]))
    for at_zero, near in zip(*grads, strict=True):
        torch.testing.assert_close(at_zero, near, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("control", [name for name in solvers.CONTROLS if name != "hold"])
def test_where_an_input_is_drawn_between_samples_no_jump_is_made_in_no_time(control, one_line):
    """Its slope would be infinite: a span of 2^-100 in the place of 0 made the next interval 1e12 times as large."""
    torch.manual_seed(0)
    rnn, x = (
        neuralosc.make("exprnn", input_size=3, hidden_size=8, control=control).double(),
        torch.randn(2, 4, 3).double(),
    )
    spans = torch.tensor([0.0, 0.7, 0.0, 1.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"^4 samples have timespan 0 .* no jump") as said:
        output, _ = rnn(x, timespans=spans)
    one_line(str(said[0].message), control, "'hold'")
    assert float(output.detach().abs().max()) < 20 and not output[:, 0].any()
    torch.testing.assert_close(output[:, 2], output[:, 1])


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in JUMPING + CONTROLLED])
def test_samples_without_effect_are_said_once(name):
    rnn, x = neuralosc.make(name, input_size=3, hidden_size=8).eval(), torch.randn(2, 4, 3)
    rnn = rnn.with_solver("euler") if name == "noisy" else rnn
    spans = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    with pytest.warns(UserWarning, match=r"^3 samples have timespan 0 and no effect") as said:
        output, _ = rnn(x, timespans=spans, lengths=[4, 3])
    # Under the standard filter of Python one text is shown once, whatever the blocks of a network.
    assert len({str(each.message) for each in said}) == 1 and "\n" not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = rnn(torch.cat((x[:, :1] + 100, x[:, 1:]), 1), timespans=spans, lengths=[4, 3])[0]
    torch.testing.assert_close(output[:, 1:], again[:, 1:])


def test_what_says_nothing():
    rnn, x = neuralosc.LEM(3, 8), torch.randn(2, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn(x, timespans=torch.ones(2, 4), lengths=[4, 2])
        rnn.with_solver("rk4", control="linear")(x, timespans=torch.tensor([0.0, 1.0, 1.0, 1.0]))
        rnn(x, lengths=[4, 0])
    with pytest.warns(UserWarning, match="2 samples"):
        rnn.step(x[:, 0], timespan=0)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", ["lem", "cornn", "gru", "lstm", "torch_gru"])
def test_a_sequence_without_samples_keeps_its_state(name, bidirectional):
    torch.manual_seed(0)
    rnn = neuralosc.make(name, input_size=3, hidden_size=4, num_layers=2, bidirectional=bidirectional)
    x = torch.randn(3, 5, 3)
    x[1], x[2, 2:] = float("nan"), float("nan")
    start = torch.randn(4 if bidirectional else 2, 3, rnn.components, 4)
    output, state = rnn(x, start, lengths=[5, 0, 2])
    assert output.isfinite().all() and torch.equal(state[:, 1], start[:, 1])
    shown = start[-rnn.directions :, 1, 0].flatten()
    assert torch.equal(output[1], shown.expand(5, -1))
    keep = [0, 2]
    alone, end = rnn(x[keep], start[:, keep], lengths=[5, 2])
    torch.testing.assert_close(output[keep], alone)
    torch.testing.assert_close(state[:, keep], end)
    grads = torch.autograd.grad(output.square().sum(), list(rnn.parameters()))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("kind", neuralosc.READOUTS)
def test_the_answer_of_a_sequence_without_samples(kind):
    readout = neuralosc.Readout(4, 3, kind)
    output = torch.randn(2, 5, 4, requires_grad=True)
    answer = readout(output, [5, 0])
    torch.testing.assert_close(answer[1], readout.bias.expand_as(answer[1]))
    torch.testing.assert_close(answer[:1], readout(output[:1]))
    assert torch.autograd.grad(answer.sum(), output)[0].isfinite().all()


def test_a_chunk_without_samples_holds_what_was_seen():
    torch.manual_seed(0)
    rnn, x = neuralosc.LEM(3, 4, missing="hold"), torch.randn(2, 4, 3)
    after = rnn(x[:, :2], rnn.begin(2))[1]
    _, held = rnn(x[:, 2:3], after, lengths=[1, 0])
    assert torch.equal(held.seen[1], x[1, 1]) and torch.equal(held.state[1], after.state[1])
