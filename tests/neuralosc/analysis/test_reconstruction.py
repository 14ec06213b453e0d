"""A truth against itself, a Lorenz system that was learnt badly, and each measure against a hand calculation."""

import math
import sys

import pytest
import torch

import neuralosc
import solvers
from neuralosc import InputError
from neuralosc.analysis.reconstruction import binned, hellinger, reconstruction, spectrum
from tests.neuralosc.analysis.systems import F64, Linear, Lorenz, Pendulum, draw

# The name stands for the function.
module = sys.modules["neuralosc.analysis.reconstruction"]

OPTIONS = {"dt": 0.03, "steps": 400, "transient": 150, "substeps": 3}


def starts(count):
    """About the attractor; near 0 trajectories spiral out of the other fixed points for long."""
    return 8 * draw(count, 1, 3) + torch.tensor([0.0, 0.0, 25.0], dtype=F64)


@pytest.fixture(autouse=True)
def plain():
    with solvers.backend("plain"):
        yield


@pytest.fixture(scope="module")
def itself():
    with solvers.backend("plain"):
        return reconstruction(Lorenz(), Lorenz(), starts(16), **OPTIONS)


def test_a_truth_against_itself(itself):
    assert itself.field_error == 0 and itself.valid.isinf().all()
    assert itself.divergence == itself.divergence_floor and itself.hellinger == itself.hellinger_floor
    assert itself.verdict.claim and "do not tell the attractor that was learnt" in itself.verdict.sentence
    # Viswanath 1998: 0.9056.
    assert abs(itself.exponent - 0.9056) < 4 * itself.exponent_error and itself.exponent_error < 0.05
    assert itself.of == "flow" and itself.png()[:4] == b"\x89PNG" and "Lyapunov times" in itself.table()


def test_a_field_that_is_a_little_off_and_one_that_is_another(itself):
    start = starts(16)
    near = reconstruction(Lorenz(28.01), Lorenz(), start, exponent=0.9056, **OPTIONS)
    assert near.exponent == 0.9056 and 2 < float(near.lyapunov_times.min()) < 12
    assert "do not tell" in near.verdict.sentence
    far = reconstruction(Lorenz(20.0), Lorenz(), start, exponent=0.9056, **OPTIONS)
    # At rho = 20 all comes to rest.
    assert "is another one" in far.verdict.sentence and far.divergence > 5 * far.divergence_floor
    assert float(far.lyapunov_times.median()) < 1


def test_a_map_is_judged_by_its_steps():
    found = reconstruction(Lorenz(), Lorenz(), starts(16), solver="rk4", exponent=0.9056, **OPTIONS)
    assert found.of == "map" and found.field_error == 0 and found.valid.isfinite().any()
    lost = reconstruction(Lorenz(), Lorenz(), starts(8), solver="euler", exponent=0.9, dt=0.2, steps=60)
    assert lost.verdict.claim and "does not last 60 steps" in lost.verdict.sentence


def test_divergence_and_distance_by_hand():
    one = torch.tensor([[0.0], [1.0], [1.0], [1.0]], dtype=F64).repeat(20, 1)
    other = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=F64).repeat(20, 1)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert math.isclose(binned(one, other), expected, rel_tol=1e-4) and binned(one, one) == 0
    assert module.bins(one) == 8 and module.bins(draw(100, 3)) == 2
    p, q = torch.tensor([[0.2], [0.8]], dtype=F64), torch.tensor([[0.8], [0.2]], dtype=F64)
    assert math.isclose(hellinger(p, q), math.sqrt(1 - 0.8)) and hellinger(p, p) < 1e-7
    wave = torch.sin(2 * math.pi * 10 * torch.arange(200, dtype=F64) / 200).view(1, 200, 1)
    assert int(spectrum(wave)[:, 0].argmax()) == 10 and math.isclose(float(spectrum(wave).sum()), 1)


def test_the_density_of_many_numbers():
    """Of two Gaussians of unit width, one moved by m, it is m^2 / 2 but for the width of the kernels."""
    pair = module._Pair.__new__(module._Pair)
    true, model = draw(8000, 4), draw(8000, 4, seed=1)
    moved = pair.smooth(true, model + torch.tensor([1.0, 0, 0, 0], dtype=F64))
    assert abs(moved - 0.5 / (1 + module.WIDTH**2)) < 0.15
    assert abs(pair.smooth(true, model)) < 0.1


def test_what_cannot_be_said(itself):
    start, short = starts(8), {"dt": 0.03, "steps": 60, "transient": 0}
    gru = neuralosc.make("torch_gru", input_size=1, hidden_size=3)
    rotation = Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64))
    cases = {
        "3 starts are too few": reconstruction(Lorenz(), Lorenz(), start[:3], **short, exponent=0.9),
        "last 1.6 Lyapunov times": reconstruction(Lorenz(), Lorenz(), start, **short, exponent=0.9),
        "the truth is not chaotic": reconstruction(rotation, rotation, draw(8, 1, 2), **short),
        "has no solver": reconstruction(gru, Lorenz(), start),
    }
    for why, found in cases.items():
        assert not found.verdict.claim and why in found.verdict.sentence and found.to_dict()
    assert itself.to_dict()["exponent"] == itself.exponent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt": None}, "dt is None, expected a positive number for a field"),
        ({"steps": 0}, "steps is 0, expected a whole number"),
        ({"truth": Pendulum()}, r"states are \(2, 1, 3\), expected \(batch, 2, 1\)"),
    ],
)
def test_bad_input(options, message):
    given = {"truth": Lorenz(), "start": draw(2, 1, 3), "dt": 0.1, **options}
    with pytest.raises(InputError, match=message):
        reconstruction(Lorenz(), **given)
