"""Energies along steps: the modified Hamiltonian of symplectic Euler by hand, Euler's growth, and no claims."""

import math

import pytest
import torch

import neuralosc
import solvers
from neuralosc import InputError
from neuralosc.analysis.energy_drift import energy_drift, logarithm
from solvers.methods import partitioned
from tests.neuralosc.analysis.systems import F64, Duffing, Harmonic, HenonHeiles, Linear, Pendulum, draw


@pytest.fixture(autouse=True)
def plain():
    with solvers.backend("plain"):
        yield


@pytest.mark.parametrize(("solver", "sign"), [("semi_implicit_euler", -1), ("symplectic_euler_dk", 1)])
def test_symplectic_euler_conserves_another_energy_of_an_oscillation(solver, sign):
    """H - h q p / 2 where the kick comes first, H + h q p / 2 where the drift does, exactly."""
    h, states = 0.1, draw(3, 2, 1)
    found = energy_drift(Harmonic(), states, 1000, solver=solver, dt=h)
    path = solvers.integrate(
        Harmonic(), states, torch.arange(1001, dtype=F64) * h, torch.zeros(3, 1, dtype=F64), solver
    )
    q, p = path.states[:, :, 0, 0], path.states[:, :, 1, 0]
    by_hand = (q**2 + p**2) / 2 + sign * h * q * p / 2
    torch.testing.assert_close(by_hand / by_hand[:, :1], torch.ones_like(by_hand), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.energies["H to order h"], by_hand, rtol=1e-13, atol=1e-14)
    assert float(found.trends["H to order h"].largest.max()) < 1e-13
    # The exact one is a multiple of it, which the series to order h^2 is up to terms of h^3.
    assert 1e-6 < float(found.trends["H to order h^2"].largest.max()) < h**3
    assert found.defect < 1e-15 and abs(found.volume) < 1e-15 and abs(found.factor - 1) < 1e-15
    assert found.verdict.claim and "without a drift" in found.verdict.sentence
    assert found.verdict.numbers["drifting"] == 0


def test_euler_multiplies_the_energy_of_an_oscillation():
    h, steps = 0.05, 1200
    found = energy_drift(Harmonic(), draw(3, 2, 1), steps, solver="euler", dt=h)
    growth = (1 + h**2) ** torch.arange(steps + 1, dtype=F64)
    torch.testing.assert_close(
        found.energies["H"] / found.energies["H"][:, :1], growth.expand(3, -1), rtol=1e-13, atol=0
    )
    assert found.verdict.claim and "in 3 of 3 trajectories it drifts" in found.verdict.sentence
    assert math.isclose(found.volume, math.log1p(h**2) / h, rel_tol=1e-12)
    assert math.isclose(found.factor, 1 + h**2, rel_tol=1e-14) and math.isclose(found.defect, h**2, rel_tol=1e-10)
    assert found.conformal_defect < 1e-15 and list(found.energies) == ["H"]


def test_a_growth_by_many_orders_is_a_drift():
    found = energy_drift(Harmonic(), draw(2, 2, 1), 2000, solver="euler", dt=0.2)
    assert float(found.trends["H"].largest.max()) > 1e30
    assert "it drifts" in found.verdict.sentence


@pytest.mark.parametrize("solver", ["semi_implicit_euler", "stormer_verlet", "position_verlet", "ruth3"])
@pytest.mark.parametrize("field", [Pendulum(), HenonHeiles()], ids=["pendulum", "henon_heiles"])
def test_the_modified_energy_is_kept_to_its_order(field, solver):
    """What remains falls with the power of h that the truncated series leaves."""
    states = 0.15 * draw(4, 2, field.hidden_size)
    order = solvers.get(solver).order
    left = {name: [] for name in ("H", "H to order h", "H to order h^2")}
    for h in (0.1, 0.05):
        found = energy_drift(field, states, int(30 / h), solver=solver, dt=h)
        for name in left:
            left[name].append(float(found.trends[name].largest.max()))
    powers = {name: math.log2(values[0] / values[1]) for name, values in left.items()}
    assert abs(powers["H"] - order) < 0.25
    # A symmetric method has even powers alone: the series to h^2 leaves h^4.
    leaves = max(order, 4 if solvers.get(solver).splitting.symmetric else 3)
    assert abs(powers["H to order h^2"] - leaves) < 0.3
    assert left["H to order h^2"][1] < left["H"][1] * 1.01


def test_a_time_scale_belongs_to_the_form_and_to_the_series():
    torch.manual_seed(0)
    rnn = neuralosc.UnICORNN(1, 3, dt=0.2).double()
    torch.nn.init.uniform_(rnn.field.c, -1.0, 1.0)
    before = [parameter.clone() for parameter in rnn.parameters()]
    rnn.train()
    left = []
    for substeps in (1, 2):
        found = energy_drift(rnn, draw(4, 2, 3), 600, x=torch.tensor([0.4]), substeps=substeps)
        assert found.power < 1e-15 and found.defect < 1e-14
        assert "without a drift" in found.verdict.sentence and found.of == "map"
        left.append([float(trend.largest.max()) for trend in found.trends.values()])
    # h, h^2 and h^3.
    assert [round(math.log2(a / b)) for a, b in zip(*left, strict=True)] == [1, 2, 3]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, rnn.parameters(), strict=True))
    assert rnn.training
    other = energy_drift(rnn, draw(4, 2, 3), 200, x=torch.tensor([0.4]), solver="rk4")
    assert other.solver == "rk4" and list(other.energies) == ["H"]


