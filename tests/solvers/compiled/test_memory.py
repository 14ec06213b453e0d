"""What the compiled loop keeps in memory, counted in the buffers it takes."""

import pytest
import torch

import neuralosc
import solvers
from solvers.compiled.passes import memory

BATCH, HIDDEN = 3, 16


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """All buffers are counted, however small."""
    monkeypatch.setattr(memory, "LEAST", 0)
    with solvers.backend("compiled"):
        # The first solve is compared with the plain path.
        yield
    memory.release()


def trained(rnn, time, loss=lambda output, state: output.square().sum()):
    """Bytes kept after the forward pass and at most in all, in units of time x batch x hidden x 4."""
    x, unit = torch.randn(BATCH, time, 2), time * BATCH * HIDDEN * 4
    rnn(x)[0].sum().backward()
    rnn.zero_grad()
    before, _ = memory.count()
    output, state = rnn(x)
    kept, _ = memory.count()
    loss(output, state).backward()
    _, most = memory.count()
    return (kept - before) / unit, (most - before) / unit


def test_backprop_keeps_states_and_one_value_a_step():
    """With the input current, which torch computes, that is four values for each channel, sample and step."""
    kept, most = trained(neuralosc.CoRNN(2, HIDDEN), 200)
    assert 3 <= kept < 3.05 and most < 3.2


def test_what_was_written_over_is_computed_again():
    rnn = neuralosc.CoRNN(2, HIDDEN).double()
    x = torch.randn(BATCH, 20, 2, dtype=torch.float64, requires_grad=True)
    loss = rnn(x)[0].square().sum()
    first = torch.autograd.grad(loss, [x, *rnn.parameters()], retain_graph=True)
    copies = [g.clone() for g in first]
    for g in first:
        g.fill_(float("nan"))
    again = torch.autograd.grad(loss, [x, *rnn.parameters()], retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(copies, again, strict=True))


def test_buffers_are_given_back():
    before, _ = memory.count()
    trained(neuralosc.CoRNN(2, HIDDEN), 30)
    assert memory.count()[0] == before


@pytest.mark.parametrize("loss", [lambda output, state: output.square().sum(), lambda output, state: state.sum()])
def test_checkpoint_keeps_the_square_root_of_time_besides_outputs_and_gradients(loss):
    rnn = neuralosc.CoRNN(2, HIDDEN, gradient="checkpoint")
    for time in (100, 400):
        kept, most = trained(rnn, time, loss)
        # Positions, and the gradient of the input current; the rest is at most 8 sqrt(T) values.
        assert 1 < kept < 1 + 8 / time**0.5 and most < 2 + 8 / time**0.5


def test_checkpoint_keeps_all_states_where_they_are_asked_for():
    rnn = neuralosc.CoRNN(2, HIDDEN, gradient="checkpoint")
    x = torch.randn(BATCH, 100, 2)
    rnn.solve(x)
    before, _ = memory.count()
    solution = rnn.solve(x)
    kept, _ = memory.count()
    assert kept - before > 2 * 100 * BATCH * HIDDEN * 4
    assert solution.trajectories[0].record.saved >= kept - before
