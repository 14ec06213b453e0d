"""One step as a map of states, and its derivatives, against closed forms, differences and torch.func."""

import pytest
import torch

import solvers
from solvers.errors import InputError

F64 = torch.float64


class Rotation:
    """q' = p, p' = -w^2 q - g p."""

    structure = frozenset({"partitioned", "conformal", "newtonian"})
    w, g = 1.3, 0.0

    def damping(self):
        return self.g

    def velocity(self, t, q, p, u):
        return p

    def force(self, t, q, p, u):
        return -(self.w**2) * q - self.g * p

    def __call__(self, t, state, u):
        q, p = state.unbind(-2)
        return torch.stack((p, self.force(t, q, p, u)), -2)


class Coupled(torch.nn.Module):
    """x' = tanh(W x + u), channels coupled, at a pace of its own for each."""

    structure = frozenset()

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=F64))
        self.pace = torch.nn.Parameter(torch.tensor([0.5, 1.0, 2.0], dtype=F64))

    def time_scale(self):
        return self.pace

    def forward(self, t, state, u):
        return torch.tanh(state @ self.W + u.unsqueeze(-2))


U = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -1.0]], dtype=F64)
STATE = torch.randn(2, 1, 3, dtype=F64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["semi_implicit_euler", "stormer_verlet", "pefrl"])
def test_the_jacobian_of_a_composition_is_its_matrix(name):
    step = solvers.transition(Rotation(), name, 0.4)
    found = step.jacobian(torch.randn(3, 2, 1, dtype=F64))
    w = Rotation.w
    matrix = torch.from_numpy(solvers.stability(name)(0.4 * w))
    expected = matrix * torch.tensor([[1.0, 1 / w], [w, 1.0]], dtype=F64)
    torch.testing.assert_close(found, expected.expand(3, 2, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["euler", "rk4", "implicit_midpoint", "radau_iia3", "native_dopri5", "reversible"])
def test_derivatives_against_differences(name):
    step = solvers.transition(Coupled(), name, torch.tensor([0.3, 0.7], dtype=F64), U, substeps=1)
    jacobian = step.jacobian(STATE)
    eps = 1e-6
    for j in range(3):
        shift = torch.zeros_like(STATE)
        shift[..., j] = eps
        with torch.no_grad():
            difference = (step(STATE + shift) - step(STATE - shift)).flatten(1) / (2 * eps)
        # A method that chooses its steps may choose them differently.
        torch.testing.assert_close(jacobian[:, :, j], difference, rtol=1e-5, atol=1e-6)
    v, w = (torch.randn(2, 1, 3, dtype=F64) for _ in range(2))
    torch.testing.assert_close(step.jvp(STATE, v).flatten(1), torch.einsum("bij,bj->bi", jacobian, v.flatten(1)))
    torch.testing.assert_close(step.vjp(STATE, w).flatten(1), torch.einsum("bi,bij->bj", w.flatten(1), jacobian))


@torch.no_grad()
def test_derivatives_where_gradients_are_off():
    step = solvers.transition(Coupled(), "rk4", 0.3, U)
    matrix, v = step.jacobian(STATE), torch.ones_like(STATE)
    assert matrix.any() and not matrix.requires_grad
    torch.testing.assert_close(step.jvp(STATE, v).flatten(1), matrix.sum(2))
    torch.testing.assert_close(step.vjp(STATE, v).flatten(1), matrix.sum(1))


def test_the_slope_has_the_time_scale_in_it():
    field = Coupled()
    found = solvers.slope(field, U)
    bare = torch.func.jacrev(lambda s: field(0.0, s, U[:1]).flatten())(STATE[:1]).reshape(3, 3)
    torch.testing.assert_close(found.jacobian(STATE)[0], field.pace.detach().unsqueeze(-1) * bare)
    # And is what a short step follows.
    step = solvers.transition(field, "rk4", 1e-5, U)
    torch.testing.assert_close((step(STATE) - STATE) / 1e-5, found(STATE), rtol=1e-4, atol=1e-6)


def test_a_map_that_forgets_has_zeros():
    forgetting = solvers.Transition(torch.zeros_like)
    assert not forgetting.jacobian(STATE).any() and not forgetting.vjp(STATE, STATE).any()
    assert not forgetting.jvp(STATE, STATE).any()
    constant = solvers.Transition(lambda state: 2 * state.detach() + 0 * state)
    assert not constant.jacobian(STATE).any()


def test_what_does_not_fit_is_one_line():
    step = solvers.transition(Coupled(), "rk4", 0.1, U)
    with pytest.raises(InputError, match=r"state of shape \(3,\): expected \(batch, components, hidden\)"):
        step.jacobian(torch.zeros(3, dtype=F64))
    with pytest.raises(InputError, match=r"vector of shape \(2, 3\): expected that of the state"):
        step.jvp(STATE, torch.zeros(2, 3, dtype=F64))
    with pytest.raises(InputError, match=r"takes .* expected the same shape"):
        solvers.Transition(lambda s: s[..., :1]).jacobian(STATE)
