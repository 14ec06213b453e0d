"""A user's own field of ten lines, under every solver that needs no structure."""

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from neuralosc import ContinuousRNN

FREE = [info.name for info in solvers.available() if not info.needs]


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
@pytest.mark.parametrize("solver", FREE)
def test_every_explicit_and_adaptive_solver(solver, gradient, make_field):
    torch.manual_seed(1)
    field = make_field("leaky").float()
    chosen = solvers.get(solver, rtol=1e-4, atol=1e-5) if solvers.get(solver).adaptive else solver
    rnn = ContinuousRNN(field, chosen, dt=0.1, gradient=gradient)
    x = torch.randn(3, 5, 2)
    output, state = rnn(x, timespans=torch.rand(3, 5), lengths=[5, 2, 3])
    assert output.shape == (3, 5, 3) and state.shape == (3, 1, 3)
    output.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in field.parameters())
    reference = rnn.with_solver("rk4", substeps=8)(x, timespans=torch.ones(5))[0]
    assert float((rnn(x)[0] - reference).detach().abs().max()) < (0.02 if solvers.get(solver).order == 1 else 1e-3)


class Trap(neuralosc.VectorField):
    """Adds u (batch, hidden) to a state (batch, components, hidden)."""

    def forward(self, t, state, u):
        return u - state


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
@pytest.mark.parametrize("solver", FREE)
def test_the_broadcast_trap_is_caught(solver, gradient, one_line):
    rnn = ContinuousRNN(Trap(4, 4), solver, 0.1, gradient=gradient)
    with pytest.raises(solvers.InputError) as error:
        rnn(torch.randn(3, 5, 4))
    one_line(error, "Trap", "(3, 1, 4)", "(3, 3, 4)", "unbind(-2)")


@pytest.mark.parametrize("solver", FREE)
def test_a_slope_without_the_component_axis_is_caught(solver, one_line):
    class Flat(neuralosc.VectorField):
        def forward(self, t, state, u):
            return u - state[:, 0]

    with pytest.raises(solvers.InputError) as error:
        ContinuousRNN(Flat(4, 4), solver, 0.1)(torch.randn(3, 5, 4))
    one_line(error, "Flat", "state.unbind(-2)")


def test_a_partitioned_field_of_ones_own_has_more_solvers():
    class Duffing(neuralosc.Partitioned):
        separable = True

        def __init__(self, size):
            super().__init__(size, size)
            self.stiffness = nn.Parameter(torch.ones(size))

        def force(self, t, q, p, u):
            return u - self.stiffness * q - q**3 - 0.3 * p

        def damping(self):
            return 0.3

    field = Duffing(3)
    assert field.structure == {"partitioned", "conformal", "newtonian"}
    assert set(solvers.compatible(field)) == {
        i.name
        for i in solvers.available()
        if not {"semilinear", "quasilinear", "relaxing", "stochastic", "closed_form"} & set(i.needs)
    }
    x = torch.randn(2, 5, 3)
    reference = ContinuousRNN(field, "rk4", 0.2, substeps=8)(x)[0]
    for solver, bound in (("stormer_verlet", 1e-2), ("semi_implicit_euler", 0.2), ("dopri5", 1e-4)):
        assert float((ContinuousRNN(field, solver, 0.2)(x)[0] - reference).detach().abs().max()) < bound


def test_drive_is_the_input_itself_where_nothing_is_written():
    class Plain(neuralosc.VectorField):
        def forward(self, t, state, u):
            return u.unsqueeze(-2) + 0 * state

    x = torch.randn(2, 5, 3)
    output, _ = ContinuousRNN(Plain(3, 3), "euler", 0.5)(x)
    torch.testing.assert_close(output, 0.5 * x.cumsum(1))


def test_a_field_sees_the_time():
    class Timer(neuralosc.VectorField):
        def forward(self, t, state, u):
            return torch.as_tensor(2.0 * t).unsqueeze(-1) * torch.ones_like(state)

    rnn, x = ContinuousRNN(Timer(1, 2), "rk4", 0.5), torch.zeros(3, 4, 1)
    spans = torch.tensor([[1.0, 1, 1, 1], [2.0, 0, 1, 1], [0.5, 0.5, 0.5, 3]])
    for solver in ("rk4", "dopri5"):
        output, _ = rnn.with_solver(solver)(x, timespans=spans)
        time = 0.5 * spans.cumsum(1)
        torch.testing.assert_close(output, time.square().unsqueeze(-1).expand(3, 4, 2), rtol=1e-5, atol=1e-6)


def test_the_base_classes_say_what_to_write(one_line):
    x = torch.ones(2, 3, 2)
    cases = [
        (neuralosc.VectorField(2, 3), "forward(t, state, u)"),
        (neuralosc.Partitioned(2, 3), "force(t, q, p, u)"),
        (neuralosc.Hamiltonian(2, 3), "energy(state, u)"),
    ]
    for field, word in cases:
        with pytest.raises(solvers.InputError) as error:
            ContinuousRNN(field, "euler")(x)
        one_line(error, word)
    with pytest.raises(solvers.InputError) as error:
        neuralosc.field.Semilinear(2, 3).linear(torch.ones(2, 1, 3))
    one_line(error, "operator(terms)")
