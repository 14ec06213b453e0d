"""The tests, a package whose folders mirror those of `solvers`, `neuralosc` and `experiments`."""

import pytest

# What helper modules assert is explained as what tests assert is.
pytest.register_assert_rewrite(*(f"tests.{name}" for name in ("measures", "solvers", "neuralosc", "experiments")))
