import io
import json

import pytest
import torch
from rich.console import Console

from experiments.bench import solving, suite
from experiments.bench.solving import BARE, BARE_LOOPS, SHARED, Oscillators, Problem, Solve, overhead, stiffness_spread
from solvers.errors import InputError, NumericalError


@pytest.fixture(scope="module")
def timings():
    return solving.run([stiffness_spread(1, 0.5), overhead("rk4", 5, 4)], repeats=2)


def test_the_stiffness_spans_three_decades_and_reaches_the_field():
    field = Oscillators(2)
    assert len(field.stiffness) == 64 and float(field.stiffness.max() / field.stiffness.min()) == pytest.approx(1000)
    slope = field(torch.zeros(()), field.start, field.stiffness)
    q, p = field.start.unbind(-2)
    torch.testing.assert_close(slope[:, 0], p)
    torch.testing.assert_close(slope[:, 1], 1 - 0.1 * p - field.stiffness * q)


def test_evaluations_per_sample_are_fewer_and_every_case_solves_the_problem(timings):
    native, shared, averaged = timings[:3]
    assert native.case == "native_dopri5" and shared.case == SHARED
    assert native.evaluations < averaged.evaluations < shared.evaluations
    assert native.ratio_of_evaluations == native.evaluations / shared.evaluations
    assert max(native.error, shared.error) < 1e-3


@pytest.mark.parametrize("method", list(BARE_LOOPS))
def test_the_bare_loop_takes_the_same_steps(method):
    problem = overhead(method, 20, 8)
    ours, bare = (case() for case in problem.cases.values())
    torch.testing.assert_close(ours.states, bare.states, rtol=0, atol=1e-5)
    assert ours.states.shape == (64, 21, 1, 8) and ours.evaluations == bare.evaluations


def test_ratios_are_to_the_baseline_of_the_same_rounds(timings):
    for problem, baseline in {(t.problem, SHARED if "oscillators" in t.problem else BARE) for t in timings}:
        rows = [t for t in timings if t.problem == problem]
        (base,) = [t for t in rows if t.case == baseline]
        for row in rows:
            assert row.ratio_of_medians == pytest.approx(row.median / base.median)
            assert row.ratio_of_minima == pytest.approx(row.minimum / base.minimum)


def test_unlike_work_is_refused(one_line):
    zeros = torch.zeros(1, 1, 1, 1)
    wrong = Problem("nothing", {"off": lambda: Solve(zeros + 1, 1)}, "off", lambda: zeros, 0.1)
    with pytest.raises(NumericalError) as caught:
        solving.run([wrong], repeats=1)
    one_line(caught, "off", "nothing", "unlike work")
    with pytest.raises(InputError, match="at least 1"):
        solving.run([wrong], repeats=0)


def test_table_and_file_hold_every_case(timings, tmp_path):
    out = Console(width=120, file=io.StringIO())
    out.print(solving.table(timings))
    text = out.file.getvalue()
    for timing in timings:
        assert timing.case in text and timing.problem in text
    suite.write_json({"solving": solving.rows(timings)}, tmp_path / "times.json")
    rows = json.loads((tmp_path / "times.json").read_text())["solving"]
    assert [row["case"] for row in rows] == [timing.case for timing in timings]
    assert rows[0]["seconds"] == list(timings[0].seconds) and rows[0]["median"] == timings[0].median
