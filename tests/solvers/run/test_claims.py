"""What a field declares, tried on numbers: fields that keep it, and one that breaks each promise."""

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from solvers.errors import InputError, NumericalError
from tests.fields import make_field
from tests.solvers.ode_problems import LinearOscillator

F64 = torch.float64


def test_every_field_of_the_library_keeps_what_it_declares(field_name):
    field = make_field(field_name)
    check = solvers.check_field(field, samples=16)
    assert not check.wrong and check.claims, check.table()
    # What was declared was tried, but for what has no numbers of its own.
    tried = {claim.name for claim in check.claims}
    assert solvers.protocol.structure(field) - tried <= {"quasilinear", "controlled"}
    assert all(parameter.dtype == F64 for parameter in field.parameters())


class Pendulum:
    """q'' = -sin q - 0.3 p, declared in full."""

    structure = frozenset({"partitioned", "conformal", "newtonian"})
    components, hidden_size = 2, 3

    def damping(self):
        return 0.3

    def velocity(self, t, q, p, u):
        return p

    def force(self, t, q, p, u):
        return -torch.sin(q) - 0.3 * p

    def __call__(self, t, state, u):
        q, p = state.unbind(-2)
        return torch.stack((self.velocity(t, q, p, u), self.force(t, q, p, u)), -2)


class LackingDamping(Pendulum):
    def force(self, t, q, p, u):
        return -torch.sin(q)


class QuadraticDrag(Pendulum):
    def force(self, t, q, p, u):
        return super().force(t, q, p, u) - 0.1 * p * p.abs()


class Sheared(Pendulum):
    def velocity(self, t, q, p, u):
        return p + 0.2 * q


class Heavy(Pendulum):
    def velocity(self, t, q, p, u):
        return 2 * p


class Another(Pendulum):
    def __call__(self, t, state, u):
        return 1.01 * super().__call__(t, state, u)


class Separable(Pendulum):
    structure = frozenset({"partitioned", "separable"})


class WithEnergy(Pendulum):
    structure = frozenset({"partitioned", "hamiltonian"})

    def energy(self, state, u):
        q, p = state.unbind(-2)
        return (p.square() / 2 + torch.cos(q)).sum(-1)


class WrongOperator(LinearOscillator):
    components, hidden_size = 2, 3

    def nonlinear(self, t, state, u, terms=None):
        return torch.zeros_like(state) if terms is None else super().nonlinear(t, state, u, terms)

    def operator(self, terms=None):
        return solvers.OscillatorOperator(2.0, 0.0) if terms is None else super().operator(terms)


class NotLinear(LinearOscillator):
    structure = frozenset({"partitioned", "semilinear", "linear"})
    components, hidden_size = 2, 3

    def drive_of(self, t, q, u):
        return torch.sin(q)


class Relaxing:
    structure = frozenset({"relaxing"})
    components, hidden_size = 1, 3

    def relaxation(self, place, t, components, u):
        return 2.0, torch.tanh(components[0])

    def __call__(self, t, state, u):
        return torch.tanh(state) - state


class Decaying:
    structure = frozenset({"closed_form", "differential"})
    components, hidden_size = 1, 3

    def propagate(self, t, dt, state, u):
        return state / (1 + dt)

    def __call__(self, t, state, u):
        return -state


class Mixing(neuralosc.VectorField):
    """Subtracts the mean of the batch."""

    def __init__(self):
        super().__init__(2, 3)
        self.V = nn.Linear(2, 3)

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        return u.unsqueeze(-2) - (state - state.mean(0))


class Backwards(Mixing):
    def time_scale(self):
        return torch.tensor([1.0, 2.0, -1.0])

    def forward(self, t, state, u):
        return -state


WRONG = [
    (LackingDamping, "conformal", "force + damping() p is the same at another p"),
    (QuadraticDrag, "conformal", "force + damping() p is the same at another p"),
    (Sheared, "conformal", "the velocity is the same at another q"),
    (Heavy, "newtonian", "the velocity is p"),
    (Another, "partitioned", "forward is (velocity, force)"),
    (Separable, "separable", "the force is the same at another p"),
    (WithEnergy, "hamiltonian", "forward is (dH/dp, -dH/dq - damping() p) of energy()"),
    (WrongOperator, "semilinear", "operator() applied to x, and nonlinear(), are forward"),
    (NotLinear, "linear", "nonlinear() is the same at another state"),
    (Relaxing, "relaxing", "r (m - x) of relaxation() is forward"),
    (Decaying, "closed_form", "propagate() over 0.7 is that over 0.3 and 0.4"),
    (Mixing, "differential", "a sample alone has the slope it has among others"),
    (Backwards, "differential", "time_scale() is above 0"),
]


@pytest.mark.parametrize(("kind", "name", "promise"), WRONG, ids=[kind.__name__ for kind, *_ in WRONG])
def test_a_promise_that_is_broken_is_the_one_that_is_named(kind, name, promise):
    check = solvers.check_field(kind())
    first = check.wrong[0]
    assert (first.name, first.promise) == (name, promise) and first.error > 1e-3, check.table()
    with pytest.raises(InputError, match=f"declares '{name}'") as refusal:
        check.require()
    assert f"off by {first.error:.1e}" in str(refusal.value) and "\n" not in str(refusal.value)
    assert check.to_dict()["claims"][check.claims.index(first)]["holds"] is False


def test_the_pendulum_keeps_its_promises():
    check = solvers.check_field(Pendulum(), seed=4)
    check.require()
    assert "keeps all" in check.verdict and f"{check.samples} states" in check.verdict
    assert check.table().endswith(check.verdict)


def test_states_and_inputs_of_ones_own():
    def forced(t, state, u):
        return u.unsqueeze(-2) - state

    state = torch.zeros(5, 1, 2)
    assert not solvers.check_field(forced, state, torch.ones(5, 2)).wrong
    with pytest.raises(InputError, match="does not say its components and hidden_size: give states"):
        solvers.check_field(forced)
    with pytest.raises(InputError, match=r"a slope of shape \(5, 2\) at states \(5, 1, 2\)"):
        solvers.check_field(lambda t, x, u: x[:, 0], state)
    with pytest.raises(NumericalError, match="not finite"):
        solvers.check_field(lambda t, x, u: x / 0, state)


def test_nothing_of_the_process_is_touched():
    field = neuralosc.CoRNN(2, 3).field.train()
    before = torch.get_rng_state()
    solvers.check_field(field)
    assert torch.equal(before, torch.get_rng_state()) and field.training
    assert next(field.parameters()).dtype == torch.float32


def test_states_drawn_by_the_same_seed_are_compared_with_others():
    """Compared with themselves they would show nothing of a coupling."""

    class Coupled(neuralosc.Partitioned):
        separable = True

        def drive(self, x):
            return x

        def velocity(self, t, q, p, u):
            return p * (1 + q)

        def force(self, t, q, p, u):
            return -q

    torch.manual_seed(0)
    state = torch.randn(64, 2, 1, dtype=torch.float64)
    assert [claim.name for claim in solvers.check_field(Coupled(1, 1), state, torch.zeros(64, 1)).wrong][:1] == [
        "separable"
    ]
