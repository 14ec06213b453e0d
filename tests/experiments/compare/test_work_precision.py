import itertools
from pathlib import Path

import pytest

from experiments.command.cli import main
from experiments.compare import work_precision
from experiments.compare.work_precision import Problem, apart, measure

SMALL = Problem("small", 4.0, 0.5, 1.0, ("rk4", "imex_euler", "native_dopri5"))


@pytest.fixture(scope="module")
def panels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_precision, "BUDGETS", (16, 32, 64))
        patch.setattr(work_precision, "TOLERANCES", (1e-3, 1e-6, 1e-9))
        return measure([SMALL])


def test_more_work_is_more_precise_at_the_order_of_the_method(panels):
    rk4, imex, native = panels[0].curves
    assert [e for e, _ in rk4.points] == [e for e, _ in imex.points] == [16, 32, 64]
    for curve, order in ((rk4, 4), (imex, 1)):
        for (_, coarse), (_, fine) in itertools.pairwise(curve.points):
            assert coarse / fine == pytest.approx(2**order, rel=0.3)
    assert [error for _, error in native.points] == sorted((error for _, error in native.points), reverse=True)


def test_names_keep_their_distance_and_their_order():
    moved = apart([0.9, 0.5, 0.49, 0.02, 0.01], 0.1)
    assert all(a - b >= 0.1 - 1e-12 for a, b in itertools.pairwise(moved))
    assert min(moved) >= 0 and max(moved) <= 1 and moved[0] == 0.9 and moved[1] == 0.5


def test_the_command_draws_and_prints(panels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work_precision, "measure", lambda report: panels)
    path = Path(tmp_path / "diagram.png")
    assert main(["work-precision", "--out", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    for name in (*SMALL.methods, str(path), "1e-06"):
        assert name in out
    assert main(["work-precision", "--out", str(tmp_path / "no" / "where.png")]) == 2
    assert "no folder" in capsys.readouterr().err
