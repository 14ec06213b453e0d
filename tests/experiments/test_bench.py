import io
import json

import pytest
import torch
from rich.console import Console

from experiments import bench
from experiments.bench import BASELINE, CASES, SUBJECT, PlainLoop, Shape, Subject, check_equal
from solvers.errors import InputError, NumericalError

TINY = Shape(6, 3, 4)


@pytest.fixture(scope="module")
def timings():
    return bench.run([TINY, Shape(3, 2, 5)], repeats=3)


def inputs(shape):
    return torch.rand(shape.batch, shape.time, 1)


def test_plain_loop_takes_the_published_step():
    model = PlainLoop(1, 4).double()
    x = torch.rand(2, 5, 1, dtype=torch.float64)
    weight, bias = model.cell.i2h.weight, model.cell.i2h.bias
    y = z = torch.zeros(2, 4, dtype=torch.float64)
    for t in range(5):
        force = torch.tanh(x[:, t] @ weight[:, :1].T + z @ weight[:, 1:5].T + y @ weight[:, 5:].T + bias)
        z = z + 0.042 * (force - 2.7 * y - 4.7 * z)
        y = y + 0.042 * z
    torch.testing.assert_close(model(x), y, rtol=1e-13, atol=1e-15)


def test_library_and_plain_loop_compute_the_same_loss_and_gradient():
    x = inputs(TINY)
    subject, baseline = CASES[SUBJECT](TINY, x), CASES[BASELINE](TINY, x)
    assert subject.step() == pytest.approx(baseline.step(), rel=1e-5)
    assert bench._gradient_norm(subject.model) == pytest.approx(bench._gradient_norm(baseline.model), rel=1e-5)
    check_equal(subject, baseline)


def test_a_step_starts_from_no_gradient():
    subject = CASES[BASELINE](TINY, inputs(TINY))
    subject.step()
    first = bench._gradient_norm(subject.model)
    subject.step()
    assert bench._gradient_norm(subject.model) == pytest.approx(first, rel=1e-6)


def test_unequal_work_is_refused(one_line):
    x = inputs(TINY)
    with pytest.raises(NumericalError) as caught:
        check_equal(CASES[SUBJECT](TINY, 2 * x), CASES[BASELINE](TINY, x))
    one_line(caught, "disagree", "loss")
    broken = Subject(lambda: float("nan"), CASES[BASELINE](TINY, x).model)
    with pytest.raises(NumericalError):
        check_equal(broken, CASES[BASELINE](TINY, x))


def test_every_case_is_timed_in_every_round(timings):
    assert [(t.shape, t.case) for t in timings] == [(s, c) for s in (TINY, Shape(3, 2, 5)) for c in CASES]
    for timing in timings:
        assert len(timing.seconds) == 3 and all(s > 0 for s in timing.seconds)
        assert timing.minimum <= timing.median <= max(timing.seconds)


def test_ratios_are_to_the_plain_loop_of_the_same_shape(timings):
    for timing in timings:
        (base,) = [t for t in timings if t.shape == timing.shape and t.case == BASELINE]
        assert timing.ratio_of_medians == pytest.approx(timing.median / base.median)
        assert timing.ratio_of_minima == pytest.approx(timing.minimum / base.minimum)
    assert {t.ratio_of_medians for t in timings if t.case == BASELINE} == {1.0}


def test_table_shows_every_case(timings):
    out = Console(width=120, file=io.StringIO())
    out.print(bench.table(timings))
    text = out.file.getvalue()
    for word in (*CASES, "(6, 3, 4)", "(3, 2, 5)", "ratio of medians", "ratio of minima"):
        assert word in text


def test_json_holds_machine_and_every_time(timings, tmp_path):
    bench.write_json(timings, tmp_path / "times.json")
    values = json.loads((tmp_path / "times.json").read_text())
    assert values["machine"]["torch"] == torch.__version__
    assert len(values["timings"]) == len(timings)
    first = values["timings"][0]
    assert (first["time"], first["batch"], first["hidden"], first["case"]) == (6, 3, 4, SUBJECT)
    assert first["seconds"] == list(timings[0].seconds)


def test_progress_goes_up_to_one_over_all_shapes():
    seen = []
    bench.run([TINY, TINY], repeats=2, report=lambda what, done: seen.append(done))
    assert seen == sorted(seen) and seen[0] == 0 and 0.5 < seen[-1] <= 1


def test_no_repeats_are_refused(one_line):
    with pytest.raises(InputError) as caught:
        bench.run([TINY], repeats=0)
    one_line(caught, "repeats", "0", "at least 1")
