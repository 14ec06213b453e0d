"""Implicit-explicit methods: pairs of tableaux, order, the linear oscillator's discretizations, stiff limits."""

import dataclasses

import pytest
import torch

import neuralosc
import solvers
from solvers import DenseOperator, ImexTableau
from solvers.methods.imex import ARS222, IMEX_MIDPOINT, IMPLICIT_TERMS, KENCARP4
from tests.solvers.one_step import (
    F64,
    Dense,
    Newtonian,
    check_gradients,
    check_zero_and_clocks,
    measured_order,
    named,
    smooth,
    start,
)

NAMES = named("imex")
PAIRS = [name for name in NAMES if name != "imex_euler"]


class TestPairs:
    def test_the_family_is_whole(self):
        orders = {name: (solvers.get(name).order, solvers.get(name).stages) for name in NAMES}
        assert orders == {
            "imex_euler": (1, 1), "imex_midpoint": (2, 2), "ars222": (2, 2), "ars343": (3, 4), "kencarp3": (3, 4),
            "kencarp4": (4, 6),
        }  # fmt: skip

    def test_every_coupling_condition_is_checked(self):
        """One for every rooted tree up to order 4 and every way to give its nodes a method."""
        assert len(KENCARP4.residuals()) == 2 + 4 + 2 * 8 + 4 * 16
        assert max(map(abs, KENCARP4.residuals().values())) < 1e-15
        assert "b.Ac = 1/6 for implicit, explicit, implicit" in KENCARP4.residuals()

    @pytest.mark.parametrize("name", PAIRS)
    def test_the_declared_order_is_the_highest(self, name):
        tableau = solvers.get(name).tableau
        if tableau.order < 4:
            with pytest.raises(solvers.InputError, match="misses the condition"):
                dataclasses.replace(tableau, order=tableau.order + 1)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"weights": (0.0, 0.9)}, ["sum b = 1 for explicit", "-0.1"]),
            ({"implicit_weights": (0.0, 1.1)}, ["sum b = 1 for implicit"]),
            ({"implicit": ((0.0,), (0.1, 0.3))}, ["b.c = 1/2 for explicit, implicit"]),
            ({"explicit": ((), (0.4,))}, ["b.c = 1/2 for explicit, explicit"]),
            ({"explicit": ((0.0,), (0.5,))}, ["explicit", "lengths [0, 1]"]),
            ({"implicit": ((), (0.5,))}, ["implicit", "lengths [1, 2]"]),
            ({"implicit": ((0.5,),), "implicit_weights": (1.0,)}, ["2 stages", "1", "shares its stages"]),
        ],
    )
    def test_wrong_pairs_are_refused(self, changes, words, one_line):
        with pytest.raises(solvers.InputError) as error:
            dataclasses.replace(IMEX_MIDPOINT, **changes)
        one_line(error, *words)

    def test_two_methods_that_do_not_fit_together_are_refused(self):
        """Both of order 2 by themselves: only the coupling fails."""
        heun = ((), (1.0,)), (1 / 2, 1 / 2)
        with pytest.raises(solvers.InputError, match="for explicit, implicit"):
            ImexTableau(heun[0], ((0.0,), (0.0, 1 / 2)), heun[1], (0.0, 1.0), order=2)

    def test_what_is_not_needed_is_not_evaluated(self):
        assert ARS222.ends_in_last_stage and ARS222.explicit_used == (True, True, False)
        assert KENCARP4.explicit_used == (True,) * 6 and not KENCARP4.ends_in_last_stage
        assert IMEX_MIDPOINT.implicit_used == (False, True)


@pytest.mark.parametrize("terms", list(IMPLICIT_TERMS))
@pytest.mark.parametrize("name", NAMES)
def test_order_with_an_input_that_changes(name, terms):
    solver = solvers.get(name, implicit_terms=terms)
    assert measured_order(solver, Newtonian) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_order_with_a_dense_linear_part(name):
    solver = solvers.get(name)
    assert measured_order(solver, Dense) == pytest.approx(solver.order, abs=0.15)


def linear_oscillator():
    """DQ = p, dp = -A q - G p + u: the state equation of LinOSS and damped LinOSS."""
    field = Newtonian(torch.tensor([0.5, 2.0, 9.0], dtype=F64), torch.tensor([0.1, 0.0, 3.0], dtype=F64))
    field.drive = lambda t, q, u: u
    return field


@pytest.mark.parametrize("h", [0.3, torch.tensor([[0.3], [1.1]], dtype=F64), torch.tensor([0.2, 0.5, 0.9], dtype=F64)])
@pytest.mark.parametrize(
    ("solver", "velocity"),
    [
        # Rusch & Rus, Oscillatory state-space models (LinOSS) and its damped variants: z+ of each discretization.
        (
            {"name": "imex_euler", "implicit_terms": "both"},
            lambda z, y, a, g, f, h: (z - h * a * y + h * f) / (1 + h * g + h * h * a),
        ),
        (
            {"name": "imex_euler", "implicit_terms": "damping"},
            lambda z, y, a, g, f, h: (z - h * a * y + h * f) / (1 + h * g),
        ),
        ("semi_implicit_euler", lambda z, y, a, g, f, h: (1 - h * g) * z - h * a * y + h * f),
        (
            {"name": "imex_euler", "implicit_terms": "stiffness"},
            lambda z, y, a, g, f, h: ((1 - h * g) * z - h * a * y + h * f) / (1 + h * h * a),
        ),
    ],
    ids=["IM", "IMEX", "IMEX2", "IMEX3"],
)
def test_the_discretizations_of_the_linear_oscillator(solver, velocity, h):
    field, u = linear_oscillator(), torch.tensor([[0.3, -0.7, 1.1]], dtype=F64)
    y, z = start(Newtonian).unbind(-2)
    z = velocity(z, y, field.A, field.G, u, h)
    end = solvers.get(solver).step(field, 0.0, h, start(Newtonian), lambda t: u)
    torch.testing.assert_close(end, torch.stack((y + h * z, z), -2), rtol=1e-14, atol=1e-14)


