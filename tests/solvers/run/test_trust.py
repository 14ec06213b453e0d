"""A field of one's own is tried before a solver takes its word."""

import pytest
import torch

import neuralosc
import solvers
from solvers.errors import InputError

F64 = torch.float64


class Damped(neuralosc.Partitioned):
    """Says that it is damped by 0.3, and is by `rate`."""

    separable = True

    def __init__(self, rate=0.3):
        super().__init__(1, 1)
        self.rate = rate

    def drive(self, x):
        return x

    def damping(self):
        return 0.3

    def velocity(self, t, q, p, u):
        return p

    def force(self, t, q, p, u):
        return u - q - self.rate * p


class Coupled(neuralosc.Partitioned):
    """Says that its parts are apart, and couples them."""

    separable = True

    def __init__(self):
        super().__init__(1, 1)

    def drive(self, x):
        return x

    def velocity(self, t, q, p, u):
        return p * (1 + 0.1 * q)

    def force(self, t, q, p, u):
        return u - q - 0.05 * p * p


def run(field, solver):
    return neuralosc.ContinuousRNN(field, solver, dt=0.1).double()(torch.zeros(2, 3, 1, dtype=F64))


@pytest.mark.parametrize("solver", ["stormer_verlet", "pefrl"])
def test_a_damping_that_is_not_there_is_named_with_its_size(solver):
    with pytest.raises(InputError, match=r"declares 'conformal'.*force \+ damping.* at another p is off by"):
        run(Damped(0.0), solver)
    run(Damped(), solver)


def test_a_coupling_that_is_denied_is_named():
    with pytest.raises(InputError, match=r"declares 'separable'.*the velocity is the same at another q is off by"):
        run(Coupled(), "pefrl")


def test_methods_that_take_no_word_are_left_alone():
    for solver in ("rk4", "euler", "native_dopri5"):
        run(Damped(0.0), solver)


def test_it_can_be_turned_off_for_a_block_and_for_the_process():
    with solvers.field_checks(False):
        run(Damped(0.0), "stormer_verlet")
    with pytest.raises(InputError):
        run(Damped(0.0), "stormer_verlet")
    solvers.set_field_checks(False)
    try:
        run(Damped(0.0), "stormer_verlet")
        with solvers.field_checks(True), pytest.raises(InputError):
            run(Damped(0.0), "stormer_verlet")
    finally:
        solvers.set_field_checks(True)


def test_it_happens_once_and_draws_nothing():
    field, calls = Damped(), []
    field.register_forward_pre_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    run(field, "stormer_verlet")
    first = len(calls)
    run(field, "stormer_verlet")
    assert first and len(calls) == first and torch.equal(torch.get_rng_state(), state)


def test_the_same_of_integrate_and_of_a_plain_object():
    class Plain:
        structure = frozenset({"differential", "partitioned", "separable", "conformal"})

        def damping(self):
            return 0.0

        def velocity(self, t, q, p, u):
            return p

        def force(self, t, q, p, u):
            return -q - 0.3 * p

        def __call__(self, t, state, u):
            q, p = state.unbind(-2)
            return torch.stack((self.velocity(t, q, p, u), self.force(t, q, p, u)), -2)

    with pytest.raises(InputError, match="is off by"):
        solvers.integrate(Plain(), torch.ones(1, 2, 1, dtype=F64), [0.0, 1.0], method="stormer_verlet", dt=0.1)


def test_named_networks_keep_their_promises_by_tests_and_not_at_every_start(monkeypatch):
    import solvers.run.trust as trust

    monkeypatch.setattr(trust, "check_field", lambda *_: pytest.fail("a field of the project was tried"))
    rnn = neuralosc.CoRNN(1, 3, dt=0.1)
    rnn(torch.zeros(1, 2, 1))
