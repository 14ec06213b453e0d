"""LinOSS as a layer, a block and a named stack: the interface of the library, lengths, packing, online use, saving."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import neuralosc
import solvers
from neuralosc import ContinuousRNN, InputError, LinOSS, LinOSSBlock, LinOSSNetwork
from neuralosc.fields import discretizations
from neuralosc.layers.blocks import normalized

F64 = torch.float64
MADE = {
    "layer": lambda **settings: LinOSS(4, 3, **settings),
    "layer with heads": lambda **settings: LinOSS(4, 6, heads=2, damped=True, **settings),
    "block": lambda **settings: LinOSSBlock(4, state_size=3, **settings),
    "network": lambda **settings: LinOSSNetwork(4, 4, state_size=3, **settings),
}


def made(name, **settings):
    return MADE[name](**settings).double().eval()


def inputs(batch=3, time=7, features=4):
    return torch.randn(batch, time, features, dtype=F64)


def test_the_layer_is_a_recurrence_with_a_readout():
    """Written from the equations, with complex numbers."""
    layer, u = made("layer"), inputs()
    field, n = layer.field, 3
    B, C = (torch.complex(*half) for half in (field.B.chunk(2, 0), layer.C.chunk(2, 1)))
    A, h = torch.relu(field.A), torch.sigmoid(field.steps)
    x = z = torch.zeros(3, n, dtype=torch.complex128)
    expected = []
    for step in u.unbind(1):
        z = z + h * (step.to(B.dtype) @ B.T - A * x)
        x = x + h * z
        expected.append((x @ C.T).real + layer.D * step)
    y, state = layer(u)
    torch.testing.assert_close(y, torch.stack(expected, 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, parts(x, z), rtol=1e-12, atol=1e-12)


def parts(*components):
    return torch.stack([torch.cat((c.real, c.imag), -1) for c in components], 1)


def test_the_block_is_the_published_one():
    block, x = made("block", dropout=0.3), inputs()
    with torch.no_grad():
        block.norm.running_mean.normal_(), block.norm.running_var.uniform_(0.5, 2)
    normed = (x - block.norm.running_mean) / torch.sqrt(block.norm.running_var + block.norm.eps)
    mixed = functional.gelu(block.layer(normed)[0], approximate="tanh")
    left, right = (mixed @ w.T + b for w, b in zip(block.glu.weight.chunk(2), block.glu.bias.chunk(2), strict=True))
    torch.testing.assert_close(block(x)[0], x + left * torch.sigmoid(right), rtol=1e-12, atol=1e-12)
    assert not list(block.norm.parameters())
    block.train()
    torch.manual_seed(0)
    first = block(x)[0]
    assert not torch.equal(block(x)[0], first)
    (block(x)[0] - x).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in block.parameters())


def test_the_network_is_its_blocks_behind_an_encoder():
    network, x = made("network"), torch.randn(3, 7, 4, dtype=F64)
    expected, states = network.encoder(x), []
    for block in network.blocks:
        expected, state = block(expected)
        states.append(state)
    output, state = network(x)
    assert torch.equal(output, expected) and torch.equal(state, torch.stack(states))
    assert network(x, state)[0].shape == (3, 7, 4) and state.shape == (2, 3, 2, 6)


@pytest.mark.parametrize("name", MADE)
def test_shapes_and_sizes(name):
    module, x = made(name), inputs()
    output, state = module(x)
    assert output.shape == (3, 7, 4) and (module.input_size, module.hidden_size) == (4, 4)
    assert state.shape[-3:] == (3, 2, 12 if "heads" in name else 6)
    assert ("IMEX" in repr(module) and "semi" in repr(module)) or "imex_euler" in repr(module)


@pytest.mark.parametrize("name", MADE)
def test_two_halves_and_single_steps_equal_the_whole(name):
    module, x, spans = made(name), inputs(), torch.rand(3, 7, dtype=F64) + 0.1
    whole, end = module(x, timespans=spans)
    first, state = module(x[:, :4], timespans=spans[:, :4])
    second, last = module(x[:, 4:], state, spans[:, 4:])
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, end, rtol=1e-12, atol=1e-12)
    state, outputs = None, []
    for sample, span in zip(x.unbind(1), spans.unbind(1), strict=True):
        output, state = module.step(sample, state, span)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, end, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MADE)
def test_steps_with_a_control_that_looks_back(name):
    module, x = made(name, control="linear"), inputs()
    state, outputs = None, []
    for sample in x.unbind(1):
        output, state = module.step(sample, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), module(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_padding_changes_nothing_whatever_it_holds(name, training):
    """In training too: it enters no statistics."""
    module = made(name, dropout=0.0) if name in ("block", "network") else made(name)
    module.train(training)
    x, lengths = inputs(), [7, 2, 4]
    results = []
    for hole in (float("nan"), 1e6):
        again, padded = copy.deepcopy(module), x.clone()
        for i, n in enumerate(lengths):
            padded[i, n:] = hole
        output, state = again(padded, lengths=lengths)
        gradients = torch.autograd.grad(output.sum() + state.sum(), list(again.parameters()))
        results.append([output, state, *gradients, *again.buffers()])
        for i, n in enumerate(lengths):
            torch.testing.assert_close(output[i, n:], output[i, n - 1 : n].expand(7 - n, 4), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    if not training:
        for i, n in enumerate(lengths):
            torch.testing.assert_close(
                results[0][0][i : i + 1, :n], module(x[i : i + 1, :n])[0], rtol=1e-12, atol=1e-12
            )


@pytest.mark.parametrize("name", MADE)
def test_packed_sequences_come_back_packed(name):
    module, x, lengths = made(name), inputs(), torch.tensor([2, 7, 4])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, state = module(packed)
    padded, _ = pad_packed_sequence(output, batch_first=True)
    expected, end = module(x, lengths=lengths)
    torch.testing.assert_close(state, end, rtol=1e-12, atol=1e-12)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(padded[i, :n], expected[i, :n], rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError):
        module(packed, lengths=lengths)


def test_the_norm_takes_its_statistics_from_valid_samples_alone():
    norm, reference = (nn.BatchNorm1d(4, affine=False).double() for _ in range(2))
    x, valid = inputs(), torch.arange(7) < torch.tensor([[7], [1], [3]])
    normed = normalized(norm, x, valid)
    torch.testing.assert_close(normed[valid], reference(x[valid]), rtol=1e-12, atol=1e-12)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer)
    whole, transposed = (nn.BatchNorm1d(4, affine=False).double() for _ in range(2))
    torch.testing.assert_close(normalized(whole, x), transposed(x.mT).mT)


def test_synchronized_norms_are_called_as_those_they_stand_for():
    """`nn.SyncBatchNorm` outside of a process group is batch normalization."""
    network, x, lengths = LinOSSNetwork(2, 4, state_size=3, dropout=0.0), torch.randn(3, 6, 2), [6, 2, 4]
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    assert isinstance(synchronized.blocks[0].norm, nn.SyncBatchNorm)
    assert synchronized.state_dict().keys() == network.state_dict().keys()
    for mode in (True, False):
        for each in (network, synchronized):
            each.train(mode)
        torch.testing.assert_close(synchronized(x, lengths=lengths), network(x, lengths=lengths))


@pytest.mark.parametrize("name", ["linoss", "cornn", "lem"])
def test_chunks_under_autocast(name, relative_error):
    """What a network gives is what it takes; the state keeps the precision of the parameters."""
    rnn, x = neuralosc.make(name, input_size=2, hidden_size=8).eval(), torch.randn(4, 100, 2)
    with torch.no_grad(), solvers.backend("plain"), torch.autocast("cpu", torch.bfloat16):
        whole = rnn(x)[0].float()
        first, state = rnn(x[:, :50])
        second, end = rnn(x[:, 50:], state)
    assert state.dtype == end.dtype == torch.float32
    assert relative_error(torch.cat((first, second), 1).float(), whole) < 1e-6


@pytest.mark.parametrize("name", MADE)
def test_another_solver_shares_the_weights(name):
    module, x = made(name), inputs()
    exact = module.with_solver("dopri5")
    fine = module.with_solver("semi_implicit_euler", substeps=500)
    assert all(a is b for a, b in zip(module.parameters(), exact.parameters(), strict=True))
    assert (module.solver.name, exact.solver.name) != ("dopri5", module.solver.name)
    torch.testing.assert_close(fine(x)[0], exact(x)[0], rtol=0, atol=5e-2)
    assert not torch.equal(module(x)[0], exact(x)[0])


@pytest.mark.parametrize("damped", [False, True])
def test_discretizations_are_solvers(damped):
    for name, solver in (discretizations.SOLVERS if damped else discretizations.UNDAMPED).items():
        layer = LinOSS(4, 3, name, damped)
        assert layer.solver == solvers.get(solver)
        assert layer.with_solver("rk4").field.A is layer.field.A
    assert LinOSS(4, 3, "IM", solver="rk4").solver.name == "rk4"


def test_the_scan_gives_the_same(relative_error):
    module, x = made("network"), inputs(time=200)
    with solvers.backend("plain"):
        expected = module(x)[0]
    with solvers.backend("scan"):
        assert relative_error(module(x)[0], expected) < 1e-12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"discretization": "IMEX2"}, ("IMEX2", "damped=True")),
        ({"discretization": "RK4"}, ("RK4", "IMEX")),
        ({"projection": "clip"}, ("clip", "stable")),
        ({"initialization": "ring"}, ("ring", "uniform")),
        ({"heads": 3}, ("heads", "3", "divide")),
        ({"state_size": 0}, ("state_size", "positive")),
        ({"solver": "symplectic"}, ("symplectic",)),
        ({"dropout": 1.0}, ("dropout",)),
        ({"num_layers": 0}, ("num_layers",)),
        ({"dt": [0.1, 0.2, 0.3]}, ("dt", "2 layers")),
        ({"beta": 1.0}, ("beta", "takes")),
    ],
)
def test_what_does_not_fit_is_refused(settings, words, one_line):
    with pytest.raises(InputError) as caught:
        neuralosc.make("linoss", **{"input_size": 2, "hidden_size": 4, "state_size": 8, **settings})
    one_line(caught, *words)


def test_bad_inputs_are_refused(one_line):
    network = made("network")
    for call, words in (
        (lambda: network(torch.randn(3, 7, 5, dtype=F64)), ("(3, 7, 5)", "4")),
        (lambda: network(inputs(), torch.zeros(3, 2, 6, dtype=F64)), ("(3, 2, 6)", "2")),
        (lambda: network(inputs().fill_(torch.nan)), ("nan",)),
        (lambda: copy.deepcopy(network).train()(inputs(1, 1)), ("one sample", "eval")),
        (lambda: copy.deepcopy(network).train().step(inputs()[:, 0]), ("eval()",)),
        (lambda: made("network", missing="hold").step(inputs()[:, 0]), ("missing",)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        one_line(caught, *words)


def test_missing_values_are_held():
    network, x = made("network", missing="hold"), inputs()
    filled, x[:, 3] = x.clone(), torch.nan
    filled[:, 3] = filled[:, 2]
    assert torch.equal(network(x)[0], network(filled)[0])
    layer = made("layer", missing="hold")
    assert torch.equal(layer(x)[0], layer(filled)[0])


def test_the_named_network(tmp_path):
    card = neuralosc.model("linoss")
    assert card.blocks and card.solver == "semi_implicit_euler" and card.field == "LinearOscillator"
    hyperparameters = {"state_size": 6, "heads": 2, "damped": True, "discretization": "IMEX3", "projection": "stable"}
    hyperparameters |= {"initialization": "ring", "num_layers": 3, "dropout": 0.1}
    hyperparameters |= {"dt": [1.0, 0.5, 0.25], "substeps": 2}
    network = neuralosc.make("linoss", input_size=2, hidden_size=4, **hyperparameters)
    assert set(network.config) == {"model", "input_size", "hidden_size", *card.defaults}
    assert {key: network.config[key] for key in hyperparameters} == hyperparameters
    x = torch.randn(3, 7, 2)
    network(x)
    swapped = network.eval().with_solver("rk4", dt=0.5)
    for case in (network, swapped):
        again = neuralosc.load(neuralosc.save(case, tmp_path / "linoss.safetensors")).eval()
        assert again.config == case.config and torch.equal(again(x)[0], case(x)[0])
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again(x)[0], network(x)[0])


def test_it_learns_a_batch_by_heart():
    torch.manual_seed(0)
    network, readout = neuralosc.make("linoss", input_size=1, hidden_size=8, state_size=8), nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*network.parameters(), *readout.parameters()], 1e-2)
    x, losses = torch.randn(16, 12, 1), []
    for _ in range(80):
        loss = functional.mse_loss(readout(network(x)[0][:, -1]), x[:, 5])
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_the_recurrences_inside_are_compiled(relative_error):
    module, x = made("network"), inputs(2, 70)
    assert all(isinstance(layer.rnn, ContinuousRNN) for layer in module.layers)
    assert {trajectory.record.path for trajectory in module.layers[0].solve(x).trajectories} == {"compiled"}
    fast = module(x)[0]
    with solvers.backend("plain"):
        assert relative_error(fast, module(x)[0]) < 1e-12
