"""Newton's method, its linear systems and its gradient, on equations whose roots are known."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import solvers
from solvers.errors import ConvergenceError, InputError, NonFiniteStateError
from solvers.numerics.jacobian import DenseSystem, KrylovSystem, StageEquations, gmres
from solvers.numerics.newton import DENSE_LIMIT, LINEAR_SOLVERS, Newton, _Inverse, _snapshot

F64 = torch.float64
METHODS = ["newton", "simplified", "krylov", "auto"]


def randn(*shape, seed=4, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stage(field, base, h=1.0, weight=1.0):
    """The equations of one stage k = h f(base + weight k) for states of one component."""
    weights = torch.full((1, 1), weight, dtype=base.dtype)
    return StageEquations(field, [0.0], [None], h, base.unsqueeze(-2).unsqueeze(-3), weights)


def root(field, base, h=1.0, linear_solver="newton", **options):
    equations = stage(field, base, h)
    newton = Newton("test", linear_solver=linear_solver, **options)
    return newton.root(equations, torch.zeros_like(base))[0]


class Counting:
    """A field that counts its evaluations."""

    def __init__(self, field):
        self.field, self.calls = field, 0

    def __call__(self, t, x, u):
        self.calls += 1
        return self.field(t, x, u)


@pytest.mark.parametrize("method", METHODS)
def test_the_root_of_a_scalar_equation_for_samples_of_every_stiffness(method):
    """k = -h (1 + k)^3: the increment of implicit Euler on y' = -y^3 from 1, over nine decades of the step."""
    h = torch.logspace(-3, 6, 10, dtype=F64).reshape(10, 1, 1)
    k = root(lambda t, x, u: -(x**3), torch.ones(10, 1, dtype=F64), h, method)
    y = 1 + k
    torch.testing.assert_close(y, 1 - h[:, 0] * y**3, rtol=0, atol=1e-11)
    assert bool(((y > 0) & (y < 1)).all())


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_system_takes_one_step_and_its_check(method):
    matrix = randn(5, 5)
    field = Counting(lambda t, x, u: x @ matrix)
    base = randn(3, 5)
    k = root(field, base, 0.1, method)
    expected = base @ torch.linalg.inv(torch.eye(5, dtype=F64) - 0.1 * matrix) - base
    torch.testing.assert_close(k, expected, rtol=0, atol=1e-11)
    # G and its Jacobian at the start, G after the step, and for the matrix-free method products with two Jacobians
    # more; one evaluation finds that no gradient is asked for.
    assert field.calls <= (4 if method != "krylov" else 8)


@pytest.mark.parametrize("method", METHODS)
def test_far_starts_are_damped_into_the_root(method):
    """Undamped steps on k = 10 - 20 arctan(x) from 0 diverge."""
    base = torch.tensor([[3.0], [8.0], [-11.0]], dtype=F64)
    k = root(lambda t, x, u: -20 * torch.arctan(x), base, 1.0, method)
    torch.testing.assert_close(k, -20 * torch.arctan(base + k), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_samples_do_not_see_one_another(method):
    """A sample takes the same iterates alone and beside samples that need many more of them."""
    base, h = randn(6, 4), torch.logspace(-4, 3, 6, dtype=F64).reshape(6, 1, 1)
    matrix = randn(4, 4, seed=8)

    def field(t, x, u):
        return torch.tanh(x @ matrix) - x**3

    together = root(field, base, h, method)
    for i in range(6):
        alone = root(field, base[i : i + 1], h[i : i + 1], method)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_no_root_is_an_error_that_names_sample_residual_and_iterations(method, one_line):
    sign = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=F64).reshape(4, 1, 1)
    with pytest.raises(ConvergenceError) as error:
        root(lambda t, x, u: sign * (1 + x**2), torch.ones(4, 1, dtype=F64), 1.0, method, max_iterations=9)
    one_line(error, "sample 1", "after 9 iterations", f"residual {error.value.residual:.3g}", "smaller dt")
    assert error.value.samples == (1, 3) and error.value.sample == 1 and error.value.iterations == 9
    assert error.value.residual > 0.1


def test_a_slope_that_is_not_finite_is_named_as_such(one_line):
    bad = torch.tensor([0.0, math.nan, 0.0], dtype=F64).reshape(3, 1, 1)
    with pytest.raises(NonFiniteStateError) as error:
        root(lambda t, x, u: bad - x, torch.ones(3, 1, dtype=F64))
    one_line(error, "sample 1", "not finite")


def test_a_trial_that_leaves_the_domain_is_damped_back():
    """The first whole step on k = -30 log(5 + k) would take the logarithm of a negative number."""
    base = torch.full((1, 1), 5.0, dtype=F64)
    k = root(lambda t, x, u: -x.log(), base, 30.0)
    torch.testing.assert_close(k, -30 * (base + k).log(), rtol=1e-11, atol=0)


