"""CfC: the published cells reproduced, and what a map without an equation can and cannot do."""

import warnings

import pytest
import torch

import neuralosc
import solvers
from neuralosc import InputError
from solvers.errors import PairingError
from tests.measures import relative_error

F64 = torch.float64
TOLERANCE = 1e-9


def published(g):
    """The state dict of a golden file."""
    return {
        key.replace("rnn_cell_", "rnn_cell.")
        .replace("backbone_0_", "backbone.0.")
        .replace("backbone_2_", "backbone.2.")
        .replace("lstm_", "lstm.")
        .replace("_weight", ".weight")
        .replace("_bias", ".bias"): g[key]
        for key in g
        if key.startswith(("rnn_cell", "lstm"))
    }


def compared(pairs):
    for found, expected in pairs:
        assert relative_error(found.reshape(expected.shape), expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["cfc_default", "cfc_no_gate", "cfc_pure", "cfc_mixed_memory"])
@pytest.mark.parametrize("backend", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_published_cell(name, backend, golden):
    g = golden(name)
    rnn, readout = neuralosc.from_reference("cfc", published(g), mode=str(g["mode"]), activation=str(g["activation"]))
    assert readout is None and rnn.solver.name == "closed_form" and rnn.field.mixed_memory == g["mixed_memory"]
    x, spans, h0 = (g[key].clone().requires_grad_() for key in ("x", "timespans", "h0"))
    states = [h0, *([g["c0"].clone().requires_grad_()] if "c0" in g else [])]
    with solvers.backend(backend):
        output, end = rnn(x, torch.stack(states, 1), spans)
    compared([(output, g["y"]), *([(end[:, 1], g["c_final"])] if "c0" in g else [])])
    loss = (output * g["loss_weight"]).sum()
    loss = loss + ((end[:, 1] * g["loss_weight_c_final"]).sum() if "c0" in g else 0)
    parameters = dict(rnn.field.named_parameters())
    tensors = [x, spans, *states, *parameters.values()]
    gradients = torch.autograd.grad(loss, tensors)
    compared(zip(gradients, (g[f"grad_{k}"] for k in ("x", "timespans", "h0", "c0") if f"grad_{k}" in g), strict=False))
    grads = dict(zip(parameters, gradients[-len(parameters) :], strict=True))
    expected = published({key.removeprefix("grad_"): g[key] for key in g if key.startswith("grad_")})
    heads = ["ff1", "ff2", "time_a", "time_b"][: 1 if g["mode"] == "pure" else 4]
    units = len(g["rnn_cell_backbone_0_bias"])
    for part in ("weight", "bias"):
        first = expected.pop(f"rnn_cell.backbone.0.{part}")
        maps = torch.cat([expected.pop(f"rnn_cell.{head}.{part}") for head in heads])
        compared(
            [(grads[f"heads.{part}"], maps), (grads[f"backbone.0.{part}"], expected.pop(f"rnn_cell.backbone.2.{part}"))]
        )
        v = grads[f"V.{part}"]
        compared([(torch.cat((v[:units], grads["W"]), 1) if part == "weight" else v[:units], first)])
        if rnn.field.mixed_memory:
            compared([(v[units:], expected.pop(f"lstm.input_map.{part}"))])
    if rnn.field.mixed_memory:
        compared([(grads["R"], expected.pop("lstm.recurrent_map.weight"))])
    if g["mode"] == "pure":
        compared([(grads["A"], expected.pop("rnn_cell.A")), (grads["w"], expected.pop("rnn_cell.w_tau"))])
    assert not expected


def test_the_wired_network(golden):
    """Three layers of neurons within one step, each fed by the new state of the one before: a stack of networks.

    Its mask acts on f and g alone, and is put on the weights here; its gradients are those of the weights there are.
    """
    g = golden("cfc_wired")
    sizes, heads = g["layer_sizes"].tolist(), ("ff1", "ff2", "time_a", "time_b")
    x, spans, h0 = (g[key].clone().requires_grad_() for key in ("x", "timespans", "h0"))
    value, outputs, pairs = x, [], []
    for i, (size, start) in enumerate(zip(sizes, h0.split(sizes, 1), strict=True)):
        rnn = neuralosc.CfC(value.shape[-1], size, backbone_layers=0).double()
        mask = g[f"layer_{i}_sparsity_mask"]
        masks = torch.cat([mask, mask, torch.ones_like(mask), torch.ones_like(mask)])
        weight, bias = (torch.cat([g[f"layer_{i}_{head}_{part}"] for head in heads]) for part in ("weight", "bias"))
        with torch.no_grad():
            features = value.shape[-1]
            rnn.field.V.weight.copy_((weight * masks)[:, :features])
            rnn.field.W.copy_((weight * masks)[:, features:])
            rnn.field.V.bias.copy_(bias)
        value = rnn(value, start.unsqueeze(1), spans)[0]
        outputs.append(value)
        pairs.append((i, rnn.field, masks))
    h = torch.cat(outputs, -1)
    compared([(value, g["y"]), (h, g["h"])])
    loss = (value * g["loss_weight"]).sum() + (h * g["loss_weight_h"]).sum()
    fields = [parameter for _, f, _ in pairs for parameter in (f.V.weight, f.W, f.V.bias)]
    gradients = torch.autograd.grad(loss, [x, spans, h0, *fields])
    compared(zip(gradients[:3], (g["grad_x"], g["grad_timespans"], g["grad_h0"]), strict=True))
    for k, (i, _, masks) in enumerate(pairs):
        v, w, bias = gradients[3 + 3 * k : 6 + 3 * k]
        weight = torch.cat([g[f"grad_layer_{i}_{head}_weight"] for head in heads])
        compared([(torch.cat((v, w), 1) * masks, weight)])
        compared([(bias, torch.cat([g[f"grad_layer_{i}_{head}_bias"] for head in heads]))])


def test_the_equations_by_hand():
    field = neuralosc.ClosedFormContinuous(2, 3, backbone_layers=0).double()
    h, u, dt = torch.randn(4, 3, dtype=F64), torch.randn(4, 12, dtype=F64), torch.rand(4, 1, dtype=F64)
    f, g, a, b = (u + h @ field.W.T).split(3, 1)
    s = torch.sigmoid(a * dt + b)
    expected = torch.tanh(f) * (1 - s) + torch.tanh(g) * s
    torch.testing.assert_close(field.propagate(0.0, dt, h.unsqueeze(1), u)[:, 0], expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("mode", ["default", "no_gate", "pure"])
@pytest.mark.parametrize("backend", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_sample_at_a_timespan_of_zero_acts_as_published_and_padding_does_not(mode, backend):
    torch.manual_seed(0)
    rnn, x = neuralosc.CfC(2, 3, mode=mode, mixed_memory=True).double(), torch.randn(2, 4, 2, dtype=F64)
    start, zero = torch.randn(2, 2, 3, dtype=F64), torch.zeros(2, 4, dtype=F64)
    with solvers.backend(backend), warnings.catch_warnings():
        warnings.simplefilter("error")
        output, state = rnn(x, start, zero, lengths=[4, 2])
        # A plain evaluation of the map at dt = 0, which does not keep the state.
        expected = start
        for i in range(4):
            after = rnn.field.propagate(0.0, 0.0, expected, rnn.field.drive(x[:, i]))
            expected = after if i < 2 else torch.stack((after[0], expected[1]))
            torch.testing.assert_close(output[:, i], expected[:, 0], rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(state, expected, rtol=1e-13, atol=1e-14)
        stepped = rnn.step(x[:, 0], start, timespan=0.0)[0]
        torch.testing.assert_close(stepped, output[:, 0], rtol=1e-13, atol=1e-14)
    assert not torch.equal(output[:, 0], start[:, 0])
    assert torch.equal(rnn.advance(start, 0.0), start)


def test_the_state_at_the_time_of_samples_is_the_one_after_them():
    torch.manual_seed(0)
    rnn, x = neuralosc.CfC(2, 3).double(), torch.randn(2, 4, 2, dtype=F64)
    spans = torch.tensor([[1.0, 0.0, 2.0, 0.5], [0.5, 1.0, 0.0, 0.0]], dtype=F64)
    solution = rnn.solve(x, timespans=spans)
    states = rnn.trajectory(x, spans, at=spans.cumsum(1))
    last = torch.tensor([[1, 1, 2, 3], [0, 3, 3, 3]])
    torch.testing.assert_close(states, solution.states[torch.arange(2)[:, None], last], rtol=1e-13, atol=1e-14)
    between = rnn.trajectory(x, spans, at=torch.tensor([[1.5], [1.0]]))[:, 0]
    u = rnn.field.drive(torch.stack((x[0, 2], x[1, 1])))
    start = torch.stack((solution.states[0, 1], solution.states[1, 0]))
    expected = rnn.field.propagate(0.0, torch.tensor([[0.5], [0.5]], dtype=F64), start, u)
    torch.testing.assert_close(between, expected, rtol=1e-13, atol=1e-14)


def test_what_a_map_without_an_equation_cannot_do(one_line):
    rnn, x = neuralosc.CfC(2, 3), torch.randn(2, 4, 2)
    assert solvers.compatible(rnn.field) == ["closed_form"]
    cases = [
        (lambda: rnn.with_solver("rk4"), ["'rk4'", "differential", "closed_form"]),
        (lambda: rnn.with_solver("imex_euler"), ["'imex_euler'", "differential"]),
        (lambda: neuralosc.LEM(2, 3, solver="closed_form"), ["'closed_form' needs a closed_form field", "propagate"]),
        (lambda: neuralosc.CfC(2, 3, substeps=2), ["substeps is 2", "another map", "at 1"]),
        (lambda: neuralosc.CfC(2, 3, max_dt=0.5), ["max_dt is 0.5", "another map", "leave it out"]),
        (lambda: neuralosc.CfC(2, 3, gradient="adjoint"), ["'adjoint'", "closed form", "'checkpoint'"]),
        (lambda: neuralosc.CfC(2, 3, gradient="reversible"), ["'reversible'", "gradient 'checkpoint'"]),
        (lambda: solvers.integrate(rnn.field, torch.zeros(2, 1, 3), [0.0, 1.0]), ["integrate", "solvers.solve"]),
    ]
    for act, words in cases:
        with pytest.raises(PairingError) as error:
            act()
        one_line(error, *words)
    # Any gap is one step, and nothing asks for more.
    assert rnn.solve(x, timespans=torch.full((2, 4), 50.0)).evaluations == 4
    for wrong, words in (({"mode": "gated"}, ["mode"]), ({"backbone_layers": -1}, ["backbone_layers is -1"])):
        with pytest.raises(InputError) as error:
            neuralosc.CfC(2, 3, **wrong)
        one_line(error, *words)


def test_weights_that_do_not_fit_are_refused(golden, one_line):
    state_dict = published(golden("cfc_pure"))
    with pytest.raises(InputError) as error:
        neuralosc.from_reference("cfc", {k: v for k, v in state_dict.items() if k != "rnn_cell.w_tau"})
    one_line(error, "rnn_cell.w_tau")
    with pytest.raises(InputError) as error:
        neuralosc.from_reference("cfc", {**state_dict, "extra": torch.zeros(1)})
    one_line(error, "unknown keys extra")
    bare = {k: v for k, v in published(golden("cfc_default")).items() if "backbone" not in k}
    bare = {k: torch.randn(7, 10, dtype=F64) if k.endswith("weight") else v for k, v in bare.items()}
    fc = {"fc.weight": torch.randn(2, 7, dtype=F64), "fc.bias": torch.zeros(2, dtype=F64)}
    rnn, readout = neuralosc.from_reference("cfc", {**bare, **fc})
    assert rnn.config["backbone_layers"] == 0 and rnn.input_size == 3 and readout.out_features == 2
