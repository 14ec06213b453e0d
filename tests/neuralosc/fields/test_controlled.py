"""Neural CDEs: the field, where they start, what moves them and what does not."""

import warnings

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN, InputError

F64 = torch.float64
CONTROLS = [name for name in solvers.CONTROLS if solvers.CONTROLS[name].derivatives]
CAUSAL = [name for name in CONTROLS if solvers.CONTROLS[name].causal]


def network(**settings):
    return neuralosc.NCDE(2, 3, **{"field_size": 5, "field_layers": 2, **settings}).double()


def sequence(batch=3, time=6, features=2):
    return torch.randn(batch, time, features, dtype=F64), 0.2 + torch.rand(batch, time, dtype=F64)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("time", [True, False])
def test_the_equation_by_hand(time):
    field = neuralosc.NeuralCDE(2, 3, field_size=4, time_channel=time).double()
    z, du = torch.randn(5, 1, 3, dtype=F64), torch.randn(5, 2, dtype=F64)
    g = torch.relu(z[:, 0] @ field.layers[0].weight.T + field.layers[0].bias)
    matrix = torch.tanh(g @ field.out.weight.T + field.out.bias).view(5, 3, 2 + time)
    change = torch.cat((torch.ones(5, 1, dtype=F64), du), 1) if time else du
    close(field(0.0, z, du)[:, 0], torch.einsum("bhc,bc->bh", matrix, change))
    assert field.initial_state(du).shape == (5, 1, 3) and field.structure == {"controlled"}


def test_time_as_a_channel_is_time_as_a_feature():
    """Along lines a step is the increment of X, at whatever pace: the published form, on a clock of the index."""
    ours, (x, spans) = network(control="linear", max_dt=None), sequence()
    published = network(control="linear", max_dt=None, time_channel=False)
    field = neuralosc.NeuralCDE(3, 3, field_size=5, field_layers=2, time_channel=False).double()
    field.load_state_dict({**ours.field.state_dict(), "zeta.weight": torch.zeros(3, 3, dtype=F64)})
    with torch.no_grad():
        field.zeta.weight[:, 1:] = ours.field.zeta.weight
    published = ContinuousRNN(field, "rk4_38", control="linear")
    close(ours(x, timespans=spans)[0], published(torch.cat((spans.cumsum(1).unsqueeze(-1), x), -1))[0])


@pytest.mark.parametrize(
    ("solver", "control"),
    [
        *(("rk4", control) for control in CONTROLS),
        *(("dopri5", "linear"), ("native_dopri5", "cubic"), ("implicit_midpoint", "natural")),
    ],
)
def test_until_the_first_sample_it_rests(solver, control):
    rnn, (x, spans) = network(solver=solver, control=control, activation="tanh"), sequence(time=4)
    output, _ = rnn(x, timespans=spans)
    close(output[:, 0], rnn.field.zeta(x[:, 0]))
    later = torch.cat((torch.full((3, 1), 9e6, dtype=F64), spans[:, 1:]), 1)
    # A later clock is rounded more, and an adaptive method steps otherwise.
    bound = 1e-3 if rnn.solver.adaptive else 1e-6
    torch.testing.assert_close(rnn(x, timespans=later)[0], output, rtol=bound, atol=bound)
    state = torch.randn(3, 1, 3, dtype=F64)
    close(rnn(x, state, spans)[0][:, 0], state[:, 0])


def test_it_follows_what_it_is_driven_by():
    """Where F is a constant the state is z0 + F (t, X(t) - X(0))."""
    rnn, (x, spans) = network(), sequence()
    with torch.no_grad():
        rnn.field.out.weight.zero_()
    matrix = torch.tanh(rnn.field.out.bias).view(3, 3)
    passed = torch.cat((torch.zeros(3, 1, dtype=F64), spans[:, 1:]), 1).cumsum(1)
    change = torch.cat((passed.unsqueeze(-1), x - x[:, :1]), -1)
    for control in CONTROLS:
        found = rnn.with_solver("rk4", control=control)(x, timespans=spans)[0]
        if control != "linear_lagging":
            close(found, rnn.field.zeta(x[:, :1]) + change @ matrix.T)


def test_lengths_and_directions():
    rnn, (x, spans) = network(num_layers=2, bidirectional=True, control="natural"), sequence()
    lengths = torch.tensor([6, 0, 4])
    x[1], x[2, 4:] = torch.nan, torch.nan
    output, state = rnn(x, timespans=spans, lengths=lengths)
    assert not output[1].any() and not state[:, 1].any()
    alone, end = rnn(x[2:, :4], timespans=spans[2:, :4])
    close(output[2:, :4], alone)
    close(state[:, 2:], end)
    first = [rnn.layer(i) for i in range(2)]
    solution = rnn.solve(x, timespans=spans, lengths=lengths)
    close(solution.start[0][0, 0], first[0].zeta(x[0, 0]))
    close(solution.start[1][2, 0], first[1].zeta(x[2, 3]))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(output.sum(), list(rnn.parameters())))