def test_an_equilibrium_at_zero_with_rounding_in_the_slope_converges():
    """The slope at the root is rounding, 1e-17, and so is the state: there is nothing to be relative to."""
    zero, offset = torch.zeros(2, 3, dtype=F64), torch.tensor([0.1, 0.7, 1.3], dtype=F64)

    def field(t, x, u):
        return (0.1 + 0.2 - 0.3) - (torch.sin(offset + x) - torch.sin(offset)) + torch.cos(1e6 * x) - 1

    assert float(root(field, zero).abs().max()) < 1e-14


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e9])
def test_the_tolerance_is_relative_to_the_state(scale):
    base = randn(3, 4) * scale
    k = root(lambda t, x, u: -(x**3) / scale**2, base, 2.0)
    torch.testing.assert_close(k / scale, -2 * ((base + k) / scale) ** 3, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_float32(method):
    base, matrix = randn(5, 8, dtype=torch.float32), randn(8, 8, dtype=torch.float32)
    k = root(lambda t, x, u: torch.tanh(x @ matrix) - 30 * x, base, 1.0, method)
    exact = root(lambda t, x, u: torch.tanh(x @ matrix.double()) - 30 * x, base.double(), 1.0)
    torch.testing.assert_close(k.double(), exact, rtol=0, atol=2e-6)


def test_tolerance_and_iterations_are_obeyed():
    field = Counting(lambda t, x, u: -torch.sinh(x))
    counts = []
    for tol in (1e-2, 1e-6, None):
        field.calls = 0
        with torch.no_grad():
            k = root(field, torch.full((1, 1), 5.0, dtype=F64), tol=tol)
        counts.append(field.calls)
        assert float((k + torch.sinh(5 + k)).abs()) < 2 * (tol or 1e-11) * 5
    assert counts[0] < counts[1] < counts[2]
    # A tolerance below rounding asks for rounding.
    root(field, torch.full((1, 1), 5.0, dtype=F64), tol=1e-300)
    with pytest.raises(ConvergenceError):
        root(field, torch.full((1, 1), 5.0, dtype=F64), max_iterations=2)


def test_simplified_newton_evaluates_fewer_jacobians(monkeypatch):
    calls = []
    plain = StageEquations.matrix
    monkeypatch.setattr(StageEquations, "matrix", lambda self, k: calls.append(1) or plain(self, k))
    matrix, counts = randn(6, 6, seed=9), {}
    for method in ("newton", "simplified"):
        calls.clear()
        with torch.no_grad():
            root(lambda t, x, u: torch.tanh(x @ matrix), randn(4, 6), 0.05, method)
        counts[method] = len(calls)
    assert counts["simplified"] == 1 < counts["newton"]


def test_auto_chooses_by_size():
    newton = Newton("test")
    assert newton.linear_solver_for(DENSE_LIMIT) == "simplified"
    assert newton.linear_solver_for(DENSE_LIMIT + 1) == "krylov"
    assert {Newton("test", linear_solver=name).linear_solver_for(8) for name in LINEAR_SOLVERS} == {
        "newton",
        "simplified",
        "krylov",
    }


def test_auto_falls_back_on_factors_where_gmres_fails(monkeypatch):
    """Eigenvalues over eight decades, which GMRES does not resolve within few restarts; the second sample is mild."""
    monkeypatch.setattr("solvers.numerics.jacobian.gmres", partial(gmres, restart=6, cycles=2))
    monkeypatch.setattr("solvers.numerics.newton.DENSE_LIMIT", 16)
    rate = torch.stack((torch.logspace(-2, 6, 24, dtype=F64), torch.full((24,), 2.0, dtype=F64))).unsqueeze(-2)
    base = randn(2, 24)
    with pytest.raises(ConvergenceError) as error:
        root(lambda t, x, u: -rate * x, base, 1.0, "krylov")
    assert error.value.samples == (0,)
    base.requires_grad_()
    k, ratio = root(lambda t, x, u: -rate * x, base, 1.0, "auto"), (rate / (1 + rate))[:, 0]
    torch.testing.assert_close(k, -base * ratio, rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad(k.sum(), base)
    torch.testing.assert_close(gradient, -ratio, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tol": 0.0}, "tol"),
        ({"tol": "small"}, "tol"),
        ({"tol": math.nan}, "tol"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_iterations": 2.5}, "max_iterations"),
        ({"linear_solver": "lu"}, "linear_solver"),
    ],
)
def test_options_are_checked(options, word, one_line):
    with pytest.raises(InputError) as error:
        solvers.get("implicit_euler", **options)
    one_line(error, word, "implicit_euler", *options.values())


def test_gmres_solves_every_row_with_its_own_matrix():
    matrices, rhs = randn(7, 20, 20, seed=1), randn(7, 20, seed=2)
    rhs[3] = 0
    x, converged = gmres(lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1), rhs, 1e-12)
    assert bool(converged.all()) and bool((x[3] == 0).all())
    torch.testing.assert_close(x, torch.linalg.solve(matrices, rhs), rtol=1e-9, atol=1e-9)


def test_gmres_restarts_and_reports_what_it_could_not_solve():
    matrices = torch.stack((torch.eye(12, dtype=F64) + 0.1 * randn(12, 12), torch.zeros(12, 12, dtype=F64)))
    rhs = randn(2, 12, seed=3)
    x, converged = gmres(lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1), rhs, 1e-10, restart=4, cycles=8)
    assert converged.tolist() == [True, False]
    torch.testing.assert_close(matrices[0] @ x[0], rhs[0], rtol=0, atol=1e-9)


