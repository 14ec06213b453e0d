"""One field, any solver: the same weights under every method converge to one solution, and no pulse is missed."""

import pytest
import torch
import torchdiffeq

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.protocol import structure

F64 = torch.float64
ADAPTIVE = [info.name for info in solvers.available() if info.adaptive]


def size(field):
    """Of an input that moves all fields alike: one that is given its derivative takes no dt times it, but all of it."""
    return 0.02 if "controlled" in field.structure else 1.0


def sequence(batch=3, time=6, features=2, seed=1):
    return 2 * torch.randn(batch, time, features, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("control", [None, "linear"])
def test_tight_dopri5_and_rk4_with_many_substeps(equation_name, control, make_field):
    solver = {"name": "dopri5", "rtol": 1e-10, "atol": 1e-12}
    rnn = ContinuousRNN(make_field(equation_name), solver, 0.3, control=control)
    x, spans = sequence() * size(rnn.field), torch.rand(3, 6, dtype=F64) * 2
    state = torch.randn(3, rnn.components, rnn.hidden_size, dtype=F64)
    with torch.no_grad():
        tight = rnn.solve(x, state, spans).states
        fine = rnn.with_solver("rk4", substeps=32).solve(x, state, spans).states
    assert float((tight - fine).abs().max()) < 1e-6
    assert float((tight - state.unsqueeze(1)).abs().max()) > 0.1


def test_every_solver_that_fits_converges_to_that_solution(pairing, make_field):
    name, solver = pairing
    info = next(i for i in solvers.available() if i.name == solver)
    if info.family == "stochastic":
        pytest.skip("its solution is another for each path of the noise; test_stochastic.py has its orders")
    if "differential" not in structure(make_field(name)):
        pytest.skip("a map from sample to sample; it has no equation whose solution there could be")
    rnn = ContinuousRNN(make_field(name), {"name": "dopri5", "rtol": 1e-10, "atol": 1e-12}, 0.2)
    x = sequence(time=4) * size(rnn.field)
    # Low orders pay for a tight tolerance with thousands of steps.
    tolerance = 1e-7 if info.order > 3 else 1e-4
    options = {"rtol": tolerance, "atol": tolerance / 10} if info.adaptive else {}
    substeps = 1 if info.adaptive else {1: 128, 2: 32, 3: 16}.get(info.order, 8)
    with torch.no_grad():
        reference = rnn(x)[0]
        output = rnn.with_solver(solvers.get(solver, **options), substeps=substeps)(x)[0]
        coarse = output if info.adaptive else rnn.with_solver(solver, substeps=substeps // 4)(x)[0]
    error = float((output - reference).abs().max())
    if info.adaptive:
        assert error < 20 * tolerance
    else:
        assert error < {1: 3e-3, 2: 1e-4, 3: 1e-5}.get(info.order, 1e-6)
        # Four times the steps: 4^order less error, where it is not rounding already.
        assert error < float((coarse - reference).abs().max()) / (0.6 * 4**info.order) + 2e-9


@pytest.mark.parametrize("info", [i for i in solvers.available() if i.adaptive], ids=lambda i: i.name)
def test_a_batch_under_an_adaptive_solver_equals_each_sample_alone(info, make_field):
    tolerance = 1e-7 if info.order > 3 else 1e-4
    solver = solvers.get(info.name, rtol=tolerance, atol=tolerance / 10)
    rnn = ContinuousRNN(make_field("oscillator"), solver, 0.3)
    x, spans = sequence(), torch.rand(3, 6, dtype=F64) * 2
    with torch.no_grad():
        together = rnn(x, timespans=spans)[0]
        for i in range(3):
            alone = rnn(x[i : i + 1], timespans=spans[i : i + 1])[0]
            shared = rnn(x[i : i + 1], timespans=spans[i])[0]
            # Step sizes follow the worst sample of a batch, so the two differ, but by no more than the tolerance.
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=20 * tolerance)
            torch.testing.assert_close(shared, alone, rtol=0, atol=1e-9)


def test_one_sample_in_a_large_quiet_batch_is_solved_as_well_as_alone(make_field):
    """The error is that of the worst sample, not an average over the batch."""
    rnn = ContinuousRNN(make_field("oscillator"), {"name": "dopri5", "rtol": 1e-5, "atol": 1e-7}, 2.0)
    x = torch.zeros(200, 5, 2, dtype=F64)
    x[17] = 40 * sequence(1, 5)
    with torch.no_grad():
        tight = rnn.with_solver(solvers.get("dopri5", rtol=1e-11, atol=1e-13))(x)[0]
        assert float((rnn(x)[0] - tight).abs().max()) < 2e-4


def pulse_network(time=24, place=14):
    rnn = neuralosc.CoRNN(1, 4, dt=1.0, gamma=1.0, epsilon=0.2, solver="dopri5").double()
    with torch.no_grad():
        rnn.field.V.bias.zero_()
    x = torch.zeros(1, time, 1, dtype=F64)
    x[:, place] = 5.0
    return rnn, x


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_pulse_of_one_sample_in_a_quiet_input_is_never_missed(name):
    rnn, x = pulse_network()
    with torch.no_grad():
        reference = rnn.with_solver("rk4", substeps=32)(x)[0]
        output = rnn.with_solver(solvers.get(name, rtol=1e-4, atol=1e-6))(x)[0]
    assert torch.equal(output[:, :14], torch.zeros_like(output[:, :14]))
    assert float(reference[:, 14:].abs().amax(-1).min()) > 1e-3
    torch.testing.assert_close(output, reference, rtol=0, atol=1e-3)


@pytest.mark.parametrize("place", [0, 1, 23])
def test_a_pulse_at_any_place_however_short(place):
    rnn, x = pulse_network(place=place)
    spans = torch.full((24,), 2.0, dtype=F64)
    spans[place] = 0.01
    with torch.no_grad():
        reference = rnn.with_solver("rk4", substeps=32)(x, timespans=spans)[0]
        output = rnn(x, timespans=spans)[0]
    assert float(reference[:, place].abs().max()) > 1e-6
    torch.testing.assert_close(output, reference, rtol=0, atol=1e-5)


def test_one_call_over_the_whole_sequence_would_miss_it():
    """Why each interval is its own integration."""
    rnn, x = pulse_network(time=64, place=40)
    currents, calls = rnn.field.drive(x)[0], []

    def slope(t, state):
        calls.append(float(t))
        return rnn.field(t, state, currents[min(int(t), 63)])

    with torch.no_grad():
        start = torch.zeros(1, 2, 4, dtype=F64)
        path = torchdiffeq.odeint(slope, start, torch.arange(65, dtype=F64), rtol=1e-6, atol=1e-8, method="dopri5")
        reference = rnn.with_solver("rk4", substeps=8).solve(x).states[:, -1]
    assert not any(40 <= t < 41 for t in calls)
    assert torch.equal(path[-1], start)
    assert float(reference.abs().max()) > 1e-3


def test_evaluations_are_counted():
    rnn = neuralosc.CoRNN(2, 3, num_layers=2)
    x = torch.randn(4, 5, 2)
    assert rnn.solve(x).evaluations == 2 * 5
    assert rnn.with_solver("rk4", substeps=3).solve(x).evaluations == 2 * 5 * 3 * 4
    assert rnn.with_solver("stormer_verlet").solve(x).evaluations >= 2 * 5 * 2
    loose = rnn.with_solver(solvers.get("dopri5", rtol=1e-2, atol=1e-2)).solve(x).evaluations
    tight = rnn.with_solver(solvers.get("dopri5", rtol=1e-6, atol=1e-7)).solve(x).evaluations
    assert 2 * 5 * 6 <= loose < tight
