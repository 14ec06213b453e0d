"""Bounded steps in a batch: each sample goes through a list of its own, as if it were alone."""

import dataclasses

import pytest
import torch

import neuralosc
import solvers
from tests.measures import assert_agree

F64 = torch.float64


def batch(size=5, time=12):
    """Inputs, and gaps of 1 on average of which some are none, with the steps of the longest list."""
    x, spans = torch.randn(size, time, 2, dtype=F64), torch.empty(size, time, dtype=F64).exponential_()
    spans[1, 3:6], spans[2, 0] = 0.0, 0.0
    lengths = torch.tensor([time, time, time // 2, 1, 0])[:size]
    valid = torch.arange(time) < lengths.unsqueeze(1)
    counts = torch.where(valid & (spans > 0), spans.ceil(), 0.0)
    # One is left of a first interval that is empty.
    counts[:, 0] = counts[:, 0].clamp(min=1)
    return x, spans, lengths, int(counts.sum(1).max())


def results(rnn, x, spans, lengths):
    """Output and last state, and the gradients of both with respect to inputs, timespans and weights."""
    x, spans = x.clone().requires_grad_(True), spans.clone().requires_grad_(True)
    output, state = rnn(x, timespans=spans, lengths=lengths)
    weight = torch.linspace(-1, 1, output[0].numel(), dtype=F64).view(output.shape[1:])
    loss = (output * weight).sum() + (state * state).sum()
    return output, state, torch.autograd.grad(loss, [x, spans, *rnn.parameters()])


@pytest.mark.parametrize("backend", ["plain", "compiled"])
@pytest.mark.parametrize(
    ("name", "solver", "control"),
    [
        ("gru", "euler", "hold"),
        ("cornn", "imex_euler", "linear"),
        ("lipschitz", "rk4", "cubic"),
        ("lem", "relaxation_euler", "rectilinear"),
        ("cornn", "rk4", "linear_noncausal"),
        ("exprnn", "rk4", "hold"),
    ],
)
def test_a_batch_is_its_samples_alone(name, solver, control, backend):
    """Gradients too: that of an empty timespan is the slope there."""
    torch.manual_seed(0)
    rnn = neuralosc.make(name, input_size=2, hidden_size=4).double().with_solver(solver, control=control)
    x, spans, lengths, _ = batch()
    with solvers.backend(backend):
        together = results(rnn, x, spans, lengths)
    alone = [results(rnn, x[i : i + 1], spans[i : i + 1], lengths[i : i + 1]) for i in range(len(x))]
    assert_agree(together[0], torch.cat([one[0] for one in alone]), 1e-11)
    assert_agree(together[1], torch.cat([one[1] for one in alone]), 1e-11)
    for k, gradient in enumerate(together[2]):
        each = [one[2][k] for one in alone]
        assert_agree(gradient, torch.cat(each) if k < 2 else sum(each), 1e-10)


@pytest.mark.parametrize("name", ["cornn", "cayley"])
def test_no_more_steps_than_the_longest_list(name):
    """Not, for each interval, those of the sample that needs most there."""
    torch.manual_seed(0)
    rnn = neuralosc.make(name, input_size=2, hidden_size=4).double()
    x, spans, lengths, longest = batch()
    solution = rnn.solve(x, timespans=spans, lengths=lengths)
    assert solution.evaluations == longest * rnn.solve(x[:, :1]).evaluations
    assert longest < int(spans.ceil().max(0).values.sum())


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_under_other_gradients(gradient):
    torch.manual_seed(0)
    rnn = neuralosc.make("exprnn", input_size=2, hidden_size=4).double().with_solver("rk4")
    case = batch(4, 6)
    other = rnn.with_solver("rk4", gradient=gradient)
    tight = 1e-10 if gradient == "checkpoint" else 1e-3
    for computed, expected in zip(results(other, *case[:3])[2], results(rnn, *case[:3])[2], strict=True):
        assert_agree(computed, expected, tight)


def test_a_control_of_one_s_own_that_knows_no_samples():
    """Its paths are functions, of which none can be made for some samples alone: the batch goes through together."""

    def paths(samples, clock):
        return [lambda t, u=u: u * torch.cos(torch.as_tensor(t)) for u in samples]

    @dataclasses.dataclass(eq=False)
    class Cosine:
        u: torch.Tensor

        def __call__(self, t):
            return self.u * torch.cos(torch.as_tensor(t))

    torch.manual_seed(0)
    x, spans, lengths, longest = batch()
    own = solvers.Control("own", paths)
    known = solvers.Control("known", lambda samples, clock: [Cosine(u) for u in samples])
    rnn = neuralosc.make("cornn", input_size=2, hidden_size=4).double()
    first = rnn.with_solver("rk4", control=own).solve(x, timespans=spans, lengths=lengths)
    second = rnn.with_solver("rk4", control=known).solve(x, timespans=spans, lengths=lengths)
    assert_agree(first.states, second.states, 1e-12)
    assert second.evaluations == 4 * longest < first.evaluations
