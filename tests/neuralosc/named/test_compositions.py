"""Published cells of irregular series that are compositions of networks there are: values and every gradient."""

import pytest
import torch
from torch import nn

import neuralosc
from neuralosc import ContinuousRNN
from tests.measures import relative_error

F64 = torch.float64
#: Published LSTMs have the order candidate, input, forget, output; torch has input, forget, candidate, output.
ORDER = [1, 2, 0, 3]


def leaves(g):
    """The golden values that have a gradient."""
    return {key[5:]: g[key[5:]].requires_grad_() for key in g if key.startswith("grad_")}


def check(g, inputs, **found):
    """Every value, and the gradient of the sum of all, as it is weighed, in everything that has a golden one."""
    loss = 0.0
    for key, value in found.items():
        assert relative_error(value, g[key]) <= 1e-9, key
        loss = loss + (value * g["loss_weight" if key == "y" else f"loss_weight_{key}"]).sum()
    assert {key for key in g if key.startswith("loss_weight")} == {
        "loss_weight" if key == "y" else f"loss_weight_{key}" for key in found
    }
    for key, gradient in zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True):
        assert relative_error(gradient, g[f"grad_{key}"]) <= 1e-9, key


def called(module, weights, *args, method="forward"):
    """What a method of a module gives with these tensors in the place of its parameters."""
    names = {name for name, _ in module.named_parameters()}
    assert weights.keys() == names

    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *args):
            return getattr(self.module, method)(*args)

    return torch.func.functional_call(Method(), {f"module.{name}": value for name, value in weights.items()}, args)


def lstm_weights(inputs, forget_bias, prefix=""):
    """The weights of an LSTM of torch, of published kernels; what is added to the forget gate is in a bias."""
    size = len(inputs[f"{prefix}recurrent_kernel"])
    order = torch.arange(4 * size).view(4, size)[ORDER].flatten()
    kernels = {"ih": inputs[f"{prefix}input_kernel"], "hh": inputs[f"{prefix}recurrent_kernel"]}
    added = torch.zeros(4, size, dtype=F64).index_fill(0, torch.tensor([1]), forget_bias).flatten()
    weights = {f"core.weight_{kind}_l0": kernel.T[order] for kind, kernel in kernels.items()}
    return weights | {"core.bias_ih_l0": inputs[f"{prefix}bias"][order], "core.bias_hh_l0": added}


def test_an_lstm_that_is_shown_the_timespan(golden):
    g, size = golden("lstm_elapsed"), 7
    inputs = leaves(g)
    lstm = neuralosc.LSTM(3, size, timespans="feature").double()
    weights = lstm_weights(inputs, g["forget_bias"])
    state, states = torch.stack((inputs["h_0"], inputs["c_0"]), 1), []
    for i in range(g["x"].shape[1]):
        here = slice(i, i + 1)
        _, state = called(lstm, weights, inputs["x"][:, here], state, inputs["timespans"][:, here])
        states.append(state)
    h, c = torch.stack(states, 1).unbind(2)
    check(g, inputs, y=h, h=h, c=c)
    whole, _ = called(lstm, weights, inputs["x"], torch.stack((inputs["h_0"], inputs["c_0"]), 1), inputs["timespans"])
    torch.testing.assert_close(whole, h, rtol=1e-12, atol=1e-13)


def test_an_lstm_and_a_continuous_time_rnn_that_see_each_other(golden):
    """Each is shown the state of the other before the sample; the published h = s g of `Relaxation` in g."""
    g, size = golden("lstm_ctrnn_pair"), 7
    inputs = leaves(g)
    lstm = neuralosc.LSTM(3 + size, size, timespans="feature").double()
    ctrnn = ContinuousRNN(
        neuralosc.Relaxation(3 + size, size).double(), g["solver"], substeps=g["unfolds"], max_dt=None
    )
    scale = inputs["ctrnn_scale"]
    rates = {"V.weight": inputs["ctrnn_kernel"].T, "V.bias": inputs["ctrnn_bias"]}
    rates |= {"W.weight": (scale.unsqueeze(1) * inputs["ctrnn_recurrent_kernel"]).T}
    rates = {f"fields.0.{key}": value for key, value in {**rates, "W.bias": torch.zeros(size, dtype=F64)}.items()}
    weights = lstm_weights(inputs, g["forget_bias"], "lstm_")
    h, c, r = (inputs[f"{name}_0"] for name in ("h", "c", "r"))
    found = {"h": [], "c": [], "r": [], "y": []}
    for x, span in zip(inputs["x"].split(1, 1), inputs["timespans"].split(1, 1), strict=True):
        shown = torch.cat((x, r.unsqueeze(1)), -1), torch.cat((x, h.unsqueeze(1)), -1)
        moved, _ = called(ctrnn, rates, shown[1], (r / scale).unsqueeze(1), span)
        _, state = called(lstm, weights, shown[0], torch.stack((h, c), 1), span)
        (h, c), r = state.unbind(1), scale * moved[:, 0]
        for key, value in (("h", h), ("c", c), ("r", r), ("y", h + r)):
            found[key].append(value)
    check(g, inputs, **{key: torch.stack(values, 1) for key, values in found.items()})


