"""LTC with synapses: the published cells reproduced, and its equation by hand."""

import pytest
import torch
from torch.nn.functional import softplus

import neuralosc
import solvers
from neuralosc import InputError
from tests.measures import relative_error

F64 = torch.float64
TOLERANCE = 1e-9
#: Ours, by the published name.
OURS = {"gleak": "gleak", "vleak": "vleak", "cm": "cm", "input_w": "input_w", "input_b": "input_b"}
OURS |= {name: f"synapses.{name}" for name in ("w", "sigma", "mu", "erev")}
OURS |= {f"sensory_{name}": f"sensory.{name}" for name in ("w", "sigma", "mu", "erev")}


def published(g, prefix=""):
    names = (*OURS, "sparsity_mask", "sensory_sparsity_mask", "output_w", "output_b")
    return {prefix + name: g[name] for name in names}


@pytest.mark.parametrize("name", ["ltc_synapse", "ltc_wired"])
def test_the_published_cell(name, golden):
    """The wired one has no softplus: ours is taken out of the gradients of what goes into it."""
    g = golden(name)
    constrained = g["implicit_param_constraints"]
    rnn, readout = neuralosc.from_reference(
        "ltc_synapse", published(g), constrained=constrained, epsilon=g["epsilon"], substeps=g["ode_unfolds"]
    )
    field = rnn.field
    assert rnn.solver.name == "imex_euler" and bool((field.synapses.mask == 0).any()) == (name == "ltc_wired")
    x, spans, start = (g[key].clone().requires_grad_() for key in ("x", "timespans", "h0"))
    h, _ = rnn(x, start.unsqueeze(1), spans)
    y = readout(h)
    assert relative_error(h, g["h"]) <= TOLERANCE and relative_error(y, g["y"]) <= TOLERANCE
    loss = (y * g["loss_weight"]).sum() + (h * g["loss_weight_h"]).sum()
    parameters = [field.get_parameter(key) for key in OURS.values()]
    found = torch.autograd.grad(loss, [x, spans, start, readout.weight, readout.bias, *parameters])
    grads = dict(zip(("x", "timespans", "h0", "output_w", "output_b", *OURS), found, strict=True))
    grads["output_w"] = grads["output_w"].diagonal()
    for key, gradient in grads.items():
        if not constrained and key in ("gleak", "cm", "w", "sensory_w"):
            gradient = gradient / torch.sigmoid(field.get_parameter(OURS[key]))
        assert relative_error(gradient, g[f"grad_{key}"]) <= TOLERANCE, key


def test_the_equation_by_hand():
    field = neuralosc.LiquidSynapses(2, 3, epsilon=0.1).double()
    v, x = torch.randn(4, 3, dtype=F64), torch.randn(4, 2, dtype=F64)
    with torch.no_grad():
        field.synapses.mask[0, 1] = 0
        field.input_b.copy_(torch.tensor([0.3, -0.2]))
        found = field(0.0, v.unsqueeze(1), field.drive(x))[:, 0]
        for n in range(4):
            for j in range(3):
                total = softplus(field.gleak[j]) * (field.vleak[j] - v[n, j]) - 0.1 * v[n, j]
                for i in range(3):
                    s = torch.sigmoid(field.synapses.sigma[i, j] * (v[n, i] - field.synapses.mu[i, j]))
                    total += (
                        field.synapses.mask[i, j]
                        * softplus(field.synapses.w[i, j])
                        * s
                        * (field.synapses.erev[i, j] - v[n, j])
                    )
                for k in range(2):
                    seen = x[n, k] * field.input_w[k] + field.input_b[k]
                    s = torch.sigmoid(field.sensory.sigma[k, j] * (seen - field.sensory.mu[k, j]))
                    total += softplus(field.sensory.w[k, j]) * s * (field.sensory.erev[k, j] - v[n, j])
                torch.testing.assert_close(found[n, j], total / softplus(field.cm[j]), rtol=1e-12, atol=1e-13)


def test_neurons_stay_between_their_reversal_potentials():
    torch.manual_seed(0)
    rnn = neuralosc.LTCSynapse(3, 8)
    output = rnn(10 * torch.randn(4, 50, 3), timespans=torch.empty(4, 50).exponential_())[0]
    assert float(output.detach().abs().max()) <= 1


def test_the_plain_path_is_taken_and_says_why():
    rnn, x = neuralosc.LTCSynapse(3, 8), torch.randn(2, solvers.run.choice.WORTHWHILE, 3)
    record = rnn.solve(x).trajectories[0].record
    assert record.path == "plain" and "outer product" in record.reason


def test_masks_are_saved(tmp_path, golden):
    rnn, _ = neuralosc.from_reference("ltc_synapse", published(golden("ltc_wired"), "rnn_cell."), constrained=False)
    again = neuralosc.load(neuralosc.save(rnn, tmp_path / "net"))
    x = torch.randn(2, 3, 3, dtype=F64)
    assert torch.equal(again(x)[0], rnn(x)[0]) and torch.equal(again.field.synapses.mask, rnn.field.synapses.mask)


def test_weights_that_do_not_fit_are_refused(golden, one_line):
    weights = published(golden("ltc_wired"))
    with pytest.raises(InputError) as error:
        neuralosc.from_reference("ltc_synapse", {**weights, "w": -weights["w"]}, constrained=False)
    one_line(error, "synapses.w holds -", "at least 0")
    with pytest.raises(InputError) as error:
        neuralosc.from_reference("ltc_synapse", {k: v for k, v in weights.items() if k != "mu"})
    one_line(error, "'mu'")
    zero = {**weights, "w": torch.zeros_like(weights["w"])}
    rnn, _ = neuralosc.from_reference("ltc_synapse", zero, constrained=False)
    assert (
        all(torch.isfinite(p).all() for p in rnn.parameters())
        and float(softplus(rnn.field.synapses.w.detach()).max()) < 1e-300
    )
