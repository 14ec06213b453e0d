"""The LSTM of the neural Hawkes process: the published cell, its decay against its equation, and an LSTM of torch."""

import pytest
import torch
from torch import nn

import neuralosc
from tests.measures import relative_error

F64 = torch.float64


def test_the_published_cell(golden):
    """Its update comes before the decay over the timespan of the sample, and the next one takes c as it was before."""
    g, size = golden("hawkes_lstm"), 7
    rnn = neuralosc.HawkesLSTM(3, size).double()
    # Published in the order candidate, input, forget, output, input', forget', rate.
    order = torch.arange(7 * size).view(7, size)[[1, 2, 0, 3, 4, 5, 6]].flatten()
    ours = {"input_kernel": rnn.field.V.weight, "recurrent_kernel": rnn.field.W, "bias": rnn.field.V.bias}
    with torch.no_grad():
        for key, parameter in ours.items():
            parameter.copy_(g[key].T[order] if g[key].dim() == 2 else g[key][order])
    inputs = {key: g[key].requires_grad_() for key in ("x", "timespans", "h_0", "c_0", "c_bar_0")}
    h, c, m = inputs["h_0"], inputs["c_0"], inputs["c_bar_0"]
    found = {"h": [], "c": [], "c_bar": []}
    for x, span in zip(inputs["x"].unbind(1), inputs["timespans"].unbind(1), strict=True):
        rest = torch.zeros_like(h)
        _, state = rnn.step(x, torch.stack((h, c, m, rest, rest), 1), timespan=0)
        _, c, m, _, _ = state.unbind(1)
        h = rnn.advance(state, span)[:, 0]
        for key, value in (("h", h), ("c", c), ("c_bar", m)):
            found[key].append(value)
    found = {key: torch.stack(values, 1) for key, values in found.items()}
    found["y"] = found["h"]
    for key, value in found.items():
        assert relative_error(value, g[key]) <= 1e-9, key
    loss = sum((value * g["loss_weight" if key == "y" else f"loss_weight_{key}"]).sum() for key, value in found.items())
    wanted = ours | inputs
    assert {f"grad_{key}" for key in wanted} == {key for key in g if key.startswith("grad_")}
    for key, gradient in zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True):
        expected = g[f"grad_{key}"]
        if key in ours:
            expected = expected.T[order] if expected.dim() == 2 else expected[order]
        assert relative_error(gradient, expected) <= 1e-9, key


@pytest.mark.parametrize(("solver", "settings", "bound"), [("dopri8", {"rtol": 1e-10}, 1e-8), ("rk4", {}, 1e-5)])
def test_the_decay_is_the_solution_of_its_equation(solver, settings, bound):
    torch.manual_seed(0)
    rnn = neuralosc.HawkesLSTM(2, 3).double()
    x, spans = torch.randn(2, 5, 2, dtype=F64), 3 * torch.rand(2, 5, dtype=F64)
    states = rnn.solve(x, timespans=spans).states
    other = (
        rnn.with_solver(solver, substeps=1 if solver == "dopri8" else 20, **settings).solve(x, timespans=spans).states
    )
    assert relative_error(other, states) < bound
    # The output is that of the gate and the memory of the time, and comes to rest with it.
    h, c, m, o, d = states.unbind(2)
    torch.testing.assert_close(h, o * torch.tanh(c), rtol=1e-12, atol=1e-13)
    later = rnn.advance(states[:, -1], 1.5)
    decayed = m[:, -1] + (c - m)[:, -1] * torch.exp(-1.5 * d[:, -1])
    torch.testing.assert_close(later[:, 0], o[:, -1] * torch.tanh(decayed), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(rnn.advance(states[:, -1], 1e6)[:, 0], o[:, -1] * torch.tanh(m[:, -1]))


def test_in_no_time_it_is_the_lstm_of_torch():
    torch.manual_seed(0)
    rnn, lstm, x = neuralosc.HawkesLSTM(2, 4).double(), nn.LSTM(2, 4, batch_first=True).double(), torch.randn(3, 6, 2)
    with torch.no_grad():
        rnn.field.V.weight[:16].copy_(lstm.weight_ih_l0), rnn.field.W[:16].copy_(lstm.weight_hh_l0)
        rnn.field.V.bias[:16].copy_(lstm.bias_ih_l0 + lstm.bias_hh_l0)
    output, state = rnn(x.double(), timespans=torch.zeros(6, dtype=F64))
    expected, (h, c) = lstm(x.double())
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state[:, :2], torch.stack((h[0], c[0]), 1), rtol=1e-12, atol=1e-13)
