"""ODE-LSTM: the published networks, and an LSTM of torch at the samples."""

import pytest
import torch
from torch import nn

import neuralosc
from tests.neuralosc.state_dicts import state_dict

F64 = torch.float64


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_the_published_network(solver, golden, relative_error):
    """Its LSTM comes first and the motion over the timespan of the same sample after it."""
    g = golden(f"odelstm_{solver}")
    rnn, readout = neuralosc.from_reference("odelstm", state_dict("odelstm", g), solver=solver)
    assert rnn.substeps == g["unfolds"] and f"fixed_{rnn.solver.name}" == g["solver"]
    places = {"lstm_weight_ih": "V.weight", "lstm_weight_hh": "W.weight", "lstm_bias_ih": "V.bias"}
    places |= {"lstm_bias_hh": "W.bias", "f_node_0_weight": "W_1.weight", "f_node_0_bias": "W_1.bias"}
    places |= {"f_node_2_weight": "W_2.weight", "f_node_2_bias": "W_2.bias"}
    ours = {f"rnn_cell_{key}": rnn.field.get_parameter(place) for key, place in places.items()}
    ours |= {"fc_weight": readout.weight, "fc_bias": readout.bias}
    x, spans = g["x"].requires_grad_(), g["timespans"].requires_grad_()
    state, states = torch.zeros(3, 2, 7, dtype=F64), []
    for sample, span in zip(x.unbind(1), spans.unbind(1), strict=True):
        _, state = rnn.step(sample, state, timespan=0)
        state = rnn.advance(state, span)
        states.append(state)
    h, c = torch.stack(states, 1).unbind(2)
    found = {"h": h, "c": c, "y": readout(h)}
    for key, value in found.items():
        assert relative_error(value, g[key]) <= 1e-9, key
    weights = {"h": "loss_weight_h", "c": "loss_weight_c", "y": "loss_weight"}
    loss = sum((found[key] * g[weight]).sum() for key, weight in weights.items())
    ours |= {"x": x, "timespans": spans}
    assert {f"grad_{key}" for key in ours} == {key for key in g if key.startswith("grad_")}
    for key, gradient in zip(ours, torch.autograd.grad(loss, list(ours.values())), strict=True):
        assert relative_error(gradient, g[f"grad_{key}"]) <= 1e-9, key