@pytest.mark.parametrize("control", CAUSAL)
@pytest.mark.parametrize("missing", ["hold", "mask", "decay"])
def test_steps_and_chunks_are_the_whole(control, missing):
    rnn, (x, spans) = network(num_layers=2, control=control, missing=missing, residual=True), sequence()
    x[torch.rand(3, 6, 2) < 0.3] = torch.nan
    whole, end = rnn(x, timespans=spans)
    stream, outputs = None, []
    for i in range(6):
        output, stream = rnn.step(x[:, i], stream, spans[:, i])
        outputs.append(output)
    close(torch.stack(outputs, 1), whole)
    close(stream.state, end)
    stream, outputs = rnn.begin(3), []
    assert not stream.state.any() and stream.fresh and stream.detach().fresh
    for i, chunk in enumerate((slice(0, 1), slice(1, 4), slice(4, 6))):
        output, stream = rnn(x[:, chunk], stream, spans[:, chunk])
        outputs.append(output)
        assert not stream.fresh, i
    close(torch.cat(outputs, 1), whole)
    close(stream.state, end)
    given = torch.randn(2, 3, 1, 3, dtype=F64)
    close(rnn(x, rnn.begin(3, given), spans)[0], rnn(x, given, spans)[0])


def test_what_is_asked_between_samples():
    rnn, (x, spans) = network(), sequence()
    times = spans.cumsum(1)
    states = rnn.solve(x, timespans=spans).states
    close(rnn.trajectory(x, spans, at=times), states)
    before = 0.5 * times[:, :1]
    close(rnn.trajectory(x, spans, at=before), states[:, :1])
    # Nothing is known then but that there is a network.
    assert not rnn.trajectory(x, spans, at=before, causal=True).any()
    # After the last sample the input stays, and time goes on.
    for future in ("zero", "hold"):
        after = rnn.trajectory(x, spans, at=times[:, -1:] + 0.7, future=future)
        close(after[:, 0], rnn.advance(states[:, -1], 0.7))
    assert not torch.equal(rnn.advance(states[:, -1], 0.7), states[:, -1])
    still = network(time_channel=False)
    assert torch.equal(still.advance(states[:, -1], 0.7, x[:, 0]), states[:, -1])


def test_samples_at_one_time_are_said():
    rnn, (x, spans) = network(), sequence()
    spans[:, 0], spans[1, 3] = 0.0, 0.0
    with pytest.warns(UserWarning, match=r"^1 samples have timespan 0 and no effect, since the derivative"):
        output, _ = rnn(x, timespans=spans)
    assert torch.equal(output[1, 3], output[1, 2])
    fresh = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh(x[:, :3], timespans=spans[:, :3])
        _, stream = fresh(x[:, :3], fresh.begin(3), spans[:, :3])
        fresh.step(x[:, 0], None, 0.0)
    with pytest.warns(UserWarning, match="1 samples"):
        fresh(x[:, 3:], stream, spans[:, 3:])


def test_what_is_refused(one_line):
    for control in ("hold", "rectilinear", "linear_noncausal"):
        with pytest.raises(solvers.PairingError) as error:
            network(control=control)
        one_line(error, "NeuralCDE", f"control {control!r}", "cubic")
    assert ContinuousRNN(neuralosc.NeuralCDE(2, 3)).control.name == "cubic"
    assert ContinuousRNN(neuralosc.Relaxation(2, 3)).control.name == "hold"
    rnn, (x, _) = ContinuousRNN(Started(2, 3)).double(), sequence()
    with pytest.raises(InputError) as error:
        rnn(x, rnn.begin(3), lengths=[1, 0, 2])
    one_line(error, "first chunk")


class Started(neuralosc.Relaxation):
    """A field of another kind that starts from its first sample."""

    def initial_state(self, x):
        return x.sum(-1, keepdim=True).expand(-1, self.hidden_size).unsqueeze(-2)


def test_any_field_may_start_from_its_first_sample(one_line):
    rnn, (x, spans) = ContinuousRNN(Started(2, 3), "euler").double(), sequence()
    start = rnn.field.initial_state(x[:, 0])
    close(rnn(x, timespans=spans)[0], rnn(x, start, spans)[0])
    close(rnn(x, rnn.begin(3), spans)[0], rnn(x, start, spans)[0])
    rnn.field.initial_state = lambda x: x
    with pytest.raises(InputError) as error:
        rnn(x)
    one_line(error, "Started", "(3, 2)", "(3, 1, 3)")


def test_noise_around_it():
    noisy = neuralosc.Noisy(neuralosc.NeuralCDE(2, 3), additive=0.1)
    rnn, (x, spans) = ContinuousRNN(noisy, "stochastic_heun", noise_seed=1).double(), sequence()
    output = rnn(x, timespans=spans)[0]
    assert torch.equal(output[:, 0], noisy.field.zeta(x[:, 0])) and torch.isfinite(output).all()
