import io
import json

import pytest
import torch
from rich.console import Console

from experiments.bench import suite, training
from experiments.bench.cases import COMPILED, PLAIN, SHAPES, Shape, Subject, cases
from experiments.bench.loops import CoRNNLoop, LEMLoop, LinOSSLoop, LinOSSScan, LipschitzLoop, UnICORNNLayer
from experiments.bench.training import check_equal, outcome
from solvers.errors import InputError, NumericalError

F64 = torch.float64
TINY = Shape("T", 6, 3, 4, 2)
LINEAR = Shape("L", 7, 3, 4, 2, linear=True)


@pytest.fixture(scope="module")
def timings():
    # However slow the machine is, every round is run.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "BUDGET", 1e9)
        return training.run([TINY, LINEAR], repeats=3)


def subject(name, x=None):
    return cases(TINY)[name].make(TINY, torch.rand(3, 6, 2) if x is None else x)


def test_cornn_loop_takes_the_published_step():
    model, x = CoRNNLoop(1, 4).double(), torch.rand(2, 5, 1, dtype=F64)
    weight, bias = model.i2h.weight, model.i2h.bias
    y = z = torch.zeros(2, 4, dtype=F64)
    for t in range(5):
        force = torch.tanh(x[:, t] @ weight[:, :1].T + z @ weight[:, 1:5].T + y @ weight[:, 5:].T + bias)
        z = z + 0.042 * (force - 2.7 * y - 4.7 * z)
        y = y + 0.042 * z
    torch.testing.assert_close(model(x), y, rtol=1e-13, atol=1e-15)


def test_the_other_loops_take_the_first_step_of_their_equations():
    x, v = torch.rand(3, 1, 2), torch.rand(3, 2)
    x[:, 0] = v
    lipschitz = LipschitzLoop(2, 4)
    torch.testing.assert_close(lipschitz(x), 0.03 * torch.tanh(lipschitz.E(v)))
    lem = LEMLoop(2, 4)
    u1, u2, uz, uy = (v @ lem.inp2hid.weight.T + lem.inp2hid.bias).chunk(4, 1)
    b1, b2, by = lem.hid2hid.bias.chunk(3)
    z = torch.sigmoid(u2 + b2) * torch.tanh(uy + by)
    torch.testing.assert_close(lem(x), torch.sigmoid(u1 + b1) * torch.tanh(lem.transform_z(z) + uz))
    layer = UnICORNNLayer(2, 4, 0.1, 2.0)
    step = 0.1 * torch.sigmoid(layer.c)
    torch.testing.assert_close(layer(x)[:, 0], -step * step * torch.tanh(layer.V(v)))


@pytest.mark.parametrize("time", [2, 3, 5, 8, 13])
def test_the_scan_equals_the_loop(time):
    torch.manual_seed(0)
    loop, scan = LinOSSLoop(2, 5).double(), LinOSSScan(2, 5).double()
    scan.load_state_dict(loop.state_dict())
    x = torch.randn(3, time, 2, dtype=F64)
    torch.testing.assert_close(scan(x), loop(x), rtol=1e-12, atol=1e-13)
    of_loop, of_scan = (torch.autograd.grad(model(x).square().sum(), [*model.parameters()]) for model in (loop, scan))
    torch.testing.assert_close(of_loop, of_scan, rtol=1e-11, atol=1e-12)


def test_every_way_to_compute_a_network_is_checked_against_another():
    for shape in (TINY, LINEAR):
        for name, case in cases(shape).items():
            assert case.floor in cases(shape)
            if case.what in (COMPILED, PLAIN):
                assert case.peer in cases(shape) and case.peer != name
    assert {case.field for case in cases(TINY).values() if case.what == COMPILED} == {
        "coRNN",
        "Lipschitz RNN",
        "LEM",
        "UnICORNN, 2 layers",
        "own field, rk4",
        "coRNN field, rk4",
    }


def test_a_step_starts_from_no_gradient():
    one = subject("coRNN: loop")
    one.step()
    first = one.gradient_norm()
    one.step()
    assert one.gradient_norm() == pytest.approx(first, rel=1e-6)


