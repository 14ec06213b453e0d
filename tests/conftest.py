"""What the tests share as fixtures: seeds, golden files, every field by name, and how an error message is judged."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import solvers
from solvers.protocol import structure
from tests.fields import FIELDS, make_field
from tests.measures import relative_error

GOLDEN = Path(__file__).parent / "golden"

#: Triton reads it when it is first imported, by whatever does so first: a test, or torch.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_generate_tests(metafunc):
    """`field_name` runs a test for every field; `pairing` for every field and each registered solver that fits it.

    `equation_name` leaves out the fields without a right-hand side.
    """
    if "field_name" in metafunc.fixturenames:
        metafunc.parametrize("field_name", list(FIELDS))
    if "equation_name" in metafunc.fixturenames:
        equations = [name for name in FIELDS if "differential" in structure(make_field(name))]
        metafunc.parametrize("equation_name", equations)
    if "pairing" in metafunc.fixturenames:
        pairs = [(name, solver) for name in FIELDS for solver in solvers.compatible(make_field(name))]
        # An order-2 pair takes hundreds of steps an interval: one field is enough for it.
        pairs = [p for p in pairs if p[1] != "adaptive_heun" or p[0] == "leaky"]
        metafunc.parametrize("pairing", [_pair(*pair) for pair in pairs])


#: Walks over many like cases: of each, one in so many is tried each time, and all in the slow run.
THINNED = {
    "neuralosc/fields/test_time_scale.py::test_compiled_reversible_and_checkpointed_paths_respect_it": 2,
    "neuralosc/fields/test_user_field.py::test_every_explicit_and_adaptive_solver": 3,
    "neuralosc/layers/test_agreement.py::test_every_solver_that_fits_converges_to_that_solution": 6,
    "neuralosc/layers/test_agreement.py::test_tight_dopri5_and_rk4_with_many_substeps": 6,
    "neuralosc/layers/test_gradients.py::test_backprop_against_finite_differences": 4,
    "neuralosc/layers/test_gradients.py::test_second_derivatives_by_backprop": 3,
    "neuralosc/layers/test_gradients.py::test_the_adjoint_against_backprop": 4,
    "neuralosc/layers/test_rnn.py::test_two_halves_equal_the_whole": 3,
    "neuralosc/named/test_every_model.py::test_torch_export": 3,
    "neuralosc/named/test_reparametrized.py::test_the_weight_is_the_one_computed_by_hand": 5,
    "neuralosc/named/test_reparametrized.py::test_training_goes_on": 5,
    "experiments/train/test_training.py::test_every_network_trains": 4,
    "solvers/adaptive/test_native.py::TestAccuracy::test_detest_to_a_multiple_of_the_tolerance": 3,
    "solvers/base/test_controls_and_clocks.py::test_a_span_of_zero_changes_nothing": 3,
    "solvers/base/test_controls_and_clocks.py::test_clocks_per_sample_equal_each_sample_alone": 4,
    "solvers/base/test_controls_and_clocks.py::test_substeps_split_an_interval_evenly": 5,
    "solvers/compiled/test_checkpoint.py::test_fields_solvers_and_clocks": 3,
    "solvers/compiled/test_operations.py::test_the_step_is_that_of_the_plain_path": 3,
    "solvers/gradients/test_gradcheck.py::test_against_finite_differences": 3,
    "solvers/gradients/test_gradcheck.py::test_second_derivatives_against_finite_differences": 3,
    "solvers/gradients/test_local.py::test_every_field_is_backprop_under_a_window_over_all": 3,
    "solvers/gradients/test_local.py::test_every_solver_is_backprop_under_a_window_over_all": 3,
    "solvers/gradients/test_memory.py::test_every_field_works_under_checkpoint": 3,
    "solvers/gradients/test_recomputed.py::test_a_module_that_keeps_its_states_is_freed": 5,
    "solvers/methods/test_implicit.py::test_batches_of_any_shape": 3,
    "solvers/methods/test_symplectic.py::test_the_energy_stays_bounded_over_a_hundred_thousand_steps": 4,
    "solvers/parallel/test_linear.py::test_clocks_controls_and_substeps": 3,
    "solvers/parallel/test_linear.py::test_every_solver": 3,
    "solvers/test_order.py::test_declared_order_is_measured": 5,
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave most cases of the long walks to the slow run; before pytest chooses by marks."""
    met = dict.fromkeys(THINNED, 0)
    for item in items:
        walk = item.nodeid.partition("tests/")[2].partition("[")[0]
        if walk not in met or item.get_closest_marker("slow"):
            continue
        if met[walk] % THINNED[walk]:
            item.add_marker(pytest.mark.slow)
        met[walk] += 1


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
        # How deep the folder of the tests lies is no matter of the message.
        paths = sum(len(str(word)) for word in words if isinstance(word, Path))
        assert message and "\n" not in message and len(message) - paths < 500, message
        for word in words:
            assert str(word) in message, f"{word!r} not in: {message}"
        return message

    return check
