"""The field of ODE-RNN against published code, torch, and its definition."""

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import JumpGRU
from solvers.base.control import Held
from tests.neuralosc import published_ode_rnn as published
from tests.neuralosc.state_dicts import state_dict

F64 = torch.float64
NAN = float("nan")


def test_the_published_unit(golden, relative_error):
    g = golden("gru_unit")
    features, hidden = g["input_size"], g["latent_dim"]
    masked = JumpGRU(3 * features, hidden, "gru_unit", gate_units=g["n_units"], masked=True).double()
    unmasked = JumpGRU(2 * features, hidden, "gru_unit", gate_units=g["n_units"]).double()
    unmasked.gates = masked.gates
    published.fill(published.unit_pairs(masked.gates, g, ""))
    x, mean, std = (g[key].requires_grad_() for key in ("x", "y_mean", "y_std"))
    state = torch.stack((mean, std), -2)
    found = masked.jump(0.0, state, published.current(masked, x, g["mask"]))
    other = unmasked.jump(0.0, state, unmasked.drive(torch.cat((x, g["mask"]), -1)))
    names = {"y": found[..., 0, :], "std": found[..., 1, :], "unmasked": other[..., 0, :]}
    names["unmasked_std"] = other[..., 1, :]
    for name, value in names.items():
        assert relative_error(value, g[name]) <= published.TOLERANCE
    loss = sum((value * g[f"loss_weight{'' if name == 'y' else f'_{name}'}"]).sum() for name, value in names.items())
    inputs = [(x, g["grad_x"]), (mean, g["grad_y_mean"]), (std, g["grad_y_std"])]
    published.check(loss, inputs + published.unit_pairs(masked.gates, g, "", gradients=True), relative_error)
    # The case has what the rule is about: samples of which nothing was seen.
    assert (g["mask"].sum(-1) == 0).any() and (g["y_std"] < 0).any()


def test_the_published_run(golden, relative_error):
    """Forward as published: which intervals it integrates, and in which sense, is the loop's, not the field's."""
    g = golden("odernn")
    nets = ("z0_diffeq_solver_ode_func_gradient_net_", "ode_gru_GRU_update_")
    rnn, heads = neuralosc.from_reference("odernn", state_dict("odernn", g))
    field, decoder = rnn.field, heads["decoder"]
    x, times = g["x"].requires_grad_(), g["time_steps"].tolist()
    spans, (a, b) = [], (times[-1] + g["start_offset"], times[-1])
    for i in range(len(times)):
        spans.append((a, b, i))
        a, b = times[i], times[i - 1]
    least = (times[-1] - times[0]) / g["minimum_step_divisor"]
    states = published.published_run(field, published.current(field, x, g["mask"]), spans, least)
    mean, std = states.unbind(-2)
    predicted = torch.cat((x[:, :1], decoder(mean)[:, :-1]), 1).unsqueeze(0)
    names = {"y": mean.transpose(0, 1).unsqueeze(0), "std": std[:, -1].unsqueeze(0), "prediction": predicted}
    for name, value in names.items():
        assert relative_error(value, g[name]) <= published.TOLERANCE
    loss = sum((value * g[f"loss_weight{'' if name == 'y' else f'_{name}'}"]).sum() for name, value in names.items())
    pairs = published.network_pairs(field.net, g, nets[0], gradients=True)
    pairs += published.unit_pairs(field.gates, g, nets[1], gradients=True)
    pairs += published.network_pairs(decoder, g, "decoder_", gradients=True)
    published.check(loss, [(x, g["grad_x"]), *pairs], relative_error)