def test_the_explicit_discretization_is_euler():
    field, u, h = linear_oscillator(), torch.tensor([[0.3, -0.7, 1.1]], dtype=F64), 0.3
    y, z = start(Newtonian).unbind(-2)
    expected = torch.stack((y + h * z, (1 - h * field.G) * z - h * field.A * y + h * u), -2)
    end = solvers.get("euler").step(field, 0.0, h, start(Newtonian), lambda t: u)
    torch.testing.assert_close(end, expected, rtol=1e-14, atol=1e-15)


class Decay(Dense):
    """DH = h M, nothing explicit."""

    def nonlinear(self, t, state, u, terms=None):
        return torch.zeros_like(state)


@pytest.mark.parametrize("name", NAMES)
def test_stiff_linear_parts_stay_bounded(name):
    """A-stable at dt lambda = -1e4 and on the imaginary axis; L-stable where the last stage is the new state."""
    rates = torch.tensor([[-1e4, 0.0, 0.0], [0.0, 0.0, 1e4], [0.0, -1e4, 0.0]], dtype=F64)
    x = start(Dense)
    end = solvers.get(name).step(Decay(linear=rates), 0.0, 1.0, x, smooth)
    assert float((end.norm(dim=-1) / x.norm(dim=-1)).max()) <= 1 + 1e-9
    if name != "imex_midpoint":
        assert float(end.abs().max()) < 1e-3 * float(x.abs().max())
    # For longer steps the amplification of an L-stable method goes to zero.
    far = solvers.get(name).step(Decay(linear=1e8 * rates), 0.0, 1.0, x, smooth)
    assert float(far.abs().max()) < (1 + 1e-9 if name == "imex_midpoint" else 1e-6) * float(x.norm(dim=-1).max())


@pytest.mark.parametrize("name", PAIRS)
def test_an_oscillator_is_its_own_dense_matrix(name):
    """The 2x2 blocks of one channel, and the same matrix as a dense field of two channels."""
    stiffness, damping = 3.0, 0.7
    block = torch.tensor([[0.0, -stiffness], [1.0, -damping]], dtype=F64)
    oscillator = Newtonian(stiffness, damping)
    oscillator.drive = lambda t, q, u: torch.zeros_like(q)
    x = start(Newtonian)
    end = solvers.get(name, implicit_terms="both").step(oscillator, 0.0, 0.4, x, smooth)
    flat = solvers.get(name).step(Decay(linear=block), 0.0, 0.4, x.transpose(-1, -2), smooth)
    torch.testing.assert_close(end, flat.transpose(-1, -2), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", [Newtonian, Dense])
@pytest.mark.parametrize("name", NAMES)
def test_zero_steps_and_clocks(name, kind):
    check_zero_and_clocks(solvers.get(name), kind)


@pytest.mark.parametrize("kind", [Newtonian, Dense])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, kind):
    check_gradients(solvers.get(name).step, kind, ("M", "W") if kind is Dense else ("A", "G", "W"))


@pytest.mark.parametrize("name", NAMES)
def test_evaluations_are_the_stages(name):
    counted = solvers.Counted(Newtonian())
    solvers.get(name).step(counted, 0.0, 0.1, start(Newtonian), smooth)
    assert counted.evaluations == solvers.get(name).stages


def test_the_choice_of_terms_is_checked(one_line):
    for name in NAMES:
        with pytest.raises(solvers.InputError) as error:
            solvers.get(name, implicit_terms="all")
        one_line(error, "'all'", "damping, stiffness, both")
        assert solvers.spec(solvers.get(name, implicit_terms="both")) == {"name": name, "implicit_terms": "both"}


def test_a_dense_system_is_factorised_once_for_all_steps(monkeypatch):
    rnn = neuralosc.ContinuousRNN(neuralosc.Lipschitz(2, 4), "kencarp4", dt=0.3, substeps=2).double()
    x, systems = torch.randn(3, 5, 2, dtype=F64), []
    original = torch.linalg.lu_factor
    monkeypatch.setattr(torch.linalg, "lu_factor", lambda system: systems.append(system) or original(system))
    output = rnn(x)[0]
    assert len(systems) == 1
    monkeypatch.undo()
    field = rnn.field
    gradient = torch.autograd.grad(output.square().sum(), field.A)[0]
    monkeypatch.setattr(DenseOperator, "solve", lambda self, h, state: state @ torch.linalg.inv(self._system(h)))
    expected = torch.autograd.grad(rnn(x)[0].square().sum(), field.A)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)
