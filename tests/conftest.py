"""What the tests share as fixtures: seeds, golden files, every field by name, and how an error message is judged."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import solvers
from tests.fields import FIELDS, make_field
from tests.measures import relative_error

GOLDEN = Path(__file__).parent / "golden"

#: Triton reads it when it is first imported, by whatever does so first: a test, or torch.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


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
