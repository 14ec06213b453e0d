"""Gradient 'reversible' in the fast loops: the numbers of the plain path, in memory that does not grow with time."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers.compiled.passes import memory
from solvers.gradients import reversible
from solvers.gradients.reversible import DriftError
from solvers.protocol import instantaneous
from tests.fields import FIELDS
from tests.measures import assert_agree
from tests.solvers.compiled.paths import COMPILED, compiles, gradients, inputs


@pytest.fixture(params=["compiled", "torch"])
def fast(request):
    """A fast path that runs everywhere."""
    return request.param


def agree(rnn, x, state, spans, fast="compiled", bound=1e-9, **options):
    """The fast path with gradient 'reversible', the plain one, and backprop."""
    gradient = solvers.Reversible("reversible", **options)
    reversed_ = rnn.with_solver(rnn.solver, gradient=gradient)
    (computed, same), (plain, calls) = (gradients(reversed_, x, state, spans, b) for b in (fast, "plain"))
    assert calls == same
    assert_agree(computed, plain, bound)
    expected, _ = gradients(rnn, x, state, spans, fast)
    assert_agree(computed, expected, bound)


def undone(field):
    """The solvers whose steps on a field are taken back by a kernel."""
    return [s for s in solvers.compatible(field) if compiles(field, s) and solvers.get(s).undoes(field)]


QUICK = [
    ("oscillator_uncoupled", "semi_implicit_euler"),
    ("oscillator_learned", "stormer_verlet"),
    ("hamiltonian_oscillator", "symplectic_euler_dk"),
    ("linear_oscillator_damped", "forest_ruth"),
    ("lipschitz", "reversible"),
]


@pytest.mark.parametrize(("name", "solver"), QUICK)
def test_all_gradients_are_those_of_the_plain_path(name, solver, fast, make_field):
    assert solver in undone(make_field(name))
    rnn = ContinuousRNN(make_field(name), solver, 0.1)
    x, state, spans = inputs(rnn, time=11)
    for options in ({}, {"snapshots": 0, "chunk": 3}, {"snapshots": 2, "chunk": 2}):
        agree(rnn, x, state, spans, fast, **options)


#: An impulsive field jumps at samples, which this gradient does not go back through; a map alone has no inverse.
STEADY = [name for name in COMPILED if not instantaneous(FIELDS[name](2, 3))]


@pytest.mark.slow
@pytest.mark.parametrize("name", STEADY)
def test_every_pairing(name, make_field):
    solver_names = undone(make_field(name))
    assert "reversible" in solver_names
    for solver in solver_names:
        rnn = ContinuousRNN(make_field(name), solver, 0.1)
        agree(rnn, *inputs(rnn), snapshots=1, chunk=2)


@pytest.mark.parametrize(
    ("substeps", "chunk", "clock", "control"),
    [
        (3, 4, "shared", "hold"),
        (6, 6, "sample", "hold"),
        (7, 2, "uniform", "linear"),
        (7, 3, "sample", "linear"),
    ],
)
def test_clocks_controls_and_substeps(substeps, chunk, clock, control, fast, make_field, monkeypatch):
    """Intervals of more steps than a segment has are cut."""
    monkeypatch.setattr(reversible, "LONGEST", 1)
    rnn = ContinuousRNN(make_field("oscillator_uncoupled"), "stormer_verlet", 0.1, substeps=substeps, control=control)
    x, state, spans = inputs(rnn)
    chosen = {"uniform": None, "shared": spans[0].detach().requires_grad_()}
    agree(rnn, x, state, chosen.get(clock, spans), fast, snapshots=1, chunk=chunk)


def test_sequences_of_different_lengths(fast, make_field):
    rnn = ContinuousRNN(make_field("hamiltonian_oscillator"), "stormer_verlet", 0.1, gradient="reversible")
    x, by_gradient = torch.randn(3, 9, 2, dtype=torch.float64, requires_grad=True), []
    for each in (rnn, rnn.with_solver(rnn.solver, gradient="backprop")):
        with solvers.backend(fast):
            output, state = each(x, lengths=[9, 2, 5])
        by_gradient.append(torch.autograd.grad(output.sum() + state.square().sum(), [x, *rnn.parameters()]))
    assert_agree(*by_gradient, 1e-12)


def test_what_cannot_be_taken_back_by_a_kernel_runs_the_plain_steps(make_field, one_line):
    rnn = ContinuousRNN(make_field("hamiltonian_oscillator"), "implicit_midpoint", 0.1, gradient="reversible")
    x = torch.randn(2, 70, 2, dtype=torch.float64)
    record = rnn.solve(x).trajectories[0].record
    assert record.path == "plain" and record.reason
    with solvers.backend("compiled"), pytest.raises(solvers.PairingError) as error:
        rnn(x)
    one_line(error, "use 'auto' or 'plain'")


class Watched(solvers.ReversiblePair):
    """A pair whose step can be recorded, and whose inverse cannot."""

    def unstep(self, field, t, dt, state, control):
        assert state[0].sum() > float("-inf")
        return super().unstep(field, t, dt, state, control)


def test_an_inverse_that_cannot_be_recorded_is_named(make_field):
    x, by_solver = torch.randn(2, 70, 2, dtype=torch.float64), []
    for solver in ("reversible", Watched("watched", 2, 4, reversible=True)):
        rnn = ContinuousRNN(make_field("lipschitz"), solver, 0.1, gradient="reversible")
        torch.manual_seed(0)
        for p in rnn.parameters():
            torch.nn.init.normal_(p, std=0.3)
        solution = rnn.solve(x)
        by_solver.append(torch.autograd.grad(solution.output.sum(), rnn.parameters()))
        record = solution.trajectories[0].record
        assert record.path == ("compiled" if solver == "reversible" else "plain")
    assert record.reason.startswith("its steps cannot be taken back: ")
    assert_agree(*by_solver, 1e-9)


class TestDrift:
    @pytest.fixture
    def make(self, make_field):
        field = neuralosc.Oscillator(1, 4, epsilon=20.0, coupled=False)

        def make(**options):
            gradient = solvers.Reversible("reversible", **options)
            return ContinuousRNN(field, "stormer_verlet", 0.1, gradient=gradient)

        return make

    def test_is_measured_at_every_snapshot(self, make, fast):
        x, drifts = torch.linspace(-1, 1, 80).view(2, 40, 1), {}
        for backend in ("plain", fast):
            drifts[backend] = []
            with solvers.backend(backend):
                make(snapshots=4, chunk=4, limit=1e9, drifts=drifts[backend])(x)[0].square().mean().backward()
        assert len(drifts[fast]) == 5
        # Both are rounding errors that have grown: alike in size.
        assert all(a < 30 * b and b < 30 * a for a, b in zip(drifts["plain"], drifts[fast], strict=True))

    def test_is_refused_beyond_the_limit_in_the_same_words(self, make, fast, one_line):
        # One sample drifts by far more than the other, however a processor rounds: its steps are ten times as long.
        messages, x, spans = [], torch.linspace(-1, 1, 80).view(2, 40, 1), torch.tensor([0.1, 1.0]).repeat(40, 1).T
        for backend in ("plain", fast):
            with solvers.backend(backend):
                loss = make(snapshots=0)(x, timespans=spans)[0].square().mean()
            with pytest.raises(DriftError) as error:
                loss.backward()
            messages.append(one_line(error, "Oscillator is too stiff", "stormer_verlet", "checkpoint"))
            assert (error.value.sample, error.value.step) == (1, 0)
        before, after = (message.partition(" of their size") for message in messages)
        assert before[2] == after[2]


def test_a_gradient_of_the_gradient(fast, make_field, relative_error):
    rnn = ContinuousRNN(make_field("lipschitz"), "reversible", 0.1, gradient="reversible")
    x, penalties = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True), []
    recorded = rnn.with_solver("reversible", gradient="backprop")
    for layer, backend in ((recorded, "plain"), (rnn, "plain"), (rnn, fast)):
        with solvers.backend(backend):
            # The gradient of a plain sum, whose own gradient asks for nothing.
            (first,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
            penalties.append([first, *torch.autograd.grad(first.square().sum(), [x, *rnn.parameters()])])
    for penalty in penalties[1:]:
        assert all(relative_error(one, plain) < 1e-11 for plain, one in zip(penalties[0], penalty, strict=True))


def test_a_second_backward_pass_gives_the_same(fast, make_field):
    rnn = ContinuousRNN(make_field("oscillator_uncoupled"), "stormer_verlet", 0.1, gradient="reversible")
    with solvers.backend(fast):
        loss = rnn(torch.randn(3, 40, 2, dtype=torch.float64))[0].square().sum()
        first, again = (torch.autograd.grad(loss, list(rnn.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def peak(rnn, x):
    """Bytes of the buffers of a training step, at most."""
    for _ in range(2):
        # The first one is compared with the plain path.
        before, _ = memory.count()
        rnn(x)[1].square().sum().backward()
        _, most = memory.count()
    return most - before


@pytest.mark.parametrize(("substeps", "times"), [(1, (2_400, 4_800)), (3_000, (1, 3)), (9_000, (1, 2))])
def test_memory_does_not_depend_on_the_number_of_steps(substeps, times, monkeypatch):
    monkeypatch.setattr(memory, "LEAST", 0)
    rnn = neuralosc.HamiltonianRNN(2, 8, dt=0.01 * substeps, solver="stormer_verlet", substeps=substeps)
    rebuilt = rnn.with_solver(rnn.solver, gradient="reversible")
    with solvers.backend("compiled"):
        peaks = [peak(rebuilt, torch.randn(4, time, 2)) for time in times]
        kept = peak(rnn, torch.randn(4, times[0], 2))
    memory.release()
    # Inputs are x, which torch keeps; positions are returned. The rest is one segment, and the snapshots.
    least = [4 * 4 * 8 * time for time in times]
    room = 4 * 4 * 8 * (2 * (256 + 1) + 2 * 256 + 2 * 10)
    assert all(most <= room + bytes + 4096 for most, bytes in zip(peaks, least, strict=True))
    assert kept > 2.5 * peaks[0]