def test_unequal_work_is_refused(one_line):
    x, case = torch.rand(3, 6, 2), cases(TINY)["coRNN: neuralosc"]
    right = outcome(subject("coRNN: loop", x))
    with pytest.raises(NumericalError) as caught:
        check_equal(case, outcome(subject("coRNN: neuralosc", 2 * x)), right)
    one_line(caught, "disagree", "loss")
    broken = Subject(lambda: float("nan"), subject("coRNN: loop", x).model)
    with pytest.raises(NumericalError):
        check_equal(case, outcome(broken), right)


def test_every_case_is_timed_in_every_round(timings):
    assert [(t.shape, t.case.name) for t in timings] == [(s, c) for s in (TINY, LINEAR) for c in cases(s)]
    for timing in timings:
        assert len(timing.seconds) == 3 and all(s > 0 for s in timing.seconds) and not timing.note
        assert timing.minimum <= timing.median <= max(timing.seconds)


def test_ratios_are_to_the_floor_of_the_field_at_the_same_shape(timings):
    for timing in timings:
        (base,) = [t for t in timings if t.shape == timing.shape and t.case.name == timing.case.floor]
        assert timing.floors_of_medians == pytest.approx(timing.median / base.median)
        assert timing.floors_of_minima == pytest.approx(timing.minimum / base.minimum)
    floors = [t for t in timings if t.case.what == "floor"]
    assert len(floors) == 5 and {t.floors_of_medians for t in floors} == {1.0}


def test_a_slow_case_takes_part_in_fewer_rounds(monkeypatch):
    monkeypatch.setattr(training, "BUDGET", 0.0)
    assert {len(t.seconds) for t in training.run([LINEAR], repeats=3)} == {1}


def test_a_case_that_cannot_run_is_left_out_and_says_why(monkeypatch):
    monkeypatch.setenv("NEURALOSC_CXX", "no-such-compiler")
    results = training.run([Shape("L", 7, 3, 5, 2, linear=True)], repeats=1)
    (compiled,) = [t for t in results if t.case.what == COMPILED]
    assert not compiled.seconds and "no-such-compiler" in compiled.note
    assert all(t.seconds for t in results if t is not compiled)
    assert training.rows(results)[1]["minimum"] is None
    out = Console(width=200, file=io.StringIO())
    out.print(training.table(results))
    assert "left out" in out.file.getvalue()


def test_table_shows_every_case(timings):
    out = Console(width=160, file=io.StringIO())
    out.print(training.table(timings))
    text = out.file.getvalue()
    for word in ("T (6, 3, 4, 2)", "L (7, 3, 4, 2)", "coRNN", "LEM", "associative scan", "floors: medians", "LSTM"):
        assert word in text


def test_json_holds_machine_and_every_time(timings, tmp_path):
    suite.write_json({"training": training.rows(timings)}, tmp_path / "times.json")
    first = json.loads((tmp_path / "times.json").read_text())["training"][0]
    assert (first["time"], first["batch"], first["hidden"], first["case"]) == (6, 3, 4, "floor")
    assert first["seconds"] == list(timings[0].seconds)


def test_progress_goes_up_to_one_over_all_shapes():
    seen = []
    training.run([LINEAR, LINEAR], repeats=2, report=lambda what, done: seen.append(done))
    assert seen == sorted(seen) and seen[0] == 0 and 0.5 < seen[-1] <= 1


def test_the_shapes_of_the_benchmark_have_names():
    assert [s.name for s in suite.shapes_of(None, quick=False)] == ["S1", "S2", "S3", "S4", "S5", "L1"]
    assert suite.shapes_of(["S4", "L1"], quick=False) == (SHAPES[3], SHAPES[5])
    assert all(shape.time < 200 for shape in suite.shapes_of(None, quick=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: training.run([TINY], repeats=0), ("repeats", "0", "at least 1")),
        (lambda: suite.shapes_of(["S9"], quick=False), ("S9", "S1")),
        (lambda: suite.parts_of(["speed"]), ("speed", "training")),
        (lambda: suite.threads(-1).__enter__(), ("threads", "-1")),
    ],
)
def test_what_cannot_be_measured_is_refused(call, words, one_line):
    with pytest.raises(InputError) as caught:
        call()
    one_line(caught, *words)