def test_a_damped_field_is_no_fault_of_the_steps():
    h, g = 0.1, 0.3
    found = energy_drift(Pendulum(g=g), draw(3, 2, 1), 400, solver="stormer_verlet", dt=h)
    assert not found.verdict.claim and "does not conserve this energy" in found.verdict.sentence
    # The method is conformal: the form shrinks by exp(-g h) at every state.
    assert math.isclose(found.factor, math.exp(-g * h), rel_tol=1e-14) and found.conformal_defect < 1e-14
    assert math.isclose(found.volume, -g, rel_tol=1e-12) and set(found.energies) == {"H"}


def test_without_an_energy_and_with_one_of_ones_own():
    rotation = Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64))
    states = draw(3, 1, 2)
    none = energy_drift(rotation, states, 400, solver="rk4", dt=0.1)
    assert not none.verdict.claim and "declares no energy" in none.verdict.sentence and none.table()
    given = energy_drift(rotation, states, 2000, solver="rk4", dt=0.1, energy=lambda s, u: s.square().sum((1, 2)))
    # abs(R(ih))^2 = 1 - h^6 / 72 + h^8 / 576 of rk4.
    factor = (1 - 0.1**6 / 72 + 0.1**8 / 576) ** 2000
    assert math.isclose(float(given.energies["H"][0, -1] / given.energies["H"][0, 0]), factor, rel_tol=1e-11)
    assert "it drifts" in given.verdict.sentence and math.isnan(given.defect)


def test_what_cannot_be_said():
    states = draw(2, 2, 1)
    wrong = Pendulum(g=0.2)
    wrong.damping = lambda: 0.0
    # A solver would refuse it at once.
    with solvers.field_checks(False):
        broken = energy_drift(wrong, states, 400, solver="stormer_verlet", dt=0.1)
    cases = {
        "160 are asked for": energy_drift(Pendulum(), states, 100, solver="rk4", dt=0.1),
        "velocities turn around 1 times": energy_drift(Pendulum(), states, 400, solver="stormer_verlet", dt=0.005),
        "begin with an energy of 0": energy_drift(Pendulum(), states * 0, 400, solver="stormer_verlet", dt=0.1),
        "breaks what it declares": broken,
        "has no solver": energy_drift(neuralosc.make("torch_gru", input_size=1, hidden_size=2), states),
    }
    for why, found in cases.items():
        assert not found.verdict.claim and why in found.verdict.sentence
        assert found.to_dict()["verdict"]["rule"] == found.verdict.rule


def test_states_that_leave_the_numbers():
    found = energy_drift(Duffing(), 2 * draw(2, 2, 1), 2000, solver="euler", dt=0.5)
    assert found.verdict.claim and "do not last the horizon" in found.verdict.sentence


def test_kept_to_rounding():
    found = energy_drift(Harmonic(), draw(2, 2, 1), 200, solver="yoshida8", dt=0.05)
    assert "keeps the energy to rounding" in found.verdict.sentence


def test_coefficients_of_the_logarithm():
    assert logarithm(partitioned.KICK_DRIFT) == pytest.approx((-1 / 2, 1 / 12, 1 / 12), abs=1e-15)
    # Hairer, Lubich & Wanner IX.8: the one with half kicks.
    assert logarithm(partitioned.STORMER_VERLET) == pytest.approx((0, 1 / 12, -1 / 24), abs=1e-15)
    assert logarithm(partitioned.FOREST_RUTH) == pytest.approx((0, 0, 0), abs=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon is 0, expected a whole number"),
        ({"solver": None, "dt": None}, "a field alone takes no steps: give solver and dt"),
        ({"dt": None}, "solver was given alone"),
        ({"dt": -1.0}, "dt is -1.0, expected a positive number"),
        ({"states": torch.rand(2, 1, 1)}, r"states are \(2, 1, 1\), expected \(batch, 2, 1\)"),
        ({"states": torch.full((1, 2, 1), math.nan)}, "states have NaN"),
        ({"x": torch.rand(3, 1)}, r"x has shape \(3, 1\), expected \(1,\), \(1, 1\) or \(2, 1\)"),
        ({"energy": lambda s, u: s.sum()}, r"the energy has shape \(\), expected one value a state"),
    ],
)
def test_bad_input(options, message):
    given = {"states": draw(2, 2, 1), "solver": "rk4", "dt": 0.1, **options}
    with pytest.raises(InputError, match=message):
        energy_drift(Pendulum(), **given)


def test_its_picture():
    found = energy_drift(Pendulum(), draw(2, 2, 1), 400, solver="stormer_verlet", dt=0.1)
    assert found.png()[:4] == b"\x89PNG" and "H to order h^2" in found.table()


def test_noise_is_no_map():
    rnn = neuralosc.make("noisy", input_size=1, hidden_size=2)
    found = energy_drift(rnn, draw(2, 1, 2))
    assert not found.verdict.claim and "draws noise" in found.verdict.sentence
    with pytest.raises(InputError, match="draws noise and is no one map"):
        energy_drift(rnn.field, draw(2, 1, 2), solver=rnn.solver, dt=0.1)