class Perceptron(neuralosc.ClosedForm):
    """A user's own map: a perceptron of the sample and the state, from which a multiple of the timespan is taken."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.layer, self.out = nn.Linear(input_size + hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.tau = nn.Parameter(torch.zeros(hidden_size))

    def propagate(self, t, dt, state, u):
        (h,) = state.unbind(-2)
        after = self.out(torch.tanh(self.layer(torch.cat((u, h), -1)))) - dt * self.tau
        return after.unsqueeze(-2)


def test_a_map_of_ones_own(golden):
    g = golden("vanilla_rnn")
    inputs = leaves(g)
    rnn = ContinuousRNN(Perceptron(3, 7).double(), "closed_form")
    weights = {f"{ours}.weight": inputs[f"{key}_kernel"].T for ours, key in (("layer", "layer"), ("out", "out_layer"))}
    weights |= {"layer.bias": inputs["layer_bias"], "out.bias": inputs["out_layer_bias"], "tau": inputs["tau"]}
    weights = {f"fields.0.{key}": value for key, value in weights.items()}
    output, _ = called(rnn, weights, inputs["x"], inputs["h_0"].unsqueeze(1), inputs["timespans"])
    check(g, inputs, y=output, h=output)


def test_a_gru_whose_state_decays_at_one_rate(golden):
    """`GRUDecay` with equal rows in R, blind to the state in its input, and 0 in the place of missing values.

    The spans it is shown are cumulated, and divided by the largest of the batch; a sample of which nothing is seen is
    left out, undecayed, but for the first one.
    """
    g = golden("gru_expdecay")
    features, hidden = g["input_size"], g["hidden_size"]
    spans, mask, d = g["timespans"], g["mask"], g["timespans"].unsqueeze(-1).expand(-1, -1, features).clone()
    for t in range(1, spans.shape[1] - 1):
        d[:, t + 1] += torch.where(mask[:, t] == 0, d[:, t], 0.0)
    assert relative_error(d / d.max(), g["cumulated_spans"]) <= 1e-12
    inputs = leaves(g)
    field = neuralosc.GRUDecay(3 * features, hidden).double()
    weights = {"V.weight": inputs["weight_ih"], "V.bias": inputs["bias_ih"], "W.weight": inputs["weight_hh"]}
    weights |= {"W.bias": inputs["bias_hh"], "U.weight": torch.zeros(3 * hidden, hidden, dtype=F64)}
    weights |= {
        "R.weight": inputs["decay_0_weight"].expand(hidden, -1),
        "R.bias": inputs["decay_0_bias"].expand(hidden),
    }
    # The last value, which is 0 here, stays in the place of a missing one.
    weights |= {"decay.w": torch.zeros(features, dtype=F64), "decay.b": torch.zeros(features, dtype=F64)}
    u = called(field, weights, torch.cat((inputs["x"], mask, inputs["cumulated_spans"]), -1), method="drive")
    h, states = torch.zeros(len(mask), 1, hidden, dtype=F64), []
    for t in range(spans.shape[1]):
        after = called(field, weights, 0.0, h, u[:, t], method="jump")
        h = torch.where((mask[:, t].sum(-1) > 0).view(-1, 1, 1) | torch.tensor(t == 0), after, h)
        states.append(h[:, 0])
    check(g, inputs, y=torch.stack(states, 1))


@pytest.mark.parametrize("values_only", [False, True])
@pytest.mark.parametrize("decays", [False, True])
def test_the_baselines_of_neural_cdes(decays, values_only, golden):
    """A GRU that is shown the gap, or whose state decays over it; what it is shown of the counts is the loop's."""
    g = golden(f"baseline_gru{'d' if decays else '_dt'}{'_values_only' if values_only else ''}")
    hidden, inputs = g["hidden_size"], leaves(g)
    features = inputs["gru_cell_weight_ih"].shape[1]
    names = {"V.weight": "weight_ih", "W.weight": "weight_hh", "V.bias": "bias_ih", "W.bias": "bias_hh"}
    gru = neuralosc.GRU(features, hidden).double()
    weights = {f"fields.0.{ours}": inputs[f"gru_cell_{theirs}"] for ours, theirs in names.items()}
    fading = ContinuousRNN(neuralosc.FadingGRU(1, hidden).double(), "closed_form")
    rates = dict(fading.named_parameters())
    if decays:
        rates |= {"fields.0.w": inputs["decay_weight"][:, 0], "fields.0.c": inputs["decay_bias"]}
    times, counts, values = g["times"], *g["x"][..., 1:].split((g["input_channels"] - 1) // 2, -1)
    seen, gaps = counts.diff(dim=1, prepend=torch.zeros_like(counts[:, :1])), times.diff(prepend=times[:1])
    h, since, states = values.new_zeros(len(values), 1, hidden), values.new_zeros(len(values), 1), []
    for i, gap in enumerate(gaps.tolist()):
        any_seen = seen[:, i].amax(-1, keepdim=True) > 0
        if any_seen.any():
            since = torch.where(any_seen, since, since + gap)
        u = torch.cat((gap + since, seen[:, i], values[:, i]), -1)
        if values_only:
            u = torch.cat((values[:, i, :1] + since, values[:, i, 1:]), -1)
        if decays and i:
            h = called(fading, rates, h, gap, method="advance")
        _, after = called(gru, weights, u, h, method="step")
        h = torch.where(any_seen.unsqueeze(-1), after, h)
        states.append(h[:, 0])
    end = torch.stack(states, 1)[torch.arange(len(h)), g["final_index"]]
    check(g, inputs, y=end @ inputs["linear_weight"].T + inputs["linear_bias"], h_final=end)
