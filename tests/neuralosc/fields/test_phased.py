"""Phased LSTM: the published cell, the gate against its definition, and the times it goes by."""

import pytest
import torch
from torch import nn

import neuralosc
from neuralosc import ContinuousRNN, InputError
from tests.measures import bit_by_bit

F64 = torch.float64


class PublishedGate(neuralosc.TimeGatedLSTM):
    """The published code opens its gate along 2 p r, from which it jumps, where the paper has 2 p / r."""

    def openness(self, phase, ratio):
        return torch.where(phase < ratio / 2, 2 * phase * ratio, super().openness(phase, ratio))


def test_the_published_cell(golden, relative_error):
    """Its t is the timespan of a sample, as it is where every step starts a clock anew; units share tau, s and r."""
    g, size = golden("phased_lstm"), 7
    field = PublishedGate(3, size, leak=g["alpha"], forget_bias=g["forget_bias"]).double()
    # Published in the order candidate, input, forget, output; torch has input, forget, candidate, output.
    order = torch.arange(4 * size).view(4, size)[[1, 2, 0, 3]].flatten()
    ours = {"tau": field.tau, "ron": field.r, "s": field.s, "input_kernel": field.V.weight, "bias": field.V.bias}
    ours |= {"recurrent_kernel": field.W.weight}
    with torch.no_grad():
        for key, parameter in ours.items():
            parameter.copy_(g[key].T[order] if g[key].dim() == 2 else g[key][order] if key == "bias" else g[key])
    rnn = ContinuousRNN(field, "closed_form")
    inputs = {key: g[key].requires_grad_() for key in ("x", "timespans", "h_0", "c_0")}
    state, states = torch.stack((inputs["h_0"], inputs["c_0"]), 1), []
    for i in range(g["x"].shape[1]):
        _, state = rnn.step(inputs["x"][:, i], state, inputs["timespans"][:, i], time=0.0)
        states.append(state)
    h, c = torch.stack(states, 1).unbind(2)
    assert max(relative_error(h, g["y"]), relative_error(h, g["h"]), relative_error(c, g["c"])) <= 1e-9
    loss = (h * (g["loss_weight"] + g["loss_weight_h"])).sum() + (c * g["loss_weight_c"]).sum()
    wanted = ours | inputs
    assert {f"grad_{key}" for key in wanted} == {key for key in g if key.startswith("grad_")}
    for key, gradient in zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True):
        expected = g[f"grad_{key}"]
        if key in ("tau", "ron", "s"):
            gradient = gradient.sum().reshape(1)
        elif key in ours:
            expected = expected.T[order] if expected.dim() == 2 else expected[order]
        assert relative_error(gradient, expected) <= 1e-9, key
    # All three branches of the gate are in it.
    phase, ratio = field.phase(g["timespans"].unsqueeze(-1)), field.prepare()["r"]
    assert (phase < ratio / 2).any() and ((phase >= ratio / 2) & (phase < ratio)).any() and (phase >= ratio).any()


def test_the_gate_opens_and_closes_in_each_period():
    field = neuralosc.TimeGatedLSTM(2, 3, leak=0.01).double()
    tau, s, r = (field.constants[name] for name in ("tau", "s", "r"))
    for turn in (-1.0, 0.0, 3.0):
        for share, expected in ((0.25, 0.5), (0.5, 1.0), (0.75, 0.5), (0.999999, 2e-6)):
            k = field.openness(field.phase(s + (turn + share * r) * tau), r)
            torch.testing.assert_close(k, torch.full_like(k, expected), rtol=1e-6, atol=1e-9)
        closed = field.openness(field.phase(s + (turn + 0.7) * tau), r)
        torch.testing.assert_close(closed, torch.full_like(closed, 0.007), rtol=1e-9, atol=0)