def test_the_published_network_in_its_other_form(golden, relative_error):
    g = golden("odelstm_ctrnn")
    field, size = neuralosc.LSTMDrive(3, 7, g["tau"], g["forget_bias"]).double(), 7
    # Published in the order candidate, input, forget, output; torch has input, forget, candidate, output.
    order = torch.arange(4 * size).view(4, size)[[1, 2, 0, 3]].flatten()
    ours = {
        "ctrnn_kernel": (field.K.weight, lambda v: v.T),
        "ctrnn_recurrent_kernel": (field.R.weight, lambda v: v.T),
        "ctrnn_bias": (field.K.bias, lambda v: v),
        "ctrnn_scale": (field.s, lambda v: v),
        "input_kernel": (field.V.weight, lambda v: v.T[order]),
        "recurrent_kernel": (field.W.weight, lambda v: v.T[order]),
        "bias": (field.V.bias, lambda v: v[order]),
    }
    with torch.no_grad():
        for key, (parameter, turned) in ours.items():
            parameter.copy_(turned(g[key]))
    rnn = neuralosc.ContinuousRNN(field, g["solver"], substeps=g["unfolds"])
    inputs = {key: g[key].requires_grad_() for key in ("x", "timespans", "c_0", "h_0")}
    state, states = torch.stack((inputs["h_0"], inputs["c_0"], torch.zeros(3, 7, dtype=F64)), 1), []
    for sample, span in zip(inputs["x"].unbind(1), inputs["timespans"].unbind(1), strict=True):
        state = rnn.advance(rnn.step(sample, state, timespan=0)[1], span)
        states.append(state)
    h, c, _ = torch.stack(states, 1).unbind(2)
    assert max(relative_error(h, g["h"]), relative_error(h, g["y"]), relative_error(c, g["c"])) <= 1e-9
    loss = (h * (g["loss_weight"] + g["loss_weight_h"])).sum() + (c * g["loss_weight_c"]).sum()
    ours |= {key: (value, lambda v: v) for key, value in inputs.items()}
    assert {f"grad_{key}" for key in ours} == {key for key in g if key.startswith("grad_")}
    gradients = torch.autograd.grad(loss, [parameter for parameter, _ in ours.values()])
    for (key, (_, turned)), gradient in zip(ours.items(), gradients, strict=True):
        assert relative_error(gradient, turned(g[f"grad_{key}"])) <= 1e-9, key


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "node"])
def test_the_published_continuous_time_rnn(name, golden, relative_error):
    """Its h = s g with g' = tanh(x K + (s g) R + b) - tau g: a field of ours in g, with s in its recurrent weight."""
    g = golden(f"ctrnn_{name}")
    keys = ("kernel", "recurrent_kernel", "bias", "scale", "x", "timespans", "h_0")
    inputs = {key: g[key].requires_grad_() for key in keys}
    leak = {1.0: neuralosc.Relaxation, 0.0: neuralosc.Residual}[g["tau"]]
    rnn = neuralosc.ContinuousRNN(leak(3, 7).double(), g["solver"], substeps=g["unfolds"], max_dt=None)
    recurrent = inputs["scale"].unsqueeze(1) * inputs["recurrent_kernel"]
    # One acts from the left and has a second bias, the other acts from the right.
    weights = {"field.V.weight": inputs["kernel"].T, "field.V.bias": inputs["bias"]}
    weights |= {"field.W": recurrent} if g["tau"] == 0 else {"field.W.weight": recurrent.T}
    weights = {key.replace("field.", "fields.0."): value for key, value in weights.items()}
    weights |= {"fields.0.W.bias": torch.zeros(7, dtype=F64)} if g["tau"] else {}
    start = (inputs["h_0"] / inputs["scale"]).unsqueeze(1)
    output, _ = torch.func.functional_call(rnn, weights, (inputs["x"], start, inputs["timespans"]))
    y = output * inputs["scale"]
    assert max(relative_error(y, g["y"]), relative_error(y, g["h"])) <= 1e-9
    gradients = torch.autograd.grad((y * (g["loss_weight"] + g["loss_weight_h"])).sum(), list(inputs.values()))
    assert {f"grad_{key}" for key in inputs} == {key for key in g if key.startswith("grad_")}
    for key, gradient in zip(inputs, gradients, strict=True):
        assert relative_error(gradient, g[f"grad_{key}"]) <= 1e-9, key


def test_the_whole_call_is_the_published_loop_with_spans_shifted_by_one():
    rnn, x, spans = neuralosc.ODELSTM(2, 4).double(), torch.randn(3, 6, 2, dtype=F64), torch.rand(3, 7, dtype=F64)
    state = torch.zeros(3, 2, 4, dtype=F64)
    for i in range(6):
        _, state = rnn.step(x[:, i], rnn.advance(state, spans[:, i]), timespan=0)
    torch.testing.assert_close(rnn(x, timespans=spans[:, :6])[1], state, rtol=1e-11, atol=1e-12)


def test_without_motion_it_is_the_lstm_of_torch():
    rnn, lstm, x = neuralosc.ODELSTM(2, 4).double(), nn.LSTM(2, 4, batch_first=True).double(), torch.randn(3, 6, 2)
    for ours, suffix in ((rnn.field.V, "ih"), (rnn.field.W, "hh")):
        ours.load_state_dict({part: getattr(lstm, f"{part}_{suffix}_l0").detach() for part in ("weight", "bias")})
    nn.init.zeros_(rnn.field.W_2.weight), nn.init.zeros_(rnn.field.W_2.bias)
    output, state = rnn(x.double(), timespans=torch.rand(6, dtype=F64))
    expected, (h, c) = lstm(x.double())
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state, torch.stack((h[0], c[0]), 1), rtol=1e-12, atol=1e-13)
