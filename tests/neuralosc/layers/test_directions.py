"""Bidirectional stacks and skip connections, against the same layers run one by one by hand."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers import InputError

F64 = torch.float64


def network(name="cornn", features=2, **choices):
    return neuralosc.make(
        name, input_size=features, hidden_size=3, **{"dt": 0.3, "bidirectional": True, **choices}
    ).double()


def by_hand(rnn, x, spans, starts=None):
    """The network on one sequence (1, time, input) as separate networks on flipped sequences."""
    back = torch.cat((spans[:1], spans[1:].flip(0)))
    ends = []
    for layer in range(rnn.num_layers):
        outputs = []
        for way in range(2):
            index = 2 * layer + way
            alone = ContinuousRNN(
                rnn.fields[index], rnn.solver, rnn.dts[layer], rnn.substeps, "backprop", rnn.control, max_dt=rnn.max_dt
            )
            seen, timespans = (x.flip(1), back) if way else (x, spans)
            output, end = alone(seen, None if starts is None else starts[index], timespans)
            outputs.append(output.flip(1) if way else output)
            ends.append(end)
        inputs, x = x, torch.cat(outputs, -1)
        if rnn.residual:
            x = x + (inputs if inputs.shape == x.shape else inputs @ rnn.skip.weight.T)
    return x, torch.stack(ends)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(["cornn", "lipschitz", "lem", "gru"]),
    layers=st.integers(1, 3),
    control=st.sampled_from(list(solvers.CONTROLS)),
    solver=st.sampled_from(["rk4", "euler", "native_dopri5"]),
    residual=st.booleans(),
    features=st.sampled_from([2, 6]),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_equals_two_networks_on_flipped_sequences(name, layers, control, solver, residual, features, lengths, seed):
    torch.manual_seed(seed)
    chosen = {"solver": solver, "control": control, "num_layers": layers, "residual": residual}
    rnn = network(name, features, dt=[0.3, 0.2, 0.1][:layers], **chosen)
    batch, time = len(lengths), max(lengths) + 1
    x, spans = torch.randn(batch, time, features, dtype=F64), torch.rand(batch, time, dtype=F64)
    spans[torch.rand(batch, time) < 0.2] = 0.0
    starts = torch.randn(2 * layers, batch, rnn.components, 3, dtype=F64)
    padded = x.clone()
    for i, n in enumerate(lengths):
        padded[i, n:] = torch.nan
    output, state = rnn(padded, starts, spans, lengths)
    assert output.shape == (batch, time, 6) and state.shape == starts.shape
    solution = rnn.solve(padded, starts, spans, lengths)
    assert torch.equal(solution.output, output) and torch.equal(solution.state, state)
    assert len(solution.layers) == layers and len(solution.trajectories) == 2 * layers
    # An adaptive method chooses its steps for the whole batch.
    close = {"rtol": 0, "atol": 1e-5 if solver == "native_dopri5" else 1e-12}
    for i, n in enumerate(lengths):
        expected, end = by_hand(rnn, x[i : i + 1, :n], spans[i, :n], starts[:, i : i + 1])
        torch.testing.assert_close(output[i : i + 1, :n], expected, **close)
        torch.testing.assert_close(state[:, i : i + 1], end, **close)
        assert torch.equal(output[i, n:], output[i, n - 1 : n].expand(time - n, 6))
        if not residual:
            torch.testing.assert_close(solution.states[i, :n, 0], expected[0], **close)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("residual", [False, True])
def test_gradients_with_lengths_and_timespans(gradient, residual):
    rnn = network(num_layers=2, residual=residual, gradient=gradient)
    x, spans = torch.randn(3, 6, 2, dtype=F64, requires_grad=True), torch.rand(3, 6, dtype=F64, requires_grad=True)
    lengths, weight = [6, 1, 4], torch.randn(3, 6, 6, dtype=F64)
    wanted = [x, spans, *rnn.parameters()]
    output, state = rnn(x, timespans=spans, lengths=lengths)
    inside = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    loss = (output * weight)[inside].sum() + state.square().sum()
    gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
    loss = 0.0
    for i, n in enumerate(lengths):
        out, end = by_hand(rnn, x[i : i + 1, :n], spans[i, :n])
        loss = loss + (out * weight[i, :n]).sum() + end.square().sum()
    expected = torch.autograd.grad(loss, wanted, materialize_grads=True)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_long_sequences_take_the_compiled_path_in_both_directions():
    rnn, x, lengths = network(num_layers=2), torch.randn(3, 90, 2, dtype=F64), [90, 70, 5]
    assert {t.record.path for t in rnn.solve(x, lengths=lengths).trajectories} == {"compiled"}
    with solvers.backend("plain"):
        plain = rnn(x, lengths=lengths)[0]
    torch.testing.assert_close(rnn(x, lengths=lengths)[0], plain, rtol=0, atol=1e-12)
    explanation = rnn.explain(x, lengths=lengths, show=False)
    assert [layer.name for layer in explanation.layers] == ["0", "0_rev", "1", "1_rev"] and "1_rev " in str(explanation)


@pytest.mark.parametrize("lengths", [[5, 2, 6, 1], [6, 4, 4, 2]])
def test_a_packed_sequence_in_and_out(lengths):
    rnn, x = network(num_layers=2, residual=True), torch.randn(4, 6, 2, dtype=F64)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    output, state = rnn(packed)
    assert isinstance(output, PackedSequence)
    reference, end = rnn(x, lengths=lengths)
    torch.testing.assert_close(state, end, rtol=0, atol=1e-14)
    padded, _ = pad_packed_sequence(output, batch_first=True)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(padded[i, :n], reference[i, :n], rtol=0, atol=1e-14)


def test_timespans_of_one_are_none():
    rnn, x = network(num_layers=2), torch.randn(4, 6, 2, dtype=F64)
    for spans in (torch.ones(6), torch.ones(4, 6)):
        torch.testing.assert_close(rnn(x, timespans=spans)[0], rnn(x)[0], rtol=0, atol=1e-13)
    assert torch.equal(rnn.solve(x).timespans, torch.ones(6, dtype=F64))


def test_every_output_sees_the_whole_sequence():
    rnn, x = network(), torch.randn(1, 6, 2, dtype=F64)
    changed = x.clone()
    changed[:, 3] += 1.0
    moved = (rnn(x)[0] != rnn(changed)[0])[0]
    assert not moved[:3, :3].any() and moved[3:, :3].all() and moved[:4, 3:].all() and not moved[4:, 3:].any()


def test_noise_is_not_shared_by_the_directions():
    class Still(neuralosc.VectorField):
        def forward(self, t, state, u):
            return 0.0 * state

    fields = [neuralosc.Noisy(Still(1, 4), 1.0), neuralosc.Noisy(Still(1, 4), 1.0)]
    solver = solvers.get("euler_maruyama", noise_seed=3)
    output, _ = ContinuousRNN(fields, solver, bidirectional=True)(torch.zeros(2, 5, 1))
    forward, reverse = output[..., :4], output[..., 4:].flip(1)
    assert forward.any() and not torch.isclose(forward, reverse).any()


def test_dropout_is_one_mask_over_both_directions_and_leaves_the_skip_connection():
    rnn = network("unicornn", features=6, num_layers=1, dropout=0.5, residual=True).train()
    x = torch.randn(50, 4, 6, dtype=F64)
    branch = rnn(x)[0] - x
    dropped = branch.abs() < 1e-15
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert 0.35 < float(dropped.double().mean()) < 0.65
    assert not (rnn.eval()(x)[0] == x).any()


class TestTrajectory:
    @pytest.mark.parametrize("control", ["hold", "linear", "cubic"])
    @pytest.mark.parametrize("lengths", [None, [7, 3, 5]])
    def test_at_the_samples_it_is_the_run_itself(self, control, lengths):
        rnn = network(num_layers=2, control=control)
        x, spans = torch.randn(3, 7, 2, dtype=F64), 0.1 + torch.rand(3, 7, dtype=F64)
        states = rnn.solve(x, timespans=spans, lengths=lengths).states
        between = rnn.trajectory(x, spans, at=spans.cumsum(1), lengths=lengths)
        assert between.shape == (3, 7, 2, 6)
        for i, n in enumerate(lengths or [7] * 3):
            torch.testing.assert_close(between[i, :n], states[i, :n], rtol=1e-11, atol=1e-12)

    def test_between_the_samples_the_reverse_direction_runs_backwards(self):
        rnn = network(solver={"name": "native_dopri5", "rtol": 1e-10, "atol": 1e-12})
        x, spans = torch.randn(1, 7, 2, dtype=F64), 0.1 + torch.rand(7, dtype=F64)
        alone = ContinuousRNN(rnn.fields[1], rnn.solver, rnn.dt)
        end, first = spans.sum(), spans[0]
        # The last time is before the reverse direction has begun, the first after it has ended.
        at = torch.tensor([0.0, 0.05, 0.9, 2.1, float(end), float(end + first / 2), float(end + 2 * first)], dtype=F64)
        back = torch.cat((spans[:1], spans[1:].flip(0)))
        expected = alone.trajectory(x.flip(1), back, at=(end + first - at).clamp_min(0))
        states = rnn.trajectory(x, spans, at=at)
        torch.testing.assert_close(states[..., 3:], expected, rtol=1e-9, atol=1e-11)
        forward = ContinuousRNN(rnn.fields[0], rnn.solver, rnn.dt).trajectory(x, spans, at=at)
        torch.testing.assert_close(states[..., :3], forward, rtol=1e-9, atol=1e-11)
        assert not states[0, -1, :, 3:].any() and states[0, -2, :, 3:].any()


class TestOneOfTheFamily:
    def test_other_solvers_share_the_weights(self):
        rnn, x = network(num_layers=2, residual=True), torch.randn(2, 4, 2, dtype=F64)
        other = rnn.with_solver("rk4", substeps=2)
        assert [id(p) for p in other.parameters()] == [id(p) for p in rnn.parameters()]
        assert other.bidirectional and other.residual and other.config["bidirectional"] and other.config["residual"]
        assert torch.equal(other.with_solver("semi_implicit_euler", substeps=1)(x)[0], rnn(x)[0])

    def test_copies_pickles_and_files(self, tmp_path):
        rnn, x = network("unicornn", num_layers=2, residual=True, dropout=0.1).eval(), torch.randn(2, 4, 2, dtype=F64)
        expected = rnn(x)[0]
        again = neuralosc.load(neuralosc.save(rnn, tmp_path / "net")).eval()
        assert again.config == rnn.config and [*again.state_dict()] == [*rnn.state_dict()]
        for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), again):
            assert torch.equal(other(x)[0], expected)

    def test_files_of_before_have_one_direction(self, tmp_path):
        rnn = neuralosc.CoRNN(2, 3)
        for key in ("bidirectional", "residual"):
            del rnn.config[key]
        again = neuralosc.load(neuralosc.save(rnn, tmp_path / "net"))
        assert not again.bidirectional and not again.residual

    def test_function_transforms(self):
        rnn, x = network(num_layers=2), torch.randn(3, 5, 2, dtype=F64)
        lengths = torch.tensor([5, 2, 3])
        parameters = {key: value.detach() for key, value in rnn.named_parameters()}

        def loss(values, x):
            return torch.func.functional_call(rnn, values, (x.unsqueeze(0),))[0].square().sum()

        per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        for i in range(3):
            for key, value in torch.func.grad(loss)(parameters, x[i]).items():
                torch.testing.assert_close(per_sample[key][i], value)
        outputs = torch.vmap(lambda x, n: rnn(x.unsqueeze(0), lengths=n.unsqueeze(0))[0][0])(x, lengths)
        torch.testing.assert_close(outputs, rnn(x, lengths=lengths)[0])

    def test_degenerate_sizes(self):
        rnn = neuralosc.CoRNN(1, 1, bidirectional=True)
        assert rnn(torch.randn(1, 1, 1))[0].shape == (1, 1, 2)
        assert rnn(torch.randn(0, 3, 1), lengths=[])[0].shape == (0, 3, 2)
        assert (rnn.hidden_size, rnn.output_size, rnn.num_layers, rnn.components) == (1, 2, 1, 2)


class TestResidual:
    def test_one_layer_and_direction_by_hand(self):
        x = torch.randn(2, 5, 3, dtype=F64)
        rnn = network("lipschitz", features=3, bidirectional=False, residual=True)
        assert rnn.skip is None
        plain = ContinuousRNN(rnn.field, rnn.solver, rnn.dt)
        assert torch.equal(rnn(x)[0], plain(x)[0] + x) and torch.equal(rnn(x)[1], plain(x)[1])
        wide = network("lipschitz", features=2, bidirectional=False, residual=True, num_layers=2)
        assert isinstance(wide.skip, nn.Linear) and wide.skip.bias is None and wide.skip.weight.shape == (3, 2)
        x = x[..., :2]
        first = ContinuousRNN(wide.fields[0], wide.solver, wide.dt)(x)[0] + wide.skip(x)
        second = ContinuousRNN(wide.fields[1], wide.solver, wide.dt)(first)[0] + first
        assert torch.equal(wide(x)[0], second)

    def test_it_is_seen_one_sample_at_a_time(self):
        rnn = network(bidirectional=False, residual=True, num_layers=3, control="linear")
        x, spans = torch.randn(3, 6, 2, dtype=F64), torch.rand(3, 6, dtype=F64)
        state, outputs = None, []
        for sample, span in zip(x.unbind(1), spans.unbind(1), strict=True):
            output, state = rnn.step(sample, state, span)
            outputs.append(output)
        torch.testing.assert_close(torch.stack(outputs, 1), rnn(x, timespans=spans)[0], rtol=1e-12, atol=1e-13)

    def test_the_map_follows_the_field(self):
        rnn = ContinuousRNN(neuralosc.Lipschitz(2, 3).double(), "rk4", residual=True)
        assert rnn.skip.weight.dtype == F64
        torch.manual_seed(3)
        first = neuralosc.CoRNN(2, 3, residual=True)
        torch.manual_seed(3)
        second = neuralosc.CoRNN(2, 3, residual=True)
        assert torch.equal(first.skip.weight, second.skip.weight)


class TestBadInput:
    @pytest.mark.parametrize(
        ("choices", "words"),
        [
            ({"bidirectional": 2}, ["bidirectional is 2", "True or False"]),
            ({"bidirectional": "yes"}, ["bidirectional is 'yes'"]),
            ({"residual": None}, ["residual is None", "True or False"]),
        ],
    )
    def test_choices(self, choices, words, one_line):
        for make in (
            lambda: neuralosc.CoRNN(2, 3, **choices),
            lambda: ContinuousRNN(neuralosc.Lipschitz(2, 3), **choices),
        ):
            with pytest.raises(InputError) as error:
                make()
            one_line(error, *words)

    def test_fields_that_do_not_fit(self, one_line):
        def field(inputs, hidden=3):
            return neuralosc.Lipschitz(inputs, hidden)

        for fields, words in (
            ([field(2)], ["1 fields", "two per layer"]),
            ([field(2), field(2), field(6)], ["3 fields", "two per layer"]),
            ([field(2), field(3)], ["layer 0 takes 3 inputs", "other direction 2"]),
            ([field(2), field(2), field(3), field(3)], ["layer 1 takes 3 inputs", "gives 6"]),
            ([field(2), field(2, 4)], ["4 channels", "3"]),
        ):
            with pytest.raises(InputError) as error:
                ContinuousRNN(fields, "rk4", bidirectional=True)
            one_line(error, *words)

    def test_calls(self, one_line):
        rnn, x = network(), torch.zeros(4, 5, 2, dtype=F64)
        for call, words in (
            (lambda: rnn.step(x[:, 0]), ["step", "bidirectional=False"]),
            (lambda: rnn(x, torch.zeros(4, 2, 3, dtype=F64)), ["(4, 2, 3)", "(2, 4, 2, 3)", "directions"]),
            (lambda: rnn.field, ["1 layers in two directions", "rnn.fields"]),
        ):
            with pytest.raises(InputError) as error:
                call()
            one_line(error, *words)
