"""What becomes of a gradient on its way back, where it is known: linear, orthogonal and volume preserving steps."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.along import walk
from neuralosc.analysis.gradient_flow import EXPLODED, VANISHED, gradient_flow
from neuralosc.analysis.samples import Samples
from solvers.errors import InputError
from tests.neuralosc.analysis.linear import F64, Linear, rotation

X = torch.zeros(5, 30, 2, dtype=F64)


@pytest.fixture(autouse=True)
def _plain():
    """Each network here runs once or twice, which compiling does not pay for."""
    with solvers.backend("plain"):
        yield


def network(matrix, solver="euler", dt=0.1, **options):
    return neuralosc.ContinuousRNN(Linear(matrix), solver, dt=dt, **options).double()


def test_of_a_linear_step_the_norm_is_the_power_of_its_factor():
    found = gradient_flow(network([[-2.0, 0.0], [0.0, -1.0]]), X)
    torch.testing.assert_close(found.norms, (0.9 ** found.lags.double()).expand(5, -1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.smallest, (0.8 ** found.lags.double()).expand(5, -1), rtol=1e-10, atol=0)
    expected = found.lags.double() * math.log(0.9 * 0.8)
    torch.testing.assert_close(found.volumes, expected.expand(5, -1), rtol=1e-12, atol=0)
    assert found.verdict.answer == "arrives" and found.of == "map"


def test_of_a_rotation_that_is_solved_to_many_digits_it_stays_one():
    found = gradient_flow(network(rotation(), "gauss_legendre4"), X)
    torch.testing.assert_close(found.norms, torch.ones_like(found.norms), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("decay", "fate"), [(-9.0, "vanishes"), (5.0, "explodes")])
def test_the_verdict_says_what_it_comes_to(decay, fate):
    found = gradient_flow(network([[decay, 0.0], [0.0, decay]]), X)
    factor = abs(1 + 0.1 * decay) ** 30
    assert found.verdict.answer == fate and found.verdict.numbers["norm"] == pytest.approx(factor)
    assert factor < VANISHED if fate == "vanishes" else factor > EXPLODED


def test_each_sequence_ends_where_it_ends():
    spans = torch.rand(5, 30, dtype=F64) / 2 + 0.5
    lengths = torch.tensor([30, 30, 30, 30, 3])
    net = network([[-1.0, 0.0], [0.0, -1.0]])
    found = gradient_flow(net, Samples(X, None, spans, lengths), samples=5)
    assert found.norms[4, found.lags > 3].isnan().all() and found.norms[:4].isfinite().all()
    last = torch.stack([(1 - 0.1 * spans[b, length - 2 : length]).prod() for b, length in enumerate(lengths)])
    torch.testing.assert_close(found.norms[:, found.lags == 2].squeeze(1), last, rtol=1e-12, atol=0)


def test_too_few_sequences_give_no_claim():
    found = gradient_flow(network(rotation()), X[:2])
    assert not found.verdict.claim and "2 sequences are too few" in str(found.verdict)


def test_the_bound_of_the_cornn_and_whether_it_may_be_used():
    torch.manual_seed(0)
    x = torch.randn(4, 20, 2)
    small = neuralosc.CoRNN(2, 8, dt=0.001, gamma=1.0, epsilon=1.0, solver="imex_euler")
    step, energy = gradient_flow(small, x).bounds
    assert step.assumed and step.kept and energy.assumed and energy.kept
    assert step.found > 1 and 0 < energy.found < energy.limit
    large = neuralosc.CoRNN(2, 8, dt=0.5, gamma=1.0, epsilon=1.0, solver="imex_euler")
    assert not gradient_flow(large, x).bounds[0].assumed
    assert "does NOT hold" in gradient_flow(large, x).table()
    # The theorem is on the published step with its coefficients, and on no other.
    for other in ({"solver": "rk4"}, {"gamma": 2.7}, {"substeps": 2}):
        options = {"dt": 0.001, "gamma": 1.0, "epsilon": 1.0, "solver": "imex_euler", **other}
        assert not any(b.assumed for b in gradient_flow(neuralosc.CoRNN(2, 8, **options), x).bounds)


def test_the_unicornn_keeps_volume_under_a_symplectic_step_alone():
    torch.manual_seed(0)
    x = torch.randn(4, 20, 2)
    (kept,) = gradient_flow(neuralosc.UnICORNN(2, 6), x).bounds
    assert kept.assumed and kept.kept
    (lost,) = gradient_flow(neuralosc.UnICORNN(2, 6, solver="euler"), x).bounds
    assert not lost.assumed and not lost.kept


def test_the_lem_keeps_its_bounds_however_large_its_weights():
    x = torch.randn(4, 20, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for scale in (1.0, 8.0):
        rnn = neuralosc.LEM(2, 6, dt=0.5)
        with torch.no_grad():
            for parameter in rnn.parameters():
                parameter *= scale
        growth, size = gradient_flow(rnn, x).bounds
        assert growth.assumed and growth.kept and size.assumed and size.kept and 0 < size.found < 1
    # Of one channel the row sums are the weights: with W = 3 alone the bound is 1 + dt 3.
    rnn = neuralosc.LEM(1, 1, dt=1.0)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.zero_()
        rnn.field.coupling.weight[2] = 3.0
    assert gradient_flow(rnn, x[..., :1]).bounds[0].limit == pytest.approx(4.0)
    for other in ({"solver": "rk4"}, {"dt": 1.5}, {"substeps": 2}):
        assert not any(b.assumed for b in gradient_flow(neuralosc.LEM(2, 6, **{"dt": 0.5, **other}), x).bounds)


def test_the_lipschitz_rnn_contracts_where_the_theorem_says():
    torch.manual_seed(0)
    x = torch.randn(4, 10, 2)
    rnn = neuralosc.ContinuousRNN(neuralosc.Lipschitz(2, 6, gamma=3.0, gamma_W=0.1), "rk4", dt=0.05)
    (bound,) = gradient_flow(rnn, x).bounds
    assert bound.assumed and bound.kept and bound.limit < 1
    rnn = neuralosc.ContinuousRNN(neuralosc.Lipschitz(2, 6, gamma=0.0), "rk4", dt=0.05)
    assert not gradient_flow(rnn, x).bounds[0].assumed


@pytest.mark.parametrize("control", ["hold", "linear", "cubic"])
@pytest.mark.parametrize("name", ["cornn", "gru", "ncde", "odernn"])
def test_the_steps_of_a_walk_are_those_of_the_run(name, control):
    if (name == "ncde") == (control == "hold") or (name == "odernn" and control != "hold"):
        pytest.skip("a control that the network does not take")
    torch.manual_seed(0)
    rnn = neuralosc.make(name, input_size=2, hidden_size=4, control=control).double().eval()
    spans = 2 * torch.rand(3, 6, dtype=F64)
    way = walk(rnn, Samples(torch.rand(3, 6, 2, dtype=F64), None, spans, torch.tensor([6, 5, 4])))
    rows, places = way.valid.nonzero(as_tuple=True)
    after = way.step(rows, places)(way.states[rows, places])
    torch.testing.assert_close(after, way.states[rows, places + 1], rtol=1e-12, atol=1e-13)
    jacobians, finite = way.jacobians()
    assert finite.all()
    torch.testing.assert_close(jacobians[2, 5], torch.eye(way.size, dtype=F64))


def test_nothing_of_what_is_looked_at_changes():
    rnn = neuralosc.CoRNN(2, 4).train()
    before = {name: value.clone() for name, value in rnn.state_dict().items()}
    gradient_flow(rnn, X.float())
    assert rnn.training and all(p.grad is None and p.dtype == torch.float32 for p in rnn.parameters())
    assert all(torch.equal(value, before[name]) for name, value in rnn.state_dict().items())


def test_what_has_no_step_to_look_at_is_refused():
    with pytest.raises(InputError, match="runs in both directions"):
        gradient_flow(neuralosc.CoRNN(2, 4, bidirectional=True), X)
    with pytest.raises(InputError, match=r"expected a neuralosc\.SequenceModel or a recurrent network"):
        gradient_flow(torch.nn.Linear(2, 2), X)
    with pytest.raises(InputError, match="layer is 3, expected a whole number below 1"):
        gradient_flow(neuralosc.CoRNN(2, 4), X, layer=3)


@pytest.mark.parametrize("name", ["lstm", "torch_gru"])
def test_of_a_network_of_torch_its_steps_are_multiplied(name):
    torch.manual_seed(0)
    rnn = neuralosc.make(name, input_size=2, hidden_size=3).double()
    x = torch.randn(4, 6, 2, dtype=F64)
    found = gradient_flow(rnn, Samples(x, None, None, torch.tensor([6, 6, 6, 4])))

    def end(state):
        return rnn(x[:1, 3:], state.reshape(1, rnn.components, 3))[1].flatten()

    begin = rnn(x[:1, :3])[1]
    jacobian = torch.autograd.functional.jacobian(end, begin.detach().flatten())
    expected = torch.linalg.matrix_norm(jacobian, 2)
    torch.testing.assert_close(found.norms[0, found.lags == 3].squeeze(), expected, rtol=1e-10, atol=0)
    assert found.norms[3, found.lags > 4].isnan().all() and found.bounds == ()
    with pytest.raises(InputError, match="has 2 layers in 1 directions"):
        gradient_flow(neuralosc.make(name, input_size=2, hidden_size=3, num_layers=2), x)
