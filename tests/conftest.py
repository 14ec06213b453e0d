"""What the tests share: seeds, golden files, every field by name, and how an error message is judged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import neuralosc
import solvers

GOLDEN = Path(__file__).parent / "golden"


def pendulum_energy(state, u):
    """A user's own energy, driven through q."""
    q, p = state.unbind(-2)
    return (p.square() / 2 - torch.cos(q) + 0.3 * q.square() - u * q).sum(-1)


class MixedEnergy(neuralosc.Hamiltonian):
    """A user's own energy that does not separate, with parameters."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V = nn.Linear(input_size, hidden_size)
        self.K = nn.Parameter(0.5 * torch.randn(hidden_size, hidden_size) / hidden_size)

    def drive(self, x):
        return self.V(x)

    def energy(self, state, u):
        q, p = state.unbind(-2)
        return (p.square() * (1 + 0.3 * torch.cos(q @ self.K)) / 2 + q.square() / 2 + u * torch.sin(q)).sum(-1)


class Leaky(neuralosc.VectorField):
    """The user's field of ten lines."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V, self.W = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        return (torch.tanh(self.W(h) + u) - h).unsqueeze(-2)


def per_channel(hidden, low, high):
    return torch.linspace(low, high, hidden, dtype=torch.float64)


#: Every field of the library, and two of a user, from (input_size, hidden_size).
FIELDS: dict[str, Callable[[int, int], neuralosc.VectorField]] = {
    "oscillator": lambda i, h: neuralosc.Oscillator(i, h, gamma=1.7, epsilon=0.6),
    "oscillator_uncoupled": lambda i, h: neuralosc.Oscillator(i, h, gamma=1.7, epsilon=0.6, coupled=False),
    "oscillator_per_channel": lambda i, h: neuralosc.Oscillator(
        i, h, gamma=per_channel(h, 0.5, 2.0), epsilon=per_channel(h, 0.1, 0.9)
    ),
    "oscillator_learned": lambda i, h: neuralosc.Oscillator(i, h, gamma=1.7, epsilon=0.6, learned=True, coupled=False),
    "hamiltonian_oscillator": lambda i, h: neuralosc.HamiltonianOscillator(i, h, alpha=0.8),
    "hamiltonian_energy": MixedEnergy,
    "hamiltonian_one_layer": lambda i, h: neuralosc.DenseHamiltonian(i, h, alpha=0.7),
    "hamiltonian_two_layers": lambda i, h: neuralosc.DenseHamiltonian(i, h, alpha=0.7, energy_layers=2),
    "lipschitz": lambda i, h: neuralosc.Lipschitz(i, h, gamma=0.3),
    "lipschitz_gated": lambda i, h: neuralosc.Lipschitz(i, h, gamma=0.3, gated=True),
    "antisymmetric": lambda i, h: neuralosc.Antisymmetric(i, h, gamma=0.3),
    "multiscale": neuralosc.Multiscale,
    "relaxation": neuralosc.Relaxation,
    "gated_relaxation": neuralosc.GatedRelaxation,
    "orthogonal": neuralosc.Orthogonal,
    "linear_oscillator": neuralosc.LinearOscillator,
    "linear_oscillator_damped": lambda i, h: neuralosc.LinearOscillator(i, h, damped=True),
    "leaky": Leaky,
    "liquid": lambda i, h: neuralosc.LiquidTimeConstant(i, h, tau=per_channel(h, 0.5, 2.0)),
    "noisy_lipschitz": lambda i, h: neuralosc.Noisy(neuralosc.Lipschitz(i, h, gamma=0.3), 0.2, 0.3),
    "noisy_oscillator": lambda i, h: neuralosc.Noisy(
        neuralosc.Oscillator(i, h, gamma=1.7, epsilon=0.6, coupled=False),
        per_channel(h, 0.1, 0.3),
        0.2,
        component=1,
        learned=True,
    ),
}


def make_field(name: str, input_size: int = 2, hidden_size: int = 3) -> neuralosc.VectorField:
    return FIELDS[name](input_size, hidden_size).double()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute error over the largest absolute value."""
    assert found.shape == expected.shape
    scale = expected.detach().abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((found.detach() - expected.detach()).abs().max() / scale)


def pytest_generate_tests(metafunc):
    """`field_name` runs a test for every field; `pairing` for every field and each registered solver that fits it."""
    if "field_name" in metafunc.fixturenames:
        metafunc.parametrize("field_name", list(FIELDS))
    if "pairing" in metafunc.fixturenames:
        pairs = [(name, solver) for name in FIELDS for solver in solvers.compatible(make_field(name))]
        # An order-2 pair takes hundreds of steps an interval: one field is enough for it.
        pairs = [p for p in pairs if p[1] != "adaptive_heun" or p[0] == "leaky"]
        metafunc.parametrize("pairing", [_pair(*pair) for pair in pairs])


#: Solvers that are tried with every field each time; the others with one field each, and with all in the slow run.
CORE = {"euler", "rk4", "semi_implicit_euler", "imex_euler", "stormer_verlet", "dopri5", "implicit_midpoint"}


def _pair(name: str, solver: str):
    shown = "oscillator_uncoupled"
    quick = solver in CORE or name == (shown if solver in solvers.compatible(make_field(shown)) else "lipschitz")
    return pytest.param((name, solver), id=f"{name}-{solver}", marks=[] if quick else [pytest.mark.slow])


@pytest.fixture(autouse=True, scope="session")
def _compiled_cache(tmp_path_factory):
    """Compiled steps are shared by the tests and leave nothing behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURALOSC_CACHE", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20240607)
    np.random.seed(0)


@pytest.fixture(name="make_field", scope="session")
def _make_field():
    return make_field


def has_bfloat16_lstm() -> bool:
    """Whether the processor has torch's LSTM in bfloat16, which oneDNN makes for some alone."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(1, 8)(torch.zeros(1, 2, 1))
    except RuntimeError:
        return False
    return True


def assert_agree(found, expected, bound: float) -> None:
    """Two lists of results and gradients; a gradient that is zero may be left out by either."""
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            assert all(g is None or not g.any() for g in (one, other))
        else:
            assert relative_error(one, other) < bound or float((one - other).abs().max()) < 1e-15


@pytest.fixture(name="relative_error", scope="session")
def _relative_error():
    return relative_error


@pytest.fixture(scope="session")
def golden():
    """`golden(name)` is a golden file as a dictionary of float64 tensors; numbers stay numbers."""

    def load(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            return {k: torch.from_numpy(file[k]) if file[k].ndim else file[k].item() for k in file.files}

    return load


@pytest.fixture(scope="session")
def one_line():
    """`one_line(error, *words)` asserts that a message is one readable line that holds the words."""

    def check(error, *words):
        message = str(error.value if hasattr(error, "value") else error)
        assert message and "\n" not in message and len(message) < 500, message
        for word in words:
            assert str(word) in message, f"{word!r} not in: {message}"
        return message

    return check