def test_a_row_of_gmres_stops_where_it_would_stop_alone():
    # The first row is done after one product, the others after twelve.
    matrices = torch.cat((2 * torch.eye(12, dtype=F64).unsqueeze(0), randn(3, 12, 12)))
    rhs = randn(4, 12, seed=5)
    together, _ = gmres(lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1), rhs, 1e-6)
    for i in range(4):
        alone, _ = gmres(lambda v, i=i: v @ matrices[i].T, rhs[i : i + 1], 1e-6)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("inference", [False, True])
def test_products_and_matrix_agree(inference):
    """Two coupled stages, two components, a step per channel; also where autograd records nothing."""
    matrix, h = randn(3, 3), torch.tensor([[0.3, 0.1, 0.7], [0.2, 0.0, 0.4]], dtype=F64).unsqueeze(-2)
    weights = torch.tensor([[0.25, -0.04], [0.54, 0.25]], dtype=F64)

    def field(t, x, u):
        q, p = x.unbind(-2)
        return torch.stack((p * torch.cos(q), torch.tanh(q @ matrix + t) - p), -2)

    with torch.inference_mode(inference):
        equations = StageEquations(field, [0.1, 0.4], [None, None], h, randn(2, 2, 2, 3), weights)
        k, v = randn(2, 12, seed=6), randn(2, 12, seed=7)
        dense, shift = equations.matrix(k), 1e-6
        forward, backward = equations.product(k)(v), equations.product(k, transposed=True)(v)
        difference = (equations.residual(k + shift * v) - equations.residual(k - shift * v)) / (2 * shift)
    torch.testing.assert_close(forward, torch.einsum("bij,bj->bi", dense, v), rtol=0, atol=1e-13)
    torch.testing.assert_close(backward, torch.einsum("bij,bi->bj", dense, v), rtol=0, atol=1e-13)
    torch.testing.assert_close(forward, difference, rtol=0, atol=1e-8)


@pytest.mark.parametrize("transposed", [False, True])
def test_systems_agree(transposed):
    matrix = randn(9, 9)
    equations = stage(lambda t, x, u: torch.tanh(x @ matrix), randn(3, 9), 0.7)
    k, rhs = randn(3, 9, seed=6), randn(3, 9, seed=7)
    dense, krylov = DenseSystem(equations, k), KrylovSystem(equations, k, 1e-13)
    torch.testing.assert_close(dense.solve(rhs, transposed), krylov.solve(rhs, transposed), rtol=0, atol=1e-11)
    # Moving one row changes that row alone.
    before, rows = dense.solve(rhs), torch.tensor([False, True, False])
    dense.move(k + 1, rows)
    after, expected = dense.solve(rhs), DenseSystem(equations, k + 1).solve(rhs)
    assert torch.equal(after[~rows], before[~rows])
    torch.testing.assert_close(after[rows], expected[rows], rtol=0, atol=1e-14)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_field_that_does_not_see_its_state(method, recorded):
    slope = torch.tensor([[[1.0, -2.0, 3.0]]], dtype=F64, requires_grad=recorded)
    k = root(lambda t, x, u: slope.expand_as(x), torch.zeros(2, 3, dtype=F64), 0.5, method)
    torch.testing.assert_close(k, 0.5 * slope[0].expand(2, 3), rtol=0, atol=1e-15)
    if recorded:
        (gradient,) = torch.autograd.grad(k.sum(), slope)
        torch.testing.assert_close(gradient, torch.ones_like(slope), rtol=0, atol=1e-15)