def test_the_baseline_of_neural_cdes(golden, relative_error):
    """One step of the 3/8 rule a gap and a GRU; what it is shown of the counts is the loop's."""
    g = golden("baseline_odernn")
    hidden, channels = g["hidden_size"], g["input_channels"]
    field = JumpGRU(channels, hidden, units=g["func_sequential_0_bias"].shape[0]).double()
    readout = nn.Linear(hidden, len(g["linear_bias"])).double()
    keys = {"V.weight": "weight_ih", "W.weight": "weight_hh", "V.bias": "bias_ih", "W.bias": "bias_hh"}
    gates = dict(field.gates.named_parameters())

    def pairs(prefix):
        return [
            *((gates[ours], g[f"{prefix}gru_cell_{theirs}"]) for ours, theirs in keys.items()),
            *((getattr(readout, part), g[f"{prefix}linear_{part}"]) for part in ("weight", "bias")),
            *published.network_pairs(field.net, g, "func_sequential_", gradients=bool(prefix)),
        ]

    published.fill(pairs(""))
    times, counts, values = g["times"], *g["x"][..., 1:].split((channels - 1) // 2, -1)
    seen, gaps = counts.diff(dim=1, prepend=torch.zeros_like(counts[:, :1])), times.diff(prepend=times[:1])
    h, since, states = values.new_zeros(len(values), 1, hidden), values.new_zeros(len(values), 1), []
    rule = solvers.get("rk4_38")
    for i, gap in enumerate(gaps.tolist()):
        any_seen = seen[:, i].amax(-1, keepdim=True) > 0
        if any_seen.any():
            since = torch.where(any_seen, since, since + gap)
        u = field.drive(torch.cat((gap + since, seen[:, i], values[:, i]), -1))
        h = rule.step(field, 0.0, gap, h, Held(u)) if i else h
        h = torch.where(any_seen.unsqueeze(-1), field.jump(0.0, h, u), h)
        states.append(h[:, 0])
    end = torch.stack(states, 1)[torch.arange(len(h)), g["final_index"]]
    y = readout(end)
    assert relative_error(y, g["y"]) <= published.TOLERANCE and relative_error(end, g["h_final"]) <= published.TOLERANCE
    loss = (y * g["loss_weight"]).sum() + (end * g["loss_weight_h_final"]).sum()
    published.check(loss, pairs("grad_"), relative_error)


def drawn(update, masked=False, features=2, hidden=3):
    torch.manual_seed(1)
    return JumpGRU(3 * features if masked else features, hidden, update, units=5, gate_units=4, masked=masked).double()


def test_the_jump_is_that_of_a_gru_cell():
    field, cell = drawn("gru"), nn.GRUCell(2, 3, dtype=F64)
    cell.load_state_dict(
        {
            f"{kind}_{name}": value
            for key, name in (("V", "ih"), ("W", "hh"))
            for kind, value in ((kind, field.gates.state_dict()[f"{key}.{kind}"]) for kind in ("weight", "bias"))
        }
    )
    x, h = torch.randn(4, 2, dtype=F64), torch.randn(4, 3, dtype=F64)
    after = field.jump(0.0, h.unsqueeze(1), field.drive(x))[:, 0]
    torch.testing.assert_close(after, cell(x, h), rtol=0, atol=1e-14)


@pytest.mark.parametrize("update", ["gru", "gru_unit"])
def test_a_run_by_hand(update):
    """Euler's step of the network over each gap, the jump behind it, and rest of the deviation between."""
    field = drawn(update)
    rnn = neuralosc.ContinuousRNN(field, "euler", dt=0.5, substeps=2)
    x, spans = torch.randn(4, 5, 2, dtype=F64), torch.rand(4, 5, dtype=F64) + 0.1
    state, states = torch.zeros(4, field.components, 3, dtype=F64), []
    for i in range(5):
        h = state[:, 0]
        for _ in range(2):
            h = h + 0.25 * spans[:, i, None] * field.net(h)
        state = field.jump(0.0, torch.cat((h.unsqueeze(1), state[:, 1:]), 1), field.drive(x[:, i]))
        states.append(state)
    solution = rnn.solve(x, timespans=spans)
    torch.testing.assert_close(solution.states, torch.stack(states, 1), rtol=1e-12, atol=1e-13)
    assert update == "gru" or (solution.states[..., 1, :] > 0).all()


@pytest.mark.parametrize("update", ["gru", "gru_unit"])
def test_where_nothing_was_seen_no_jump_is_made(update):
    """A sample without a value is a point of the solution between its neighbours: two half gaps are the gap."""
    rnn = neuralosc.ODERNN(2, 3, update=update, units=5, gate_units=4, solver="dopri5", missing="mask").double()
    rnn = rnn.with_solver("dopri5", rtol=1e-11, atol=1e-12)
    x, spans = torch.randn(4, 3, 2, dtype=F64), torch.rand(4, 3, dtype=F64) + 0.1
    x[0, 1, 0] = NAN
    gappy = torch.stack((torch.full_like(x, NAN), x), 2).flatten(1, 2)
    halves = (spans / 2).repeat_interleave(2, 1)
    torch.testing.assert_close(rnn(gappy, timespans=halves)[1], rnn(x, timespans=spans)[1], rtol=1e-8, atol=1e-9)


def test_a_missing_value_is_shown_as_zero_and_the_time_since_not_at_all():
    rnn = neuralosc.ODERNN(2, 3, units=5, missing="mask").double()
    held, mask, since = torch.randn(3, 4, 2, dtype=F64).unbind(0)
    mask = (mask > 0).double()
    mask[0, 0], mask[1] = 1.0, 0.0
    u = rnn.field.drive(torch.cat((held, mask, since), -1))
    expected = rnn.field.gates.drive(torch.cat((held * mask, mask), -1))
    assert torch.equal(u[:, :-1], expected) and u[:2, -1].tolist() == [1.0, 0.0]


def test_what_is_refused(one_line):
    cases = [
        (lambda: JumpGRU(4, 3, masked=True), ["takes 4", "multiple of 3"]),
        (lambda: JumpGRU(2, 3, "lstm"), ["update", "lstm", "gru_unit"]),
        (lambda: JumpGRU(2, 3, field_layers=0), ["field_layers is 0", "positive integer"]),
        (lambda: JumpGRU(2, 3, units=2.0), ["units is 2.0", "positive integer"]),
        (lambda: JumpGRU(2, 3, "gru_unit", gate_units=True), ["gate_units is True", "positive integer"]),
        (lambda: neuralosc.ODERNN(2, 3, gradient="reversible"), ["reversible", "jumps", "JumpGRU"]),
    ]
    for act, words in cases:
        with pytest.raises(solvers.InputError) as error:
            act()
        one_line(error, *words)


def test_chunks_and_steps_are_the_whole_where_values_are_missing():
    torch.manual_seed(2)
    rnn = neuralosc.ODERNN(2, 3, update="gru_unit", units=5, gate_units=4, missing="mask", num_layers=2).double()
    x, spans = torch.randn(4, 6, 2, dtype=F64), torch.rand(4, 6, dtype=F64)
    x[torch.rand(x.shape) < 0.6] = NAN
    output = rnn(x, timespans=spans)[0]
    stream, parts = rnn.begin(4), []
    for part, gaps in zip(x.split(4, 1), spans.split(4, 1), strict=True):
        chunk, stream = rnn(part, stream, gaps)
        parts.append(chunk)
    torch.testing.assert_close(torch.cat(parts, 1), output, rtol=1e-12, atol=1e-13)
    state = rnn.begin(4)
    for i in range(6):
        last, state = rnn.step(x[:, i], state, spans[:, i])
    torch.testing.assert_close(last, output[:, -1], rtol=1e-12, atol=1e-13)
    short = rnn(x, timespans=spans, lengths=torch.tensor([6, 3, 0, 1]))[1]
    alone = [rnn(x[i : i + 1, :n], timespans=spans[i : i + 1, :n])[1] for i, n in ((0, 6), (1, 3), (3, 1))]
    torch.testing.assert_close(short[:, [0, 1, 3]], torch.cat(alone, 1), rtol=1e-12, atol=1e-13)
    assert not short[:, 2].any()


@pytest.mark.slow
def test_it_is_compiled_for_both_updates():
    x, spans = torch.randn(4, 6, 2, dtype=F64), torch.rand(4, 6, dtype=F64)
    x[torch.rand(x.shape) < 0.6] = NAN
    for update in ("gru", "gru_unit"):
        rnn = neuralosc.ODERNN(2, 3, update=update, units=5, gate_units=4, missing="mask").double()
        found = []
        for backend in ("plain", "compiled"):
            with solvers.backend(backend):
                output = rnn(x, timespans=spans)[0]
            found.append((output, *torch.autograd.grad(output.square().sum(), list(rnn.parameters()))))
        for mine, its in zip(*found, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-12)
