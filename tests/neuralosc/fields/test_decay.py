"""GRU-D: the published network with masks, by hand, in stacks, and what is refused."""

import pytest
import torch
from torch import nn

import neuralosc
from neuralosc import ContinuousRNN, InputError
from tests.measures import bit_by_bit
from tests.neuralosc.state_dicts import state_dict

F64 = torch.float64
NAN = float("nan")


def test_the_published_network(golden, relative_error):
    """Its outputs are the decayed states before each update; its first interval is 0 whatever the first timespan."""
    g = golden("grud_masked")
    weights = state_dict("grud", g)
    rnn, _ = neuralosc.from_reference("grud", weights, empirical_mean=g["empirical_mean"])
    field = rnn.field
    ours = {
        "rnn_cell_weight_hh": field.W.weight,
        "rnn_cell_bias_ih": field.V.bias,
        "rnn_cell_bias_hh": field.W.bias,
        "temp_decay_h_W": field.R.weight,
        "temp_decay_h_b": field.R.bias,
        "temp_decay_x_b": field.decay.b,
    }
    assert torch.equal(field.decay.mean, g["empirical_mean"])
    x, spans, mean = (g[key].requires_grad_() for key in ("x", "timespans", "empirical_mean"))
    field.decay.mean = mean
    seen = torch.where(g["mask"] > 0, x, NAN)
    solution = rnn.solve(seen, timespans=torch.cat((torch.zeros(3, 1, dtype=F64), spans[:, 1:]), 1))
    assert relative_error(solution.inputs[0][..., 6:], g["deltas"]) <= 1e-9
    assert relative_error(solution.inputs[0][..., :3], g["last_observed"]) <= 1e-9
    before = torch.cat((torch.zeros(3, 1, 7, dtype=F64), solution.output[:, :-1]), 1)
    y = field.drive(solution.inputs[0])[..., 21:] * before
    assert relative_error(y, g["y"]) <= 1e-9 and relative_error(solution.output[:, -1], g["h_final"]) <= 1e-9
    loss = (y * g["loss_weight"]).sum() + (solution.output[:, -1] * g["loss_weight_h_final"]).sum()
    wanted = [field.V.weight, field.U.weight, field.decay.w, x, spans, mean, *ours.values()]
    v, u, w, *others = torch.autograd.grad(loss, wanted)
    others = dict(zip(["x", "timespans", "empirical_mean", *ours], others, strict=True))
    others |= {"rnn_cell_weight_ih": torch.cat((v[:, :3], u, v[:, 3:]), 1), "temp_decay_x_W": w.diag()}
    assert {f"grad_{key}" for key in others} == {key for key in g if key.startswith("grad_")}
    for key, gradient in others.items():
        assert relative_error(gradient, g[f"grad_{key}"]) <= 1e-9, key


def test_what_is_seen_in_full_is_a_gru_of_torch():
    """Without masks, and its input blind to the state."""
    field, cell, x = neuralosc.GRUDecay(2, 4, masked=False).double(), nn.GRUCell(2, 4).double(), torch.randn(3, 5, 2)
    field.V.load_state_dict({"weight": cell.weight_ih.detach(), "bias": cell.bias_ih.detach()})
    field.W.load_state_dict({"weight": cell.weight_hh.detach(), "bias": cell.bias_hh.detach()})
    nn.init.zeros_(field.U.weight)
    h, x = torch.zeros(3, 4, dtype=F64), x.double()
    for sample in x.unbind(1):
        h = cell(sample, h)
    for solver in ("euler", "rk4", "implicit_midpoint"):
        torch.testing.assert_close(ContinuousRNN(field, solver, dt=3.0)(x)[1][:, 0], h, rtol=1e-12, atol=1e-13)


def test_a_value_goes_to_its_mean_and_the_state_to_rest():
    rnn = neuralosc.GRUD(1, 3).double()
    nn.init.ones_(rnn.field.decay.w), nn.init.ones_(rnn.field.R.weight), nn.init.zeros_(rnn.field.R.bias)
    rnn.field.decay.mean.fill_(2.0)
    x, spans = torch.tensor([[[5.0], [NAN]]], dtype=F64), torch.tensor([[1.0, 60.0]], dtype=F64)
    # As if nothing had ever been seen, and the feature was its mean.
    forgotten = torch.tensor([[[2.0, 0.0, 0.0]]], dtype=F64)
    rnn.field.decay.w.data.zero_()
    fresh = rnn.field.jump(0.0, torch.zeros(1, 1, 3, dtype=F64), rnn.field.drive(forgotten)[:, 0])
    rnn.field.decay.w.data.fill_(1.0)
    torch.testing.assert_close(rnn(x, timespans=spans)[1], fresh, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layers", [1, 2])
def test_bit_by_bit(layers):
    rnn = neuralosc.GRUD(2, 4, num_layers=layers).double()
    x, spans = torch.randn(3, 6, 2, dtype=F64), torch.rand(3, 6, dtype=F64)
    x[torch.rand(x.shape) < 0.4] = NAN
    _, end, _ = bit_by_bit(rnn, x, spans)
    # Between samples nothing happens.
    assert torch.equal(rnn.advance(end, 7.0), end)


def test_what_is_refused(one_line):
    cases = [
        (lambda: neuralosc.GRUD(2, 4, missing="hold"), ["missing is 'hold'", "'mask'"]),
        (lambda: neuralosc.GRUDecay(4, 4), ["takes 4", "multiple of 3"]),
        (lambda: neuralosc.GRUDecay(4, 4, masked="no"), ["masked is 'no'"]),
    ]
    for act, words in cases:
        with pytest.raises(InputError) as error:
            act()
        one_line(error, *words)
