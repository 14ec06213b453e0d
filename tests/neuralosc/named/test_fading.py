"""Fields whose state fades between the samples: the published cells reproduced, the decay against its equation."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from tests.measures import relative_error

F64 = torch.float64
TOLERANCE = 1e-9


def compared(pairs):
    for found, expected in pairs:
        assert found.shape == expected.shape and relative_error(found, expected) <= TOLERANCE


def filled(parameter, value):
    with torch.no_grad():
        parameter.copy_(value)


def by_scale(columns, scales):
    """Columns of which the scale is the fastest, as those of which it is the slowest."""
    return columns.unflatten(-1, (-1, scales)).transpose(-1, -2).flatten(-2)


def test_the_published_ct_gru(golden):
    """The published step updates, and then decays over its span: a sample in no time, and what passes after it."""
    g = golden("ctgru")
    scales, hidden, features = g["M"], g["hidden_size"], g["x"].shape[-1]
    rnn = neuralosc.CTGRU(features, hidden, scales=scales).double()
    field = rnn.field

    def arranged(prefix):
        """V, (W, Q) and b of the published maps."""
        kernels = [by_scale(g[f"{prefix}{name}_layer_kernel"], scales) for name in ("retrieval", "update")]
        whole = torch.cat([*kernels, g[f"{prefix}detect_layer_kernel"]], 1).T
        biases = [by_scale(g[f"{prefix}{name}_layer_bias"], scales) for name in ("retrieval", "update")]
        gates = 2 * scales * hidden
        return (
            whole[:, :features],
            whole[:gates, features:],
            whole[gates:, features:],
            torch.cat([*biases, g[f"{prefix}detect_layer_bias"]]),
        )

    parameters = [field.V.weight, field.W, field.Q, field.V.bias]
    for parameter, value in zip(parameters, arranged(""), strict=True):
        filled(parameter, value)
    x, spans, start = (g[key].clone().requires_grad_() for key in ("x", "timespans", "h_hat_0"))
    traces = start.unflatten(-1, (hidden, scales)).transpose(1, 2)
    state = torch.cat((traces.sum(1, keepdim=True), traces), 1)
    states = []
    for i in range(x.shape[1]):
        _, state = rnn.step(x[:, i], state, timespan=0.0)
        state = rnn.advance(state, spans[:, i])
        states.append(state)
    states = torch.stack(states, 1)
    y, h_hat = states[:, :, 0], states[:, :, 1:].transpose(-1, -2).flatten(-2)
    compared([(y, g["y"]), (h_hat, g["h_hat"])])
    loss = (y * g["loss_weight"]).sum() + (h_hat * g["loss_weight_h_hat"]).sum()
    gradients = torch.autograd.grad(loss, [x, spans, start, *parameters])
    expected = [g["grad_x"], g["grad_timespans"], g["grad_h_hat_0"], *arranged("grad_")]
    compared(zip(gradients, expected, strict=True))
    # The same by a call over the spans shifted by one, and the last span afterwards.
    shifted = torch.cat((torch.zeros_like(spans[:, :1]), spans[:, :-1]), 1)
    begun = torch.cat((traces.sum(1, keepdim=True), traces), 1)
    compared([(rnn.advance(rnn(x, begun, shifted)[1], spans[:, -1]), states[:, -1])])


def test_the_published_gru_with_decay(golden):
    g = golden("grud")
    hidden, features = g["hidden_size"], g["x"].shape[-1]
    field = neuralosc.FadingGRU(features, hidden).double()
    rnn = ContinuousRNN(field, "closed_form")
    gates = ("reset_gate", "update_gate", "detect_signal")

    def arranged(prefix):
        """V, W, b, w and c."""
        whole = torch.cat([g[f"{prefix}{gate}_kernel"] for gate in gates], 1).T
        bias = torch.cat([g[f"{prefix}{gate}_bias"] for gate in gates])
        return whole[:, :features], whole[:, features:], bias, g[f"{prefix}d_gate_kernel"][0], g[f"{prefix}d_gate_bias"]

    parameters = [field.V.weight, field.W, field.V.bias, field.w, field.c]
    for parameter, value in zip(parameters, arranged(""), strict=True):
        filled(parameter, value)
    x, spans, start = (g[key].clone().requires_grad_() for key in ("x", "timespans", "h_0"))
    output, _ = rnn(x, start.unsqueeze(1), spans)
    compared([(output, g["y"]), (output, g["h"])])
    loss = (output * (g["loss_weight"] + g["loss_weight_h"])).sum()
    gradients = torch.autograd.grad(loss, [x, spans, start, *parameters])
    compared(zip(gradients, [g["grad_x"], g["grad_timespans"], g["grad_h_0"], *arranged("grad_")], strict=True))


def test_the_offset_of_the_decay_acts_in_no_time_and_not_in_padding():
    torch.manual_seed(0)
    field = neuralosc.FadingGRU(2, 3).double()
    filled(field.c, torch.tensor([1.0, 2.0, -1.0]))
    rnn, x = ContinuousRNN(field, "closed_form"), torch.randn(2, 3, 2, dtype=F64)
    start = torch.randn(2, 1, 3, dtype=F64)
    output, state = rnn(x, start, torch.zeros(2, 3, dtype=F64), lengths=[3, 1])
    decayed = start * torch.exp(-torch.tensor([1.0, 2.0, 0.0], dtype=F64))
    torch.testing.assert_close(output[:, :1], field.jump(0.0, decayed, field.drive(x[:, 0])), rtol=1e-13, atol=1e-14)
    assert torch.equal(state[1, 0], output[1, 0])
    # In a gap without a sample it decays alone.
    torch.testing.assert_close(rnn.advance(start, 1e-12), decayed, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("solver", ["exponential_euler", "etd4rk", "implicit_midpoint", "dopri8"])
def test_the_decay_of_traces_is_the_solution_of_its_equation(solver):
    torch.manual_seed(0)
    rnn = neuralosc.CTGRU(2, 3, scales=4).double()
    x, spans = torch.randn(2, 5, 2, dtype=F64), torch.rand(2, 5, dtype=F64) * 3
    start = torch.randn(2, 5, 3, dtype=F64)
    expected = rnn.solve(x, start, spans).states
    exact = solver in ("exponential_euler", "etd4rk")
    settings = {"substeps": 50} if solver == "implicit_midpoint" else {}
    options = {"rtol": 1e-10, "atol": 1e-12} if solver == "dopri8" else {}
    states = rnn.with_solver(solver, max_dt=float("inf"), **settings, **options).solve(x, start, spans).states
    bound = 1e-13 if exact else 1e-8 if solver == "dopri8" else 1e-3
    assert relative_error(states, expected) < bound
    # The output is the sum of the traces, to the last digits.
    torch.testing.assert_close(states[:, :, 0], states[:, :, 1:].sum(2), rtol=1e-12, atol=1e-13)
    halved = rnn.with_solver("closed_form", substeps=3).solve(x, start, spans).states
    torch.testing.assert_close(halved, expected, rtol=1e-12, atol=1e-13)


def test_traces_by_hand():
    field = neuralosc.MultiscaleTraces(2, 3, scales=3).double()
    tau = torch.tensor([1.0, 10**0.5, 10.0], dtype=F64).unsqueeze(-1)
    state, u = torch.randn(4, 4, 3, dtype=F64), torch.randn(4, 21, dtype=F64)
    slope = -state[:, 1:] / tau
    expected = torch.cat((slope.sum(1, keepdim=True), slope), 1)
    torch.testing.assert_close(field(0.0, state, u), expected, rtol=1e-14, atol=1e-15)
    assert {"closed_form", "exponential_euler", "euler"} <= set(solvers.compatible(field))
    assert solvers.compatible(neuralosc.FadingGRU(2, 3)) == ["closed_form"]