def test_where_the_gate_is_open_it_is_the_lstm_of_torch_and_where_it_is_closed_nothing_happens():
    torch.manual_seed(0)
    rnn, cell = neuralosc.PhasedLSTM(2, 4, leak=0.0).double(), nn.LSTMCell(2, 4).double()
    field = rnn.field
    field.V.load_state_dict({"weight": cell.weight_ih.detach(), "bias": (cell.bias_ih + cell.bias_hh).detach()})
    field.W.load_state_dict({"weight": cell.weight_hh.detach()})
    with torch.no_grad():
        field.tau.fill_(float(field.tau[0])), field.s.fill_(float(field.s[0]))
    tau, s, r = (float(field.constants[name][0].detach()) for name in ("tau", "s", "r"))
    x, start = torch.randn(3, 2, 2, dtype=F64), torch.randn(3, 2, 4, dtype=F64)
    # One sample where the gate is wide open, and the next one where it is closed, a turn later.
    spans = torch.tensor([s + r / 2 * tau, (1.5 - r / 2) * tau], dtype=F64)
    states = rnn.solve(x, start, spans).states
    h, c = cell(x[:, 0], tuple(start.unbind(1)))
    torch.testing.assert_close(states[:, 0], torch.stack((h, c), 1), rtol=1e-9, atol=1e-10)
    assert torch.equal(states[:, 1], states[:, 0])


def test_the_clock_goes_on_in_streams_and_each_sequence_has_its_own():
    torch.manual_seed(0)
    rnn = neuralosc.PhasedLSTM(2, 4, open_ratio=0.6, dt=0.5, num_layers=2).double()
    x, spans = torch.randn(3, 6, 2, dtype=F64), 4 * torch.rand(3, 6, dtype=F64)
    expected, _, stream = bit_by_bit(rnn, x, spans)
    for i in range(3):
        torch.testing.assert_close(rnn(x[i : i + 1], timespans=spans[i])[0], expected[i : i + 1])
    # Without the time of the samples before, the gate is elsewhere in its period.
    assert not torch.allclose(rnn.step(x[:, 5], stream.state, spans[:, 5])[0], expected[:, -1])


def test_a_step_of_a_field_that_looks_at_the_time_gives_a_stream():
    torch.manual_seed(0)
    rnn = neuralosc.PhasedLSTM(2, 4, open_ratio=0.6).double()
    x, spans = torch.randn(3, 4, 2, dtype=F64), 4 * torch.rand(3, 4, dtype=F64)
    state, times = None, spans.cumsum(1) - spans
    for i in range(4):
        _, state = rnn.step(x[:, i], state, spans[:, i])
        assert isinstance(state, neuralosc.Stream)
    torch.testing.assert_close(state.state, rnn(x, timespans=spans)[1], rtol=1e-12, atol=1e-13)
    # Who says the time each time needs none.
    bare = torch.zeros(3, 2, 4, dtype=F64)
    for i in range(4):
        _, bare = rnn.step(x[:, i], bare, spans[:, i], time=times[:, i])
    torch.testing.assert_close(bare, state.state, rtol=1e-12, atol=1e-13)
    noisy = ContinuousRNN(neuralosc.Noisy(rnn.field, 0.1), "euler_maruyama")
    assert noisy.timed and isinstance(noisy.step(x[:, 0])[1], neuralosc.Stream)
    assert not neuralosc.HawkesLSTM(2, 4).timed


def test_how_it_begins():
    field = neuralosc.TimeGatedLSTM(2, 400, shortest_period=2.0, longest_period=50.0, open_ratio=0.1).double()
    tau, s, r = (field.constants[name] for name in ("tau", "s", "r"))
    assert 2 * 0.999 < tau.min() < 2.2 and 45 < tau.max() < 50.001 and (s > 0).all() and (s <= tau * 1.000001).all()
    torch.testing.assert_close(r, torch.full_like(r, 0.1), rtol=1e-6, atol=0)
    assert 9 < tau.median() < 11.5


def test_what_is_refused(one_line):
    cases = [
        ({"shortest_period": 0.0}, ["shortest_period is 0.0", "above 0"]),
        ({"shortest_period": 30.0}, ["30.0", "20.0"]),
        ({"open_ratio": 0.0}, ["open_ratio is 0"]),
        ({"open_ratio": -0.1}, ["open_ratio is -0.1"]),
        ({"leak": -1}, ["leak is -1"]),
        ({"forget_bias": "one"}, ["forget_bias is 'one'"]),
    ]
    for settings, words in cases:
        with pytest.raises(InputError) as error:
            neuralosc.PhasedLSTM(2, 4, **settings)
        one_line(error, *words)
