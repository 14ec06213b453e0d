"""Where eigenvalues lie and how long a step may be, against the limits that the methods are known for."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc.analysis.spectrum import spectrum
from solvers.errors import InputError
from tests.neuralosc.analysis.linear import F64, Linear, rotation


@pytest.fixture(autouse=True)
def _plain():
    """Each network here runs once or twice, which compiling does not pay for."""
    with solvers.backend("plain"):
        yield


X = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


class Spring(neuralosc.Partitioned):
    """q' = w p, p' = -w q + u."""

    separable = True

    def __init__(self, w=1.0):
        super().__init__(1, 1)
        self.w = w

    def drive(self, x):
        return x

    def velocity(self, t, q, p, u):
        return self.w * p

    def force(self, t, q, p, u):
        return u - self.w * q


def network(field, solver, dt=0.1, **options):
    return neuralosc.ContinuousRNN(field, solver, dt=dt, **options).double()


@pytest.mark.parametrize(
    ("solver", "limit"),
    [("semi_implicit_euler", 2.0), ("stormer_verlet", 2.0), ("rk4", math.sqrt(8)), ("bosh3_fixed", math.sqrt(3)),
     ("implicit_midpoint", math.inf), ("euler", 0.0), ("heun", 0.0)],
)  # fmt: skip
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_the_largest_step_on_an_oscillation(solver, limit, w):
    found = spectrum(network(Spring(w), solver), X[..., :1], points=4)
    # Heun's steps grow by h^4 / 8, which is below the slack where they are shorter than 0.01.
    slack = 0.01 if solver == "heun" else 0.0
    torch.testing.assert_close(found.stable, torch.full((4,), limit / w, dtype=F64), rtol=1e-3, atol=slack)
    assert found.verdict.answer == ("stable" if limit else "unstable")
    expected = torch.tensor([-1j * w, 1j * w], dtype=torch.complex128).imag
    torch.testing.assert_close(found.eigenvalues.imag.sort().values, expected.expand(4, 2), rtol=1e-12, atol=0)


def test_the_largest_step_of_decay_and_the_shares():
    """Euler's on lambda = -1 and -10 is 2 / 10; at 0.05 both decay, more slowly than exp only where 1 + z > exp z."""
    found = spectrum(network(Linear([[-1.0, 0.0], [0.0, -10.0]]), "euler", 0.05), X, points=2)
    torch.testing.assert_close(found.stable, torch.full((2,), 0.2, dtype=F64), rtol=1e-3, atol=0)
    assert found.inside == 1.0 and found.damped == 0.0
    torch.testing.assert_close(found.stiffness, torch.full((2,), 10.0, dtype=F64))
    torch.testing.assert_close(found.radii, torch.full((2,), 0.95, dtype=F64))
    found = spectrum(network(Linear([[-1.0, 0.0], [0.0, -10.0]]), "implicit_euler", 0.05), X, points=2)
    assert found.damped == 1.0 and found.stable.isinf().all()


def test_substeps_and_long_gaps_are_what_is_stepped():
    spans = torch.full((3, 6), 2.5, dtype=F64)
    net = network(Linear([[-1.0, 0.0], [0.0, -10.0]]), "euler", 0.1, substeps=2)
    assert spectrum(net, (X, None, spans), points=2).steps.tolist() == pytest.approx([0.25 / 6] * 2)


def test_what_grows_by_itself_may_grow():
    found = spectrum(network(Linear([[0.5, 0.0], [0.0, -1.0]]), "euler"), X, points=2)
    assert found.verdict.answer == "stable" and float(found.growth[0]) == pytest.approx(math.exp(0.05))


def test_eigenvectors_far_from_orthogonal_are_said():
    found = spectrum(network(Linear([[-1.0, 1e5], [0.0, -1.1]]), "euler"), X, points=2)
    assert found.verdict.answer == "stable" and "far from orthogonal" in str(found.verdict)


def test_the_time_scale_is_in_the_eigenvalues():
    torch.manual_seed(0)
    fast = neuralosc.ContinuousRNN(neuralosc.Oscillator(2, 3, time_scale=3.0), "rk4", dt=0.1)
    plain = neuralosc.ContinuousRNN(neuralosc.Oscillator(2, 3), "rk4", dt=0.1)
    plain.load_state_dict(fast.state_dict(), strict=False)
    x = torch.zeros(1, 1, 2)
    # Both start at rest, where they are the same but for their pace.
    one, three = spectrum(plain, x, points=1), spectrum(fast, x, points=1)
    torch.testing.assert_close(three.eigenvalues, 3 * one.eigenvalues)


def test_no_claim_of_a_method_that_chooses_its_steps():
    found = spectrum(network(Linear(rotation()), "native_dopri5"), X, points=2)
    assert not found.verdict.claim and "chooses its steps" in str(found.verdict) and found.stable.isnan().all()
    assert len(found.png()) > 10_000 and found.table()


def test_bad_input():
    with pytest.raises(InputError, match="points is 0, expected a positive number of states"):
        spectrum(network(Linear(rotation()), "euler"), X, points=0)
    with pytest.raises(InputError, match="a TorchGRU has no solver"):
        spectrum(neuralosc.TorchGRU(2, 2), X)
    with pytest.raises(InputError, match="no sample at which time passes"):
        spectrum(network(Linear(rotation()), "rk4", control="linear"), (X, None, torch.zeros(3, 6, dtype=F64)))
