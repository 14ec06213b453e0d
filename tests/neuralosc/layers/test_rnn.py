"""The recurrent layer: shapes and order as in `nn.RNN`, lengths, packing, clocks, stacks, dropout, swapped solvers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.protocol import structure
from tests.fields import fitting

F64 = torch.float64
# Each call under a method for noise is a realisation of its own; its own tests hold the seed.
FITTING = solvers.compatible(neuralosc.Oscillator(2, 3, coupled=False))
NOISELESS = [name for name in FITTING if solvers.get(name).family != "stochastic"]
FIXED = [name for name in NOISELESS if not solvers.get(name).adaptive]


def network(name="cornn", **settings):
    # Noise, where a network has some, is the same in every call.
    seeded = {"solver": {"name": "euler_maruyama", "noise_seed": 1}} if name == "noisy" else {}
    return neuralosc.make(name, input_size=2, hidden_size=3, **{"dt": 0.2, **seeded, **settings}).double()


def inputs(batch=4, time=6):
    return torch.randn(batch, time, 2, dtype=F64)


NAMES = [card.name for card in neuralosc.models() if card.field and not card.blocks]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_order_are_those_of_torch_rnn(name, layers):
    rnn, like = network(name, num_layers=layers), nn.RNN(2, 3, layers, batch_first=True).double()
    x = inputs()
    (output, state), (expected, hidden) = rnn(x), like(x)
    assert output.shape == expected.shape == (4, 6, 3)
    lead = (layers,) if layers > 1 else ()
    assert state.shape == (*lead, 4, rnn.components, 3) and hidden.shape == (layers, 4, 3)
    top = state if layers == 1 else state[-1]
    assert torch.equal(top[:, 0], output[:, -1])
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers) == (2, 3, layers)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_at_a_time_sees_no_later_input(name):
    for control in (neuralosc.model(name).defaults["control"], "linear"):
        rnn, x = network(name, control=control, num_layers=2), inputs()
        before = rnn(x)[0]
        x[:, 4:] += 1.0
        after = rnn(x)[0]
        assert torch.equal(before[:, :4], after[:, :4])
        # A linear control starts an interval at the sample before, which is all that these one-sided steps look at.
        assert control == "linear" or not torch.equal(before[:, 4], after[:, 4])


def test_a_vanilla_rnn_is_euler_with_a_step_of_one(make_field):
    """`nn.RNN` itself, from the user's field of ten lines."""
    field, like = make_field("leaky"), nn.RNN(2, 3, batch_first=True).double()
    with torch.no_grad():
        like.weight_ih_l0.copy_(field.V.weight), like.bias_ih_l0.copy_(field.V.bias)
        like.weight_hh_l0.copy_(field.W.weight), like.bias_hh_l0.copy_(field.W.bias)
    x, h = inputs(), torch.randn(1, 4, 3, dtype=F64)
    output, state = ContinuousRNN(field, "euler")(x, h.transpose(0, 1))
    expected, hidden = like(x, h)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(state, hidden.transpose(0, 1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("solver", NOISELESS)
def test_two_halves_equal_the_whole(solver, layers):
    if solver == "reversible":
        pytest.skip("carries a second state from step to step, which starts anew at each call")
    chosen = solvers.get(solver, rtol=1e-4, atol=1e-5) if solvers.get(solver).adaptive else solver
    rnn, x = network(coupled=False, num_layers=layers).with_solver(chosen), inputs()
    whole, end = rnn(x)
    first, state = rnn(x[:, :3])
    second, last = rnn(x[:, 3:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(last, end, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", FIXED)
def test_lengths_equal_truncation_in_values_and_gradients(solver):
    for control in ("hold", "linear"):
        rnn = network(coupled=False, num_layers=2, control=control).with_solver(solver)
        x, lengths, spans = inputs(), [6, 1, 3, 5], torch.rand(4, 6, dtype=F64)
        padded = x.clone()
        for i, n in enumerate(lengths):
            padded[i, n:] = torch.nan
        padded.requires_grad_()
        output, state = rnn(padded, timespans=spans, lengths=lengths)
        assert torch.isfinite(output).all()
        gradients = torch.autograd.grad(
            output.sum() + state.square().sum(), [padded, *rnn.parameters()], materialize_grads=True
        )
        total = [torch.zeros_like(p) for p in rnn.parameters()]
        for i, n in enumerate(lengths):
            one = x[i : i + 1, :n].clone().requires_grad_()
            out, end = rnn(one, timespans=spans[i, :n])
            torch.testing.assert_close(output[i : i + 1, :n], out, rtol=0, atol=1e-13)
            torch.testing.assert_close(state[:, i : i + 1], end, rtol=0, atol=1e-13)
            # The state stays in the padding, and so does the output.
            assert torch.equal(output[i, n:], output[i, n - 1 : n].expand(6 - n, 3))
            loss = out.sum() + (6 - n) * out[:, -1].sum() + end.square().sum()
            grad_x, *alone = torch.autograd.grad(loss, [one, *rnn.parameters()], materialize_grads=True)
            torch.testing.assert_close(gradients[0][i : i + 1, :n], grad_x, rtol=0, atol=1e-12)
            assert torch.equal(gradients[0][i, n:], torch.zeros(6 - n, 2, dtype=F64))
            total = [a + b for a, b in zip(total, alone, strict=True)]
        for gradient, expected in zip(gradients[1:], total, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hole", [float("nan"), -1.0, float("inf")])
def test_timespans_in_the_padding_may_hold_anything(hole):
    rnn, x = network(), inputs()
    spans = torch.ones(4, 6, dtype=F64)
    expected = rnn(x, timespans=spans, lengths=[3] * 4)[0]
    spans[:, 3:] = hole
    assert torch.equal(rnn(x, timespans=spans, lengths=[3] * 4)[0], expected)


@pytest.mark.parametrize("lengths", [[5, 2, 6, 1], [6, 4, 4, 2], [3, 3, 3, 3], [1, 6, 1, 6]])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_packed_sequence_in_and_out(lengths, layers):
    rnn, x = network(num_layers=layers), inputs()
    like = nn.RNN(2, 3, batch_first=True).double()
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    initial = torch.randn(*([2] if layers == 2 else []), 4, 2, 3, dtype=F64)
    output, state = rnn(packed, initial)
    assert isinstance(output, PackedSequence)
    expected, _ = like(packed)
    for part, like_part in zip(output[1:], expected[1:], strict=True):
        assert torch.equal(part, like_part)
    padded, unpacked_lengths = pad_packed_sequence(output, batch_first=True)
    assert unpacked_lengths.tolist() == lengths
    time = max(lengths)
    reference, end = rnn(x[:, :time], initial, lengths=lengths)
    # What was packed lies in memory in another order, which may be that of sums, too.
    torch.testing.assert_close(state, end, rtol=0, atol=1e-14)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(padded[i, :n], reference[i, :n], rtol=0, atol=1e-14)


def test_a_sorted_packed_sequence_and_gradients():
    rnn, x = network(), inputs().requires_grad_()
    packed = pack_padded_sequence(x, torch.tensor([6, 4, 4, 2]), batch_first=True)
    assert packed.sorted_indices is None
    output, _ = rnn(packed)
    assert output.sorted_indices is None
    (gradient,) = torch.autograd.grad(output.data.sum(), x)
    reference = rnn(x, lengths=[6, 4, 4, 2])[0]
    loss = sum(reference[i, :n].sum() for i, n in enumerate([6, 4, 4, 2]))
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, x)[0], rtol=0, atol=1e-13)


def test_a_packed_sequence_carries_its_lengths(one_line):
    packed = pack_padded_sequence(inputs(), torch.tensor([6, 4, 4, 2]), batch_first=True)
    with pytest.raises(solvers.InputError) as error:
        network()(packed, lengths=[6, 4, 4, 2])
    one_line(error, "lengths", "PackedSequence", "leave it out")


@pytest.mark.parametrize("name", NAMES)
def test_timespans_of_one_change_nothing(name):
    rnn, x = network(name), inputs()
    expected = rnn(x)[0]
    for spans in (torch.ones(6), torch.ones(4, 6), [1.0] * 6, torch.ones(6, dtype=torch.long)):
        torch.testing.assert_close(rnn(x, timespans=spans)[0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", FIXED)
def test_clocks_per_sample_equal_each_sample_alone(solver):
    rnn, x = network(coupled=False, num_layers=2, control="linear").with_solver(solver, substeps=2), inputs()
    spans = torch.rand(4, 6, dtype=F64)
    spans[0, 0] = spans[1, 3] = spans[2] = 0.0
    output, state = rnn(x, timespans=spans)
    for i in range(4):
        alone, end = rnn(x[i : i + 1], timespans=spans[i])
        torch.testing.assert_close(output[i : i + 1], alone, rtol=0, atol=1e-13)
        torch.testing.assert_close(state[:, i : i + 1], end, rtol=0, atol=1e-13)
    assert torch.equal(output[2], torch.zeros(6, 3, dtype=F64))


def test_timespans_scale_dt():
    x = inputs()
    slow, fast = network(dt=0.1, max_dt=None), network(dt=0.2)
    fast.load_state_dict(slow.state_dict())
    twice = slow(x, timespans=torch.full((6,), 2.0))[0]
    torch.testing.assert_close(twice, fast(x)[0], rtol=0, atol=1e-14)


def test_dt_per_layer():
    rnn, x = network(num_layers=2, dt=[0.1, 0.3]), inputs()
    assert rnn.dt == (0.1, 0.3)
    first, second = (ContinuousRNN(field, rnn.solver, dt) for field, dt in zip(rnn.fields, rnn.dts, strict=True))
    torch.testing.assert_close(rnn(x)[0], second(first(x)[0])[0], rtol=0, atol=1e-14)
    solution = rnn.solve(x)
    assert len(solution.layers) == 2 and solution.states.shape == (4, 6, 2, 3)
    assert torch.equal(solution.layers[0][..., 0, :], first(x)[0])
    assert torch.equal(solution.output, solution.states[..., 0, :])


def test_dropout_is_one_mask_per_sequence_and_off_in_evaluation():
    rnn, x = network("unicornn", num_layers=2, dropout=0.5), inputs(batch=50)
    rnn.train()
    output = rnn(x)[0]
    dropped = output == 0
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    rate = float(dropped[:, 0].double().mean())
    assert 0.3 < rate < 0.7
    assert not torch.equal(rnn(x)[0], output)
    # What is kept is scaled, so that the expectation stays: the first layer's dropout only changes the second's input.
    solution = rnn.solve(x)
    kept = solution.output != 0
    torch.testing.assert_close(solution.output[kept], 2 * solution.states[..., 0, :][kept])
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0]) and not (rnn(x)[0] == 0).any()


def test_dropout_follows_the_seed():
    rnn, x = network(dropout=0.3), inputs()
    torch.manual_seed(5)
    first = rnn(x)[0]
    torch.manual_seed(5)
    assert torch.equal(first, rnn(x)[0])


def test_with_solver_shares_the_weights():
    rnn, x = network(num_layers=2, dropout=0.1), inputs()
    other = rnn.with_solver("rk4", substeps=2, dt=0.05, control="linear")
    assert [id(p) for p in other.parameters()] == [id(p) for p in rnn.parameters()]
    assert (other.solver.name, other.substeps, other.dt, other.control.name) == ("rk4", 2, 0.05, "linear")
    assert (rnn.solver.name, rnn.substeps, rnn.dt, rnn.control.name) == ("semi_implicit_euler", 1, 0.2, "hold")
    assert other.config["solver"] == "rk4" and rnn.config["solver"] == "semi_implicit_euler"
    before = other.eval()(x)[0]
    with torch.no_grad():
        rnn.fields[0].W.add_(1.0)
    assert not torch.equal(other(x)[0], before)
    assert rnn.training and not other.training
    other.float()
    assert {p.dtype for p in rnn.parameters()} == {torch.float32}
    value = solvers.get("dopri5", rtol=1e-3)
    assert rnn.with_solver(value).solver is value or rnn.with_solver(value).solver == value
    assert rnn.with_solver(value).with_solver("euler").dropout == rnn.dropout


def test_running_leaves_the_module_as_it_was(field_name, make_field):
    field = make_field(field_name)
    rnn = ContinuousRNN(field, fitting(field, "rk4"), 0.1)
    state_dict = {k: v.clone() for k, v in rnn.state_dict().items()}
    attributes = set(vars(field))
    rnn(inputs())[0].sum().backward()
    assert set(vars(field)) == attributes
    assert all(torch.equal(v, rnn.state_dict()[k]) for k, v in state_dict.items())
    # Nothing computed for one pass survives to the next: a change of the weights is seen.
    rnn.eval()
    before = rnn(inputs())[0]
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.mul_(1.5).add_(0.1)
    assert not torch.equal(rnn(inputs())[0], before)


def test_a_bound_field_is_the_same_field(field_name, make_field):
    field = make_field(field_name)
    bound = field.bind()
    state = torch.randn(4, field.components, 3, dtype=F64)
    u = field.drive(inputs())[:, 0]
    if "closed_form" in field.structure:
        assert torch.equal(bound.propagate(0.0, 0.3, state, u), field.propagate(0.0, 0.3, state, u))
    if "differential" in structure(field):
        assert torch.equal(bound(0.0, state, u), field(0.0, state, u))
    assert [id(p) for p in bound.parameters()] == [id(p) for p in field.parameters()]
    assert bound is not field and bound.structure == field.structure


def test_copies_pickles_and_state_dicts(field_name, make_field):
    field = make_field(field_name)
    rnn = ContinuousRNN(field, fitting(field, "rk4"), 0.1)
    x = inputs()
    expected = rnn(x)[0]
    deep = copy.deepcopy(rnn)
    assert torch.equal(deep(x)[0], expected)
    assert not {id(p) for p in deep.parameters()} & {id(p) for p in rnn.parameters()}
    fresh = ContinuousRNN(make_field(field_name), rnn.solver, 0.1)
    assert not torch.equal(fresh(x)[0], expected)
    fresh.load_state_dict(rnn.state_dict())
    assert torch.equal(fresh(x)[0], expected)
    if field_name not in ("hamiltonian_energy", "leaky"):
        assert torch.equal(pickle.loads(pickle.dumps(rnn))(x)[0], expected)
    assert pickle.loads(pickle.dumps(rnn(x)[1])).shape == (4, rnn.components, 3)


def test_conversion_between_dtypes(field_name, make_field):
    field = make_field(field_name)
    rnn = ContinuousRNN(field, fitting(field, "rk4"), 0.1)
    x = inputs()
    expected = rnn(x)[0]
    single = rnn.float()(x.float())[0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)


def test_degenerate_sizes():
    for name in NAMES:
        rnn = neuralosc.make(name, input_size=1, hidden_size=1, num_layers=2)
        output, state = rnn(torch.randn(1, 1, 1))
        assert output.shape == (1, 1, 1) and state.shape == (2, 1, rnn.components, 1)
        output, state = rnn(torch.randn(0, 3, 1))
        assert output.shape == (0, 3, 1) and state.shape == (2, 0, rnn.components, 1)
        output.sum().backward()


@pytest.mark.parametrize("solver", ["rk4", "dopri5", "tsit5"])
def test_an_empty_batch_with_lengths_and_timespans(solver):
    rnn = neuralosc.CoRNN(1, 2, solver=solver)
    x = torch.randn(0, 3, 1)
    for lengths in ([], torch.zeros(0, dtype=torch.long)):
        assert rnn(x, lengths=lengths, timespans=torch.ones(0, 3))[0].shape == (0, 3, 2)


def test_the_representation_names_the_choices():
    text = repr(network(solver="imex_euler"))
    assert "solver='imex_euler'" in text and "Oscillator" in text and "gradient='backprop'" in text


def test_layers_of_a_stack_must_fit(make_field, one_line):
    class Odd(neuralosc.VectorField):
        pass

    cases = [
        ([make_field("lipschitz"), make_field("oscillator")], "components"),
        ([make_field("lipschitz"), make_field("lipschitz")], "takes 2 inputs"),
        ([], "no field"),
        ([nn.Linear(2, 2)], "VectorField"),
        (nn.GRU(2, 3), "VectorField"),
        (Odd(), "input_size"),
        (5, "VectorField"),
        (lambda t, state, u: state, "VectorField"),
    ]
    for fields, word in cases:
        with pytest.raises(solvers.InputError) as error:
            ContinuousRNN(fields, "rk4")
        one_line(error, word)
    stack = nn.ModuleList([make_field("lipschitz", 2, 3), make_field("lipschitz", 3, 3)])
    assert ContinuousRNN(stack, "rk4").num_layers == 2
    with pytest.raises(solvers.InputError) as error:
        _ = ContinuousRNN(stack, "rk4").field
    one_line(error, "2 layers", "rnn.fields")
