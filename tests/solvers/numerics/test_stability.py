"""Stability functions: known limits, and what the solvers' own steps make of linear equations."""

import math

import numpy as np
import pytest
import torch

import solvers
from solvers.errors import InputError, PairingError
from solvers.numerics.stability import ImexStability, RationalStability, SplittingStability

F64 = torch.float64
INFO = {info.name: info for info in solvers.available()}


def of_kind(kind):
    names = []
    for name in INFO:
        try:
            names += [name] if isinstance(solvers.stability(name), kind) else []
        except PairingError:
            assert INFO[name].family not in ("explicit", "implicit", "symplectic")
    return names


class Rotating:
    """x' = A x of plane vectors, one matrix for each sample: the equation x' = lambda x in real numbers."""

    structure = frozenset()

    def __init__(self, z):
        a, b = torch.from_numpy(z.real.copy()), torch.from_numpy(z.imag.copy())
        self.matrix = torch.stack((torch.stack((a, -b), -1), torch.stack((b, a), -1)), -2)

    def __call__(self, t, state, u):
        return torch.einsum("bij,bcj->bci", self.matrix, state)


@pytest.mark.parametrize("name", [n for n in of_kind(RationalStability) if not INFO[n].adaptive])
def test_a_step_of_a_runge_kutta_method_multiplies_by_it(name):
    rng = np.random.default_rng(0)
    z = rng.normal(size=20) * 1.5 + 1j * rng.normal(size=20) * 1.5
    z = z[np.abs(solvers.stability(name).denominator(z)) > 0.2]
    start = torch.zeros(len(z), 1, 2, dtype=F64)
    start[..., 0] = 1
    end = solvers.integrate(Rotating(z), start, [0.0, 1.0], method=name).states[:, -1, 0].numpy()
    np.testing.assert_allclose(end[:, 0] + 1j * end[:, 1], solvers.stability(name)(z), rtol=1e-8, atol=1e-9)


class Oscillation:
    """q' = p, p' = -w^2 q, a frequency for each channel."""

    structure = frozenset({"partitioned", "conformal", "newtonian"})

    def __init__(self, w):
        self.w = torch.from_numpy(w)

    def velocity(self, t, q, p, u):
        return p

    def force(self, t, q, p, u):
        return -(self.w**2) * q

    def __call__(self, t, state, u):
        q, p = state.unbind(-2)
        return torch.stack((p, -(self.w**2) * q), -2)


@pytest.mark.parametrize("name", of_kind(SplittingStability))
def test_a_step_of_a_composition_multiplies_by_its_matrix(name):
    z = np.linspace(0.1, 2.0, 7)
    start = torch.eye(2, dtype=F64).unsqueeze(-1).expand(2, 2, 7)
    end = solvers.integrate(Oscillation(z), start, [0.0, 1.0], method=name).states[:, -1].numpy()
    matrices = solvers.stability(name)(z)
    # From (q, p) to (w q, p), in which both moves look alike.
    scale = np.stack((np.stack((np.ones(7), z), -1), np.stack((1 / z, np.ones(7)), -1)), -2)
    np.testing.assert_allclose(end.transpose(2, 1, 0) * scale, matrices, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(np.linalg.det(matrices), 1, rtol=1e-9)


class Split:
    """x' = n x + l x, l implicit: rates for each channel."""

    structure = frozenset({"semilinear"})

    def __init__(self, n, linear):
        self.n, self.linear = torch.from_numpy(n), torch.from_numpy(linear)

    def operator(self, terms=None):
        return solvers.numerics.linear.DiagonalOperator(self.linear)

    def nonlinear(self, t, state, u, terms=None):
        return self.n * state

    def __call__(self, t, state, u):
        return (self.n + self.linear) * state


@pytest.mark.parametrize("name", of_kind(ImexStability))
def test_a_step_of_an_implicit_explicit_method_multiplies_by_it(name):
    rng = np.random.default_rng(1)
    n, linear = rng.normal(size=12), -rng.exponential(size=12) * 20
    start = torch.ones(1, 1, 12, dtype=F64)
    end = solvers.integrate(Split(n, linear), start, [0.0, 1.0], method=name).states[0, -1, 0].numpy()
    np.testing.assert_allclose(end, solvers.stability(name)(n, linear).real, rtol=1e-10, atol=1e-12)
    # With everything explicit it is the method of that tableau.
    assert abs(solvers.stability(name)(0.01) - math.exp(0.01)) < 1e-5


@pytest.mark.parametrize(
    ("name", "oscillation", "decay"),
    [
        ("euler", 0, 2),
        ("heun", 0, 2),
        ("ssprk3", math.sqrt(3), 2.5127453266183286),
        ("rk4", 2 * math.sqrt(2), 2.785293563405282),
        ("dopri5_fixed", 0.9971890086, 3.3065678927),
        ("implicit_midpoint", math.inf, math.inf),
        ("radau_iia3", math.inf, math.inf),
    ],
)
def test_known_limits_of_runge_kutta_methods(name, oscillation, decay):
    stability = solvers.stability(name)
    assert stability.limit(math.pi / 2) == pytest.approx(oscillation, rel=1e-9)
    assert stability.limit() == pytest.approx(decay, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "end"),
    [("semi_implicit_euler", 2), ("stormer_verlet", 2), ("forest_ruth", 1.5734019474), ("pefrl", 2.9894495459)],
)
def test_known_limits_of_compositions(name, end):
    assert solvers.stability(name).limit() == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize("name", [*of_kind(RationalStability), *of_kind(SplittingStability)])
def test_no_step_grows_before_the_limit_and_one_does_behind(name):
    stability = solvers.stability(name)
    for angle in (math.pi / 2,) if isinstance(stability, SplittingStability) else (math.pi / 2, 0.8 * math.pi, math.pi):
        end = stability.limit(angle)

        def growth(radius, angle=angle):
            values = stability(radius if isinstance(stability, SplittingStability) else radius * np.exp(1j * angle))
            return np.abs(np.linalg.eigvals(values)).max(-1) if values.ndim > np.ndim(radius) else np.abs(values)

        inside = np.linspace(0, min(end, 50.0) * (1 - 1e-6), 500)[1:] if end else np.array([])
        assert (growth(inside) <= 1 + 1e-7).all()
        if math.isfinite(end):
            assert growth(np.array(end * (1 + 1e-3) + (0.3 if end == 0 else 0))) > 1 + 1e-9


def test_what_has_none_is_refused():
    for name in ("exponential_euler", "lawson4", "dopri5", "relaxation_euler", "euler_maruyama"):
        with pytest.raises(PairingError, match=f"solver '{name}' has no tableau and no splitting"):
            solvers.stability(name)
    with pytest.raises(InputError, match="angle is 3"):
        solvers.stability("pefrl").limit(math.pi)
