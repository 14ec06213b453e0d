"""What the papers on LinOSS prove of one step, tested on the step that the solver takes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from neuralosc.fields import discretizations

F64 = torch.float64
DAMPED = list(discretizations.SOLVERS)
RAW = st.floats(-50, 50, allow_subnormal=False)
PROFILE = settings(max_examples=60, deadline=None, derandomize=True, database=None)
raw = st.lists(st.tuples(RAW, RAW, st.floats(-6, 6)), min_size=1, max_size=6)


def field_of(parameters, discretization, damped, projection):
    field = neuralosc.LinearOscillator(
        1, len(parameters), damped=damped, projection=projection, discretization=discretization
    ).double()
    A, G, steps = torch.tensor(parameters, dtype=F64).unbind(1)
    with torch.no_grad():
        field.A.copy_(A), field.steps.copy_(steps)
        if damped:
            field.G.copy_(G)
    return field


def step_matrices(field):
    """The step of the field's discretization on (q, p) of each channel: `(hidden, 2, 2)`."""
    rnn = ContinuousRNN(field, discretizations.solver(field.discretization, field.G is not None))
    unit = torch.eye(2, dtype=F64).unsqueeze(-1).expand(2, 2, field.hidden_size)
    with torch.no_grad():
        return rnn(torch.zeros(2, 1, 1, dtype=F64), unit)[1].permute(2, 1, 0)


@PROFILE
@given(raw)
def test_linoss_im_has_its_eigenvalues_where_the_paper_says(parameters):
    """Rusch & Rus 2025, proposition 3.1: |lambda|^2 = 1 / (1 + h^2 A) <= 1 for every A >= 0 and every step."""
    field = field_of(parameters, "IM", False, "relu")
    squares = torch.linalg.eigvals(step_matrices(field)).abs().square()
    h, A = (field.constants[name].detach() for name in ("time_scale", "A"))
    expected = 1 / (1 + h * h * A)
    # Both eigenvalues are 1 where A is 0, and rounding moves a double eigenvalue by its square root.
    assert float((squares - expected.unsqueeze(-1)).abs().max()) < 1e-6
    torch.testing.assert_close(torch.linalg.det(step_matrices(field)), expected, rtol=1e-12, atol=1e-12)


@PROFILE
@given(raw, st.sampled_from(["relu", "stable", "oscillatory"]))
def test_linoss_imex_preserves_volume(parameters, projection):
    """Rusch & Rus 2025 on LinOSS-IMEX: a symplectic map of each (q, p), whose determinant is 1 for any A and step."""
    matrices = step_matrices(field_of(parameters, "IMEX", False, projection))
    scale = matrices.abs().amax((1, 2)).square().clamp_min(1)
    assert float(((torch.linalg.det(matrices) - 1).abs() / scale).max()) < 1e-14


@PROFILE
@given(raw)
def test_linoss_imex_has_its_eigenvalues_on_the_unit_circle(parameters):
    """The same in its region 0 <= A <= 4 / h^2."""
    radii = torch.linalg.eigvals(step_matrices(field_of(parameters, "IMEX", False, "stable"))).abs()
    assert float((radii - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("projection", ["stable", "oscillatory"])
@pytest.mark.parametrize("discretization", DAMPED)
@PROFILE
@given(raw)
def test_no_parameters_leave_the_unit_disc(discretization, projection, parameters):
    """Boyer, Rusch & Rus 2025 on stability: a projection puts any raw A and G where |lambda| <= 1.

    And where the channel oscillates, trace^2 <= 4 det, if it is the oscillatory one.
    """
    field = field_of(parameters, discretization, True, projection)
    matrices = step_matrices(field)
    # A double eigenvalue moves by the square root of what rounding does to the matrix.
    assert float(torch.linalg.eigvals(matrices).abs().max()) < 1 + 1e-6
    trace, determinant = matrices.diagonal(dim1=1, dim2=2).sum(-1), torch.linalg.det(matrices)
    assert bool((trace.abs() <= 1 + determinant + 1e-12).all()) and bool((determinant <= 1 + 1e-12).all())
    if projection == "oscillatory":
        assert bool((trace.square() <= 4 * determinant + 1e-12).all())


@PROFILE
@given(raw)
def test_the_implicit_step_is_stable_under_the_plain_projection_too(parameters):
    radii = torch.linalg.eigvals(step_matrices(field_of(parameters, "IM", True, "relu"))).abs()
    assert float(radii.max()) < 1 + 1e-6


@pytest.mark.parametrize("projection", ["stable", "oscillatory"])
@pytest.mark.parametrize("discretization", DAMPED)
def test_a_projection_leaves_alone_what_is_inside_and_has_finite_gradients_anywhere(discretization, projection):
    h = torch.sigmoid(torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=F64))
    trace, determinant = 2 * 0.95 * torch.cos(torch.linspace(0.3, 0.7, 4, dtype=F64)), torch.full((4,), 0.9025).double()
    A, G = discretizations.of_eigenvalues(discretization, trace, determinant, h)
    if discretization in ("IMEX3",):
        A, G = A.abs() + 1, torch.full_like(G, 0.2)
    inside = discretizations.projected(projection, discretization, A, G, h)
    torch.testing.assert_close(torch.stack(inside), torch.stack((A, G)), rtol=1e-12, atol=0)
    extreme = torch.tensor([-1e3, -1.0, 0.0, 1e-3, 1.0, 1e3])
    A, G, steps = (t.flatten().requires_grad_() for t in torch.meshgrid(extreme, extreme, extreme / 100, indexing="ij"))
    outside = discretizations.projected(projection, discretization, A, G, torch.sigmoid(steps))
    gradients = torch.autograd.grad(sum(t.sum() for t in outside), (A, G, steps))
    assert all(bool(torch.isfinite(t).all()) for t in (*outside, *gradients))


@pytest.mark.parametrize("discretization", DAMPED)
def test_a_ring_is_where_the_eigenvalues_start(discretization):
    """Boyer, Rusch & Rus 2025: A and G and the eigenvalues of a step determine each other."""
    torch.manual_seed(0)
    field = neuralosc.LinearOscillator(1, 400, damped=True, discretization=discretization, initialization="ring")
    field = field.double()
    # G of either sign puts an eigenvalue on the ring; the plain map is asked for, not the projected one.
    field.prepare = lambda: {"A": field.A, "G": field.G, "time_scale": torch.sigmoid(field.steps)}
    eigenvalues = torch.linalg.eigvals(step_matrices(field))
    radius, angle = eigenvalues.abs(), eigenvalues.angle().abs()
    assert 0.9 - 1e-4 < float(radius.min()) < 0.91 and 0.99 < float(radius.max()) < 1 + 1e-4
    # Half of the squared radii lie below the middle.
    assert abs(float(radius.square().median()) - 0.905) < 0.02
    assert float(angle.min()) < 0.02 and 0.75 < float(angle.max()) < math.pi / 4 + 1e-3


def test_trajectories_of_stable_layers_stay_bounded_where_plain_ones_may_not():
    x, state = torch.zeros(1, 400, 1, dtype=F64), torch.ones(1, 2, 1, dtype=F64)

    def output(discretization, projection):
        field = field_of([(40.0, 1.0, 3.0)], discretization, True, projection)
        with solvers.backend("plain"), torch.no_grad():
            return ContinuousRNN(field, discretizations.solver(discretization, True))(x, state)[0]

    for discretization in DAMPED:
        assert float(output(discretization, "stable").abs().max()) < 100
    with pytest.raises(solvers.NumericalError):
        output("IMEX", "relu")
