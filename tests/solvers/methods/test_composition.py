"""Compositions of drifts and kicks: their fractions, order, exact damping, inverse and gradients."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch

import solvers
from solvers import Splitting
from solvers.methods.partitioned import FOREST_RUTH, YOSHIDA6, YOSHIDA8, verlets
from tests.solvers.one_step import (
    F64,
    Conformal,
    Coupled,
    Newtonian,
    Undamped,
    check_gradients,
    check_zero_and_clocks,
    exact,
    matrix,
    measured_order,
    named,
    smooth,
    start,
    walk,
)

NAMES = named("symplectic")
EXACT = [name for name in NAMES if not solvers.get(name).published]
#: The kinds of field, from the one with the most structure to the one with the least.
KINDS = [Newtonian, Conformal, Coupled, Undamped]
FITTING = [(n, k) for n in NAMES for k in KINDS if not set(solvers.get(n).needs) - solvers.protocol.structure(k)]
SYMMETRIC = [name for name in NAMES if solvers.get(name).splitting.symmetric]


class TestSplittings:
    def test_the_family_is_whole(self):
        orders = {name: (solvers.get(name).order, solvers.get(name).stages) for name in NAMES}
        assert orders == {
            "semi_implicit_euler": (1, 1), "symplectic_euler_dk": (1, 1), "stormer_verlet": (2, 2),
            "position_verlet": (2, 1), "ruth3": (3, 3), "forest_ruth": (4, 3), "mclachlan_atela4": (4, 4),
            "pefrl": (4, 4), "yoshida6": (6, 7), "yoshida8": (8, 15),
        }  # fmt: skip
        assert solvers.get("yoshida4") == solvers.get("forest_ruth")

    @pytest.mark.parametrize("name", NAMES)
    def test_every_condition_up_to_the_order_holds_and_none_beyond(self, name):
        splitting = solvers.get(name).splitting
        assert max(map(abs, splitting.residuals(limit=8).values())) < 1e-14
        # Made by hand: a splitting that declares what it does not keep would be refused.
        object.__setattr__(beyond := copy.copy(splitting), "order", splitting.order + 1)
        assert max(map(abs, beyond.residuals(limit=9).values())) > 1e-4

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (((1.0,), (0.9,), 1), ["[K] = 1/1!", "-0.1"]),
            (((0.9,), (1.0,), 1), ["[D] = 1/1!"]),
            (((1.0,), (1.0,), 2), ["order 2", "[DK] = 1/2!"]),
            (((0.5, 0.5), (1.0,), 3), ["order 3", "lower its order"]),
            (((0.25, 0.75), (1.0,), 1, False, True), ["does not read the same backwards"]),
            (((1.0,), (1.0,), 1, False, True), ["does not read the same backwards"]),
            (((0.5, 0.5), (1.0,), 1, True), ["cannot alternate from a kick"]),
            (((1.0,), (0.5, 0.25, 0.25), 1), ["1 drifts and 3 kicks", "from a drift"]),
            (((math.nan,), (1.0,), 1), ["[D] = 1/1!", "nan"]),
        ],
    )
    def test_wrong_fractions_are_refused(self, arguments, words, one_line):
        with pytest.raises(solvers.InputError) as error:
            Splitting(*arguments)
        one_line(error, *words)

    def test_forest_ruth_needs_its_irrational_number(self):
        with pytest.raises(solvers.InputError, match="order 4"):
            verlets(4, 1.35)
        assert FOREST_RUTH.kicks[0] == pytest.approx(1.3512071919596578, rel=1e-15)

    def test_yoshidas_numbers_are_the_printed_ones(self):
        """Printed to 15 digits; the last ones of solution D are off by the conditioning of its equations."""
        printed6 = [0.784513610477560, 0.235573213359357, -0.117767998417887e1]
        printed8 = [
            0.914844246229740, 0.253693336566229, -0.144485223686048e1, -0.158240635368243, 0.193813913762276e1,
            -0.196061023297549e1, 0.102799849391985,
        ]  # fmt: skip
        assert YOSHIDA6.kicks[:3] == pytest.approx(printed6, rel=1e-14)
        assert YOSHIDA8.kicks[:7] == pytest.approx(printed8, rel=1e-10)

    def test_moves_know_the_time(self):
        kinds = [(kind, before, after) for kind, _, before, after in solvers.get("stormer_verlet").splitting.moves]
        assert kinds == [("kick", 0.0, 0.0), ("drift", 0.0, 1.0), ("kick", 1.0, 1.0)]
        for name in NAMES:
            moves = solvers.get(name).splitting.moves
            assert moves[0][2] == 0.0 and moves[-1][3] == pytest.approx(1.0, abs=1e-15)
            assert all(a[3] == b[2] for a, b in itertools.pairwise(moves))


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_order_with_an_input_that_changes(name, kind):
    solver = solvers.get(name)
    assert measured_order(solver, kind) == pytest.approx(solver.order, abs=0.15)


def test_what_mclachlan_atela_needs():
    """With a kinetic energy that is not quadratic the same fractions have order 3."""
    solver = solvers.get("mclachlan_atela4")
    with pytest.raises(solvers.PairingError, match="velocity is p"):
        solvers.check(Conformal(), solver)
    general = dataclasses.replace(solver.splitting, newtonian=False, order=3)
    assert measured_order(dataclasses.replace(solver, splitting=general, order=3), Conformal) == pytest.approx(
        3, abs=0.15
    )


@pytest.mark.parametrize("name", ["yoshida6", "yoshida8"])
def test_the_high_orders_refuse_coupled_fields(name):
    with pytest.raises(
        solvers.PairingError, match=f"'{name}' needs a conformal field .*Coupled does not declare: use one of"
    ):
        solvers.check(Coupled(), solvers.get(name))


def test_separable_implies_conformal():
    class Separable:
        structure = frozenset({"partitioned", "separable"})

    for name in NAMES:
        assert (name in solvers.compatible(Separable())) == (name != "mclachlan_atela4")
    assert set(NAMES) <= set(solvers.compatible(Newtonian()))


@pytest.mark.parametrize("kind", [Newtonian, Conformal])
def test_yoshida8_reaches_rounding(kind):
    end = walk(solvers.get("yoshida8"), kind(), start(kind), 1.0, 32)
    assert float((end - exact(kind)).abs().max()) < 1e-12


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in FITTING if n in EXACT and k in (Newtonian, Conformal)])
def test_damping_scales_the_symplectic_form_exactly(name, kind):
    """J^T S J = exp(-G h) S, S times the decay of each channel where the damping differs between them."""
    uniform = kind is Conformal
    damping = torch.tensor(0.7, dtype=F64) if uniform else torch.tensor([0.3, 0.9, 2.0], dtype=F64)
    # Channels damped differently must not be coupled, or there is no form to scale.
    coupling = matrix(3, 3) if uniform else torch.diag(torch.tensor([1.0, -0.5, 2.0], dtype=F64))
    field, h = kind(damping=damping, coupling=coupling), 0.8
    if uniform:
        # A force that is a gradient: the field is Hamiltonian but for its damping.
        field.drive = lambda t, q, u: -torch.tanh(q @ field.W + u) @ field.W.T

    def step(x):
        return solvers.get(name).step(field, 0.2, h, x, smooth)

    jacobian = torch.autograd.functional.jacobian(step, start(kind, batch=1)).reshape(6, 6)
    form = torch.kron(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64), torch.eye(3, dtype=F64))
    decay = torch.exp(-damping * h).expand(3).repeat(2)
    assert float((jacobian.T @ form @ jacobian - form * decay).abs().max()) < 1e-12


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in FITTING if k in (Newtonian, Conformal)])
def test_unstep_takes_steps_back(name, kind):
    solver, field, x = solvers.get(name), kind(), start(kind)
    assert solver.undoes(field)
    dt = torch.tensor([[0.05], [0.1]], dtype=F64)
    for i in range(10):
        x = solver.step(field, i * dt, dt, x, smooth)
    assert float((x - start(kind)).abs().max()) > 0.1
    for i in reversed(range(10)):
        x = solver.unstep(field, i * dt, dt, x, smooth)
    torch.testing.assert_close(x, start(kind), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [Coupled, Undamped])
@pytest.mark.parametrize("name", NAMES)
def test_unstep_refuses_coupled_fields(name, kind, one_line):
    assert not solvers.get(name).undoes(kind())
    with pytest.raises(solvers.PairingError) as error:
        solvers.get(name).unstep(kind(), 0.0, 0.1, start(kind), smooth)
    one_line(error, name, kind.__name__, "separable or conformal")


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in FITTING if n in EXACT and k in (Newtonian, Conformal)])
def test_symmetric_methods_are_undone_by_a_step_back_and_the_others_are_not(name, kind):
    solver = solvers.get(name)
    there = solver.step(kind(), 0.0, 0.3, start(kind), smooth)
    back = float((solver.step(kind(), 0.3, -0.3, there, smooth) - start(kind)).abs().max())
    assert back < 1e-14 if name in SYMMETRIC else back > 1e-6


@pytest.mark.parametrize("damping", [30.0, torch.tensor([0.0, 30.0, 300.0], dtype=F64)])
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in FITTING if n in EXACT and k is not Undamped])
def test_pure_damping_is_solved_exactly(name, kind, damping):
    """However strong: also where a coupled field has its other forces by Runge-Kutta steps."""
    field = kind(stiffness=0.0, damping=damping, coupling=torch.zeros(3, 3, dtype=F64))
    field.drive = lambda t, q, u: torch.zeros_like(q)
    x = start(kind)
    end = solvers.get(name).step(field, 0.0, 1.0, x, smooth)
    expected = x[:, 1] * torch.exp(-torch.as_tensor(damping, dtype=F64))
    # Negative fractions grow what positive ones shrink, by up to exp(2 * 300) here.
    torch.testing.assert_close(end[:, 1], expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", EXACT)
def test_numbers_and_tensors_damp_alike(name):
    x = start(Newtonian)
    numbers = solvers.get(name).step(Newtonian(1.5, 0.8), 0.1, 0.3, x, smooth)
    tensors = solvers.get(name).step(
        Newtonian(torch.tensor(1.5, dtype=F64), torch.full((3,), 0.8, dtype=F64)), 0.1, 0.3, x, smooth
    )
    torch.testing.assert_close(numbers, tensors, rtol=1e-14, atol=1e-15)


def test_a_number_that_overflows_is_infinite_and_raises_nothing():
    x = start(Newtonian)
    end = solvers.get("forest_ruth").step(Newtonian(1.0, 1e4), 0.0, 1.0, x, smooth)
    assert not torch.isfinite(end).all()


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_a_step_has_as_many_kicks_as_stages(name, kind):
    solver = solvers.get(name)
    counted = solvers.Counted(kind())
    solver.step(counted, 0.0, 0.1, start(kind), smooth)
    stand_in = {1: 1, 2: 2, 3: 3, 4: 4}.get(solver.order, 0)
    exactly = kind in (Newtonian, Conformal) or solver.published
    assert counted.evaluations == solver.stages * (1 if exactly else stand_in)


@pytest.mark.parametrize("name", NAMES)
def test_components_taken_apart_give_the_same(name):
    solver, x = solvers.get(name), start(Newtonian)
    whole, parts = (solver.step(Newtonian(), 0.1, 0.3, form, smooth) for form in (x, x.unbind(-2)))
    assert isinstance(parts, tuple)
    torch.testing.assert_close(torch.stack(parts, -2), whole, rtol=0, atol=1e-14)
    whole, parts = (solver.unstep(Newtonian(), 0.1, 0.3, form, smooth) for form in (x, x.unbind(-2)))
    assert isinstance(parts, tuple)
    torch.testing.assert_close(torch.stack(parts, -2), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_zero_steps_and_clocks(name, kind):
    check_zero_and_clocks(solvers.get(name), kind)


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in FITTING if k in (Newtonian, Coupled)])
def test_gradients(name, kind):
    check_gradients(solvers.get(name).step, kind)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_inverse(name):
    check_gradients(solvers.get(name).unstep, Newtonian)


def test_the_published_step_by_hand():
    """Kick first, everything in it at the start, damping and velocity coupling explicit."""
    field, h, t = Coupled(), 0.3, 0.2
    q, p = start(Coupled).unbind(-2)
    p = p + h * field.force(t, q, p, smooth(t))
    q = q + h * field.velocity(t, q, p, smooth(t))
    end = solvers.get("semi_implicit_euler").step(field, t, h, start(Coupled), smooth)
    torch.testing.assert_close(end, torch.stack((q, p), -2), rtol=0, atol=1e-15)


def test_drift_kick_by_hand():
    """Drift first, then the kick at the end of the step, its damping exact."""
    field, h, t = Newtonian(), 0.3, 0.2
    q, p = start(Newtonian).unbind(-2)
    q = q + h * p
    decay = torch.exp(-h * field.G)
    p = decay * p + (1 - decay) / field.G * (field.drive(t + h, q, smooth(t + h)) - field.A * q)
    end = solvers.get("symplectic_euler_dk").step(field, t, h, start(Newtonian), smooth)
    torch.testing.assert_close(end, torch.stack((q, p), -2), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_a_time_scale_per_channel_multiplies_the_step(name):
    """Uncoupled channels with scales s are the same field over steps of s h each."""
    scale = torch.tensor([0.5, 1.0, 1.7], dtype=F64)
    diagonal = torch.diag(torch.tensor([1.0, -0.5, 2.0], dtype=F64))
    x, u = start(Newtonian), torch.tensor([[0.3, -0.7, 1.1]], dtype=F64)
    field = Newtonian(coupling=diagonal)
    field.drive = lambda t, q, u: torch.tanh(q @ diagonal + u)
    together = Newtonian(coupling=diagonal, scale=scale)
    together.drive = field.drive
    end = solvers.get(name).step(together, 0.0, 0.4, x, lambda t: u)
    for i, s in enumerate(scale.tolist()):
        alone = solvers.get(name).step(field, 0.0, 0.4 * s, x, lambda t: u)
        torch.testing.assert_close(end[..., i], alone[..., i], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32(name):
    field = Newtonian(1.5, 0.8, coupling=matrix(3, 3).float())
    field.drive = lambda t, q, u: torch.tanh(q @ field.W + u)
    x, u = start(Newtonian).float(), torch.tensor([[0.3, -0.7, 1.1]])
    single = solvers.get(name).step(field, 0.0, torch.full((2, 1), 0.3), x, lambda t: u)
    field.W = field.W.double()
    double = solvers.get(name).step(field, 0.0, torch.full((2, 1), 0.3, dtype=F64), x.double(), lambda t: u.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)
