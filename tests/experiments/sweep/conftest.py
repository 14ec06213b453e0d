"""What the tests of a sweep share."""

import pytest

from experiments.sweep import costs


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Steps are timed for a moment only."""
    monkeypatch.setattr(costs, "_TIMED", 0.02)
    monkeypatch.setattr(costs, "_ROUNDS", (2, 50))
