"""A network under another solver: the same weights, and a mode, hooks and attributes of its own."""

import copy
import pickle

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from solvers.compiled import kernel

NAMES = [card.name for card in neuralosc.models() if card.field]


def network(name, **settings):
    return neuralosc.make(name, input_size=2, hidden_size=4, **settings)


def modes(rnn):
    return [module.training for module in rnn.modules()]


@pytest.mark.parametrize("name", NAMES)
def test_its_mode_is_its_own(name):
    rnn = network(name).train()
    swapped = rnn.with_solver(rnn.solver).eval()
    assert all(modes(rnn)) and not any(modes(swapped))
    swapped.train(), rnn.eval()
    assert not any(modes(rnn)) and all(modes(swapped))


def test_noise_and_statistics_of_the_network_in_training_stay():
    x = torch.randn(8, 5, 2)
    noisy = network("noisy").train()
    noisy.with_solver("rk4").eval()
    assert not torch.equal(noisy(x)[0], noisy(x)[0])
    blocks = network("linoss", dropout=0.0).train()
    evaluated = blocks.with_solver("imex_euler").eval()
    statistics = blocks.blocks[0].norm.running_mean.clone()
    evaluated(x)
    assert torch.equal(blocks.blocks[0].norm.running_mean, statistics)
    blocks(x)
    # What training has seen of the data is known to both.
    assert not torch.equal(blocks.blocks[0].norm.running_mean, statistics)
    assert torch.equal(evaluated.blocks[0].norm.running_mean, blocks.blocks[0].norm.running_mean)
    torch.testing.assert_close(evaluated(x)[0], blocks.eval().with_solver("imex_euler")(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_shared(name):
    rnn = network(name)
    swapped = rnn.with_solver(rnn.solver)
    for kind in ("parameters", "buffers"):
        assert [id(t) for t in getattr(rnn, kind)()] == [id(t) for t in getattr(swapped, kind)()]
    assert list(rnn.state_dict()) == list(swapped.state_dict())
    assert not {id(m) for m in rnn.modules()} & {id(m) for m in swapped.modules()}
    swapped.double()
    x = torch.randn(3, 6, 2, dtype=torch.float64)
    both = (rnn.eval(), swapped.eval())
    assert {t.dtype for each in both for t in each.state_dict().values() if t.is_floating_point()} == {torch.float64}
    # Without noise.
    method = "euler" if rnn.solver.stochastic else rnn.solver
    outputs = [each.with_solver(method)(x)[0] for each in both]
    assert torch.equal(*outputs)
    optimizer = torch.optim.SGD(swapped.parameters(), lr=0.1)
    swapped.with_solver(method)(x)[0].square().mean().backward()
    optimizer.step()
    after = [each.with_solver(method)(x)[0] for each in both]
    assert torch.equal(*after) and not torch.equal(after[0], outputs[0])


@pytest.mark.parametrize("name", ["cornn", "noisy", "linoss"])
def test_copies_of_it_are_independent(name):
    rnn = network(name).eval()
    swapped = rnn.with_solver("euler")
    x = torch.randn(3, 6, 2)
    expected = swapped(x)[0]
    for copied in (copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
        assert torch.equal(copied(x)[0], expected)
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in rnn.parameters()}
    fresh = network(name).eval().with_solver("euler")
    fresh.load_state_dict(rnn.state_dict())
    assert torch.equal(fresh(x)[0], expected)


def test_a_hook_belongs_to_one():
    rnn, calls = network("cornn"), []
    rnn.field.V.register_forward_hook(lambda *_: calls.append("before"))
    swapped = rnn.with_solver("rk4")
    swapped.field.V.register_forward_hook(lambda *_: calls.append("after"))
    rnn(torch.randn(2, 3, 2))
    assert calls == ["before"]
    swapped(torch.randn(2, 3, 2))
    assert calls == ["before", "before", "after"]


def test_kernels_are_found_again(monkeypatch):
    """Made anew for each evaluation, it is compiled once; in another mode, or with other attributes, once more."""
    made, trace = [], kernel.trace
    monkeypatch.setattr(kernel, "trace", lambda *args: made.append(1) or trace(*args))
    rnn, x = network("cornn").eval(), torch.randn(2, solvers.run.choice.WORTHWHILE, 2)
    expected = rnn(x)[0]
    assert len(made) == 1
    for _ in range(3):
        assert torch.equal(rnn.with_solver(rnn.solver).eval()(x)[0], expected)
    assert len(made) == 1
    other = rnn.with_solver(rnn.solver)
    other.field.gamma.fixed = 9.0
    assert not torch.equal(other(x)[0], expected) and torch.equal(rnn(x)[0], expected)
    assert len(made) == 2
    copy.deepcopy(rnn)(x)
    assert len(made) == 3


def test_a_module_used_twice_stays_one():
    field = neuralosc.Residual(4, 4)
    tied = neuralosc.ContinuousRNN([field, field], "euler", 0.1).with_solver("rk4")
    assert tied.fields[0] is tied.fields[1] is not field
    assert isinstance(tied.fields[0].V, nn.Linear)