@pytest.mark.parametrize("method", ["newton", "krylov"])
def test_first_and_second_derivatives_are_those_of_the_root(method):
    """k = w (1 + k)^2 / 2 has the root 1/w - 1 - sqrt(1/w^2 - 2/w), differentiated in closed form."""
    w = torch.tensor([0.1, 0.3, 0.45], dtype=F64, requires_grad=True)
    k = root(lambda t, x, u: w.reshape(3, 1, 1) * x**2 / 2, torch.ones(3, 1, dtype=F64), 1.0, method)[:, 0]
    exact = 1 / w - 1 - (1 / w**2 - 2 / w).sqrt()
    torch.testing.assert_close(k, exact, rtol=0, atol=1e-12)
    for _ in range(2):
        (k,), (exact,) = (torch.autograd.grad(y.sum(), w, create_graph=True) for y in (k, exact))
        torch.testing.assert_close(k, exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["newton", "simplified", "krylov"])
def test_gradients_through_closures(method):
    """Everything the field closes over, the base and the step, with a step of zero among them."""
    matrix, base = randn(2, 2).requires_grad_(), randn(2, 2, seed=5).requires_grad_()
    h = torch.tensor([[[0.8]], [[0.0]]], dtype=F64, requires_grad=True)

    def k(matrix, base, h):
        return root(lambda t, x, u: torch.tanh(x @ matrix) - x**3, base, h, method)

    fast = method == "krylov"
    assert gradcheck(k, (matrix, base, h), fast_mode=fast)
    assert gradgradcheck(k, (matrix, base, h), fast_mode=fast)


def test_the_gradient_is_that_of_the_theorem_to_rounding():
    """-J^T \\ g against the dense matrices, and against the tolerance of the iteration: it does not see the path."""
    matrix, base = randn(4, 4), randn(3, 4).requires_grad_()

    def field(t, x, u):
        return torch.tanh(x @ matrix)

    weights, grads = randn(3, 4, seed=6), []
    for tol in (1e-3, None):
        k = root(field, base, 0.9, tol=tol)
        grads.append(torch.autograd.grad((k * weights).sum(), base)[0])
        equations = stage(field, base.detach(), 0.9)
        jacobian = equations.matrix(k.detach())
        outer = torch.linalg.solve(jacobian.mT, weights)
        # dG/dbase = J - 1.
        exact = (outer.unsqueeze(-2) @ (torch.eye(4, dtype=F64) - jacobian)).squeeze(-2)
        torch.testing.assert_close(grads[-1], exact, rtol=0, atol=1e-14)
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["newton", "simplified", "krylov"])
def test_the_graph_does_not_depend_on_the_iterations(method):
    sizes, calls = [], []
    for start in (0.0, 8.0):
        base = torch.full((4, 6), start, dtype=F64, requires_grad=True)
        field = Counting(lambda t, x, u: -20 * torch.arctan(x))
        k = root(field, base, 1.0, method)
        sizes.append(_nodes(k.grad_fn))
        calls.append(field.calls)
    assert calls[0] < calls[1]
    assert sizes[0] == sizes[1]


def _nodes(node, seen=None):
    """Number of nodes of a graph."""
    seen = set() if seen is None else seen
    if node is None or node in seen:
        return len(seen)
    seen.add(node)
    for parent, _ in node.next_functions:
        _nodes(parent, seen)
    return len(seen)


def test_the_factors_are_not_kept_for_the_backward_pass():
    base = randn(2, 30).requires_grad_()
    k = root(lambda t, x, u: torch.tanh(x), base)
    inverse = k.grad_fn.inverse
    assert inverse.system is None
    k.sum().backward()
    assert inverse.system is None


def test_a_singular_system_of_the_gradient_is_an_error(one_line):
    """The first and last sample have dG/dk = 1 - h = 0."""
    h = torch.tensor([1.0, 0.5, 1.0], dtype=F64).reshape(3, 1, 1)
    equations, k = stage(lambda t, x, u: x, torch.zeros(3, 1, dtype=F64), h), torch.zeros(3, 1, dtype=F64)
    snapshot, _ = _snapshot(equations, k)
    inverse = _Inverse(Newton("test"), equations, k, snapshot)
    with pytest.raises(ConvergenceError) as error:
        inverse.solve(torch.ones(3, 1, dtype=F64), transposed=True)
    assert error.value.samples == (0, 2)
    one_line(error, "gradient", "sample 0")


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_a_number_stays_one(method):
    base = randn(2, 3).requires_grad_()
    k = root(lambda t, x, u: torch.tanh(x), base, 0.5, method)
    weights = torch.tensor([[1.0], [math.nan]], dtype=F64)
    (gradient,) = torch.autograd.grad((weights * k).sum(), base)
    assert bool(gradient[0].isfinite().all()) and bool(gradient[1].isnan().all())


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch(method):
    base = torch.zeros(0, 3, dtype=F64, requires_grad=True)
    k = root(lambda t, x, u: torch.tanh(x), base, 1.0, method)
    assert k.shape == (0, 3)
    k.sum().backward()
    assert base.grad.shape == (0, 3)
